"""A damaged file is one line of error and an exit code in every command."""

import pytest
from tests.container.bad_files import CASES, OF_METADATA
from tests.container.forged import Entry, forge

from apr.cli import main


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_commands_print_one_line_and_exit_4(command, case, tmp_path, capsys):
    path = tmp_path / "bad.apr"
    path.write_bytes(CASES[case][0])
    if case == "safetensors":
        assert main([command, str(path)]) == 0  # not damaged: these commands read it, and apr.load does not
        return
    if case in OF_METADATA and command != "inspect":
        # It opens: the tensors are listed, and verify shows the check that failed.
        assert main([command, str(path)]) == (5 if command == "verify" else 0)
        assert (CASES[case][-1] in capsys.readouterr().out) == (command == "verify")
        return
    assert main([command, str(path)]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert CASES[case][-1] in line


@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_a_missing_file_and_an_empty_directory_exit_3(command, tmp_path, capsys):
    missing = tmp_path / "gone.apr"
    assert main([command, str(missing)]) == 3
    assert str(missing) in capsys.readouterr().err
    assert main([command, str(tmp_path)]) == 3
    assert f"{tmp_path}: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_control_characters_in_names_are_escaped(command, tmp_path, capsys):
    path = tmp_path / "odd.apr"
    path.write_bytes(forge(Entry(b"a\x1b[31m\nb"), metadata=b'{"architecture":"\\u001b[31m"}'))
    assert main([command, str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
