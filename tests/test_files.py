"""Files that appear whole or not at all, JSON, and options in YAML."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.killing import disk_full

from apr.errors import UsageError
from apr.files import json_text, read_options, replacing, write_atomically


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def test_of_concurrent_writers_of_one_name_one_wins_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.json"
    contents = [bytes([65 + n % 26]) * (1000 + n) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["a.json"]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "a.json"
    child = os.fork()
    if child == 0:
        with replacing(path) as file:
            file.write(b"half")
            file.flush()
            os._exit(0)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 1
    assert names(tmp_path)[0].endswith(".apr-tmp")
    write_atomically(path, b"whole")
    assert names(tmp_path) == ["a.json"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file_and_the_error_names_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with disk_full(), pytest.raises(OSError, match=r"a\.json") as raised:
        write_atomically(path, b"new")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_a_missing_directory_and_a_directory_are_named(tmp_path):
    for path, kind in [(tmp_path / "none" / "a", FileNotFoundError), (tmp_path, IsADirectoryError)]:
        with pytest.raises(kind) as raised:
            write_atomically(path, b"")
        assert raised.value.filename == str(path)


def test_a_replaced_file_keeps_its_mode_and_a_link_its_target(tmp_path):
    path, link = tmp_path / "a.json", tmp_path / "link"
    path.touch(0o600)
    link.symlink_to("a.json")
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_json_has_null_in_place_of_numbers_that_it_cannot_hold():
    value = {"a": [1.5, float("nan"), (float("inf"), -float("inf"))]}
    assert json.loads(json_text(value)) == {"a": [1.5, None, [None, None]]}


@pytest.mark.parametrize(("text", "word"), [("[1]", "mapping"), ("{a: b: c}", "YAML"), ("\xff", "YAML")])
def test_options_that_are_not_a_yaml_mapping_are_refused(text, word, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=rf"options\.yaml.*{word}"):
        read_options(path)


def test_an_empty_options_file_has_no_options(tmp_path):
    path = tmp_path / "options.yaml"
    path.touch()
    assert read_options(path) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e4", 10000),
        ("1E4", 10000),
        ("+1e+4", 10000),
        ("1.5e3", 1500),
        ("5e-5", 5e-5),
        (".5e-2", 5e-3),
        ("-1e-1", -0.1),
        ("1e400", float("inf")),
        ("1e30", 1e30),
        ("10000.0", 10000.0),
        ("1_000", 1000),
        ("1e4 tokens", "1e4 tokens"),
        ("'1e4'", "1e4"),
        ("e4", "e4"),
        ("1e", "1e"),
    ],
)
def test_numbers_with_an_exponent_are_numbers(text, value, tmp_path):
    (tmp_path / "options.yaml").write_text(f"key: {text}\nlist: [{text}]\n")
    options = read_options(tmp_path / "options.yaml")
    assert options == {"key": value, "list": [value]}
    assert type(options["key"]) is type(value)


def test_a_date_that_does_not_exist_is_refused(tmp_path):
    (tmp_path / "options.yaml").write_text("key: 2026-13-45")
    with pytest.raises(UsageError, match="YAML"):
        read_options(tmp_path / "options.yaml")
