"""A directory is held by one at a time, whatever happens to processes and names meanwhile."""

import fcntl
import os
import re

import pytest


def test_a_directory_that_is_held_is_refused_until_it_is_let_go(tmp_path):
    from apr.errors import RefusedError
    from apr.held import held

    with (
        held(tmp_path, "somebody", "wait"),
        pytest.raises(RefusedError, match=rf"^{re.escape(str(tmp_path))}: .*\bsomebody\b"),
        held(tmp_path, "somebody", "wait"),
    ):
        pass
    with held(tmp_path, "somebody", "wait"):
        pass


def test_a_process_forked_meanwhile_holds_nothing(tmp_path):
    from apr.held import held

    reader, writer = os.pipe()
    with held(tmp_path, "somebody", "wait"):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with held(tmp_path, "somebody", "wait"):
            pass
    finally:
        os.close(writer)
        os.close(reader)
        assert os.waitpid(child, 0)[1] == 0


def test_the_directory_that_has_the_name_is_held_and_not_one_that_was_moved_away(tmp_path, monkeypatch):
    """As where another run is moved away by --force between the opening and the locking."""
    from apr.errors import RefusedError
    from apr.held import held

    directory, flock = tmp_path / "run", fcntl.flock
    directory.mkdir()

    def moved_first(descriptor, how):
        if not (tmp_path / "run.bak-1").exists():
            directory.rename(tmp_path / "run.bak-1")
            directory.mkdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", moved_first)
    with (
        held(directory, "somebody", "wait"),
        held(tmp_path / "run.bak-1", "somebody", "wait"),
        pytest.raises(RefusedError),
        held(directory, "somebody", "wait"),
    ):
        pass


def test_what_was_made_and_is_empty_goes_with_an_error(tmp_path):
    from apr.held import claimed

    deep = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), claimed(deep, "somebody", "wait"):
        (tmp_path / "a" / "kept").write_text("")
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
    with claimed(deep, "somebody", "wait"):
        pass
    assert deep.is_dir()


def test_looking_whether_a_directory_is_held_does_not_hold_it(tmp_path):
    from apr.held import held, is_held

    assert not is_held(tmp_path)
    with held(tmp_path, "somebody", "wait"):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with pytest.raises(FileNotFoundError):
        is_held(tmp_path / "missing")
