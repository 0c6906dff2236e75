"""apr verify."""

import json

from tests.cli.test_inspect import QWEN


def test_every_check_is_printed(run):
    code, out, err = run("verify", QWEN)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{QWEN}: ok"
    for check in ("magic", "header", "metadata", "tensor index", "tensor data", "footer"):
        assert f"ok  {check}" in out


def test_several_files_exit_with_the_highest_code(run, tmp_path):
    good, flipped, bad, gone = QWEN, tmp_path / "flipped.apr", tmp_path / "bad.apr", tmp_path / "gone.apr"
    content = bytearray(QWEN.read_bytes())
    content[-100] ^= 1
    flipped.write_bytes(content)
    bad.write_bytes(b"GGUF")
    assert run("verify", good, gone)[0] == 3
    assert run("verify", gone, bad, good)[0] == 4
    code, out, err = run("verify", good, flipped, bad, gone)
    assert code == 5
    assert f"{good}: ok" in out
    assert f"{flipped}: FAILED" in out
    assert [line.split(": ")[2] for line in err.splitlines()] == [str(bad), str(gone)]
    code, out, _ = run("verify", "--json", good, flipped, bad, gone)
    report = json.loads(out)
    assert (code, report["ok"]) == (5, False)
    assert [(row["ok"], row["opened"]) for row in report["files"]] == [
        (True, True),
        (False, True),
        (False, False),
        (False, False),
    ]


def test_no_file_is_a_usage_error(run):
    assert run("verify")[0] == 2
