"""apr.verify of safetensors and GGUF files: the structure, and what it does not cover."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.convert.test_from_safetensors import BAD
from tests.formats.models import FILES, IMPORTED, copied, failed, sharded

import apr
from apr.formats.open import open_model


@pytest.mark.parametrize("name", FILES[1:])
def test_the_report_says_that_values_are_not_verified(name, run):
    report = apr.verify(IMPORTED / name)
    assert report.ok
    (check,) = [check for check in report.checks if check.passed is None]
    assert "apr seal" in check.detail
    code, out, err = run("verify", IMPORTED / name)
    assert (code, err) == (0, "")
    assert "cannot be verified" in out


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["inspect", "tensors", "verify", "diff", "seal"])
def test_a_damaged_safetensors_file_is_one_line_in_every_command(command, case, tmp_path, run):
    content, word = BAD[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    code, out, err = run(command, path, *([path] if command == "diff" else []))
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert word in line


def test_the_index_is_compared_with_the_files_both_ways(tmp_path, run):
    index = sharded(tmp_path)
    assert apr.verify(index).ok
    honest = json.loads(index.read_text())
    names = list(honest["weight_map"])
    # A tensor that the index leaves out: readers load it all the same.
    index.write_text(json.dumps({"weight_map": {name: honest["weight_map"][name] for name in names[1:]}}))
    report = apr.verify(index)
    assert report.opened
    (check,) = failed(report)
    assert (check.name, check.tensor) == ("index", names[0])
    assert run("verify", index)[0] == 5
    for change in (
        {"ghost": honest["weight_map"][names[0]]},
        {names[0]: "gone.safetensors"},
        {names[0]: "../x"},
    ):
        index.write_text(json.dumps({"weight_map": honest["weight_map"] | change}))
        report = apr.verify(index)
        assert not report.opened
        assert failed(report)
        assert run("verify", index)[0] == 4


@given(st.data())
def test_any_damage_to_a_safetensors_file_is_read_or_one_clear_error(tmp_path, data):
    content = bytearray((IMPORTED / "hf_llama_tied" / "model.safetensors").read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.sampled_from([len(content), len(content) - 1, header, header - 1, 8, 3, 0])) :]
    check_any(tmp_path / "m.safetensors", bytes(content))


@given(st.data())
def test_any_damage_to_a_gguf_file_is_read_or_one_clear_error(tmp_path, data):
    content = bytearray((IMPORTED / "llama_tied.gguf").read_bytes())
    header = 32_000  # keys, tokens and the list of tensors end before this byte
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header) | st.integers(0, 2000))
        content[at] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]))
    del content[data.draw(st.sampled_from([len(content), len(content) - 1, header, 2000, 24, 5])) :]
    check_any(tmp_path / "m.gguf", bytes(content))


@given(st.binary(max_size=300), st.sampled_from(["m.gguf", "m.safetensors", "m.bin"]), st.booleans())
def test_any_bytes_are_read_or_one_clear_error(tmp_path, content, name, as_header):
    if as_header:
        prefix = {"m.gguf": b"GGUF\x03\0\0\0", "m.safetensors": struct.pack("<Q", len(content) + 1) + b"{"}
        content = prefix.get(name, b"") + content
    check_any(tmp_path / name, content)


def check_any(path, content):
    """The file opens and its tensors are inside it, or there is one error that names the file."""
    path.write_bytes(content)
    report = apr.verify(path)
    try:
        with open_model(path) as file:
            for name in file:
                info = file.info(name)
                assert 0 <= info.offset <= info.offset + info.nbytes <= len(content)
    except apr.AprError as error:
        assert not report.opened
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
        assert failed(report)
    else:
        assert report.opened


def test_a_key_for_a_format_without_keys_is_a_failed_check(tmp_path):
    path = copied(FILES[2], tmp_path)
    report = apr.verify(path, password="secret")
    assert not report.opened
    assert "not encrypted" in failed(report)[0].detail
