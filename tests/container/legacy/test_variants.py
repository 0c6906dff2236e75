"""Older forms: what other programs wrote is read bit for bit, and what lies is one line with its byte."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.container.forged import Entry, forge
from tests.container.legacy.forged_old import entry, forge_json, forge_v1, u32, wrap, zstd

import apr
from apr.cli import main

OLD = Path(__file__).parents[2] / "fixtures" / "aprender-0.2x"
EXPECTED = json.loads((OLD / "old.expected.json").read_text())
FILES = [expected["file"] for expected in EXPECTED]
WRAPPED = [name for name in FILES if "lz4" in name or "zstd" in name]
FORMS = {
    "json_0.22.0_none.apr": ("APR1 JSON", b"APR1"),
    "json_0.22.0_lz4.apr": ("APR1 JSON (wrapped, LZ4)", b"APR2"),
    "json_0.22.0_zstd.apr": ("APR1 JSON (wrapped, zstd)", b"APR2"),
    "json_0.24.1_none.apr": ("APR1 JSON", b"APR1"),
    "json_0.24.1_lz4.apr": ("APR1 JSON (wrapped, LZ4)", b"APR\0"),
    "json_0.24.1_zstd.apr": ("APR1 JSON (wrapped, zstd)", b"APR\0"),
    "v2_0.22.0.apr": ("APR v2 (magic APR2)", b"APR2"),
    "v2_0.24.1.apr": ("APR v2", b"APR\0"),
}


# honest files


@pytest.mark.parametrize("expected", EXPECTED, ids=FILES)
def test_what_older_releases_wrote_is_read_bit_for_bit(expected):
    with apr.load(OLD / expected["file"], verify="full") as file:
        assert list(file) == sorted(expected["tensors"])
        state = file.to_torch()
        for name, tensor in expected["tensors"].items():
            values = np.array(tensor["values"], np.float32).reshape(tensor["shape"])
            assert file[name].float().numpy().tobytes() == values.tobytes()
            assert file.numpy(name).astype(np.float32).tobytes() == values.tobytes()
            assert file.slice(name)[...].equal(file[name])
            assert state[name].equal(file[name])
            assert len(file.raw(name)) == file.info(name).nbytes
            assert bytes(file.raw(name)) == file.numpy(name).tobytes()
        if "metadata" in expected:
            assert json.dumps(file.metadata) == json.dumps(expected["metadata"])
        assert (file.form, file.header.magic) == FORMS[expected["file"]]
        assert len(file) == file.header.tensor_count
    assert apr.verify(OLD / expected["file"]).ok


@pytest.mark.parametrize("name", FILES)
def test_commands_show_older_forms(name, capsys):
    path = str(OLD / name)
    assert main(["inspect", "--json", path]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["valid"], found["checksum_valid"]) == (FORMS[name][0], True, True)
    assert (found["header_checksum"] is None) == name.startswith("json")
    assert found["tensor_count"] == 2
    assert main(["inspect", path]) == 0
    assert FORMS[name][0] in capsys.readouterr().out
    assert main(["tensors", "--json", "--stats", path]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 2
    assert main(["verify", path]) == 0
    assert "ok  footer" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_an_older_form_saved_again_is_a_current_file(name, tmp_path):
    with apr.load(OLD / name) as old:
        apr.save(dict(old), tmp_path / "new.apr", dict(old.metadata))
        with apr.load(tmp_path / "new.apr", verify="full") as new:
            assert new.form == "APR v2"
            assert new.metadata == old.metadata
            assert all(new[tensor].equal(old[tensor]) for tensor in old)


@pytest.mark.parametrize("how", [0, 1, 2])
@pytest.mark.parametrize("magic", [b"APR2", b"APR\0"])
def test_every_wrapper_is_read(how, magic, tmp_path):
    values = np.arange(20, dtype=np.float32)
    listed = [entry("b", (3, 4), offset=32), entry("a", (2, 4), 0)]
    path = tmp_path / "m.apr"
    path.write_bytes(wrap(forge_json(*listed, data=values.tobytes()), how, magic))
    with apr.load(path, verify="full") as file:
        assert list(file) == ["a", "b"]
        assert file["b"].flatten().tolist() == values[8:].tolist()
        assert file["a"].flatten().tolist() == values[:8].tolist()
        assert file.nbytes == path.stat().st_size


@pytest.mark.parametrize("padding", range(4))
def test_unaligned_values_are_handed_out_as_aligned_copies(padding, tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(
        forge_json(entry(), metadata=b"{}" + b" " * padding, data=np.arange(4, dtype="<f4").tobytes())
    )
    with apr.load(path) as file:
        assert file["a"].tolist() == file.numpy("a").tolist() == [0, 1, 2, 3]
        assert file["a"].data_ptr() % 4 == 0
        assert file.numpy("a").flags.aligned
        assert file.numpy("a").flags.writeable
        file["a"][0] = 7
    assert apr.load(path)["a"][0] == 0


def test_tensors_outlive_an_unpacked_file():
    file = apr.load(OLD / WRAPPED[0])
    tensor, values = file["layer.bias"], file["layer.bias"].tolist()
    file.close()
    del file
    assert tensor.tolist() == values


def test_writing_to_an_unpacked_tensor_changes_no_other_reading_of_the_file():
    with apr.load(OLD / WRAPPED[0]) as file, apr.load(OLD / WRAPPED[0]) as other:
        kept = other["layer.bias"].clone()
        file["layer.bias"][:] = 0
        assert other["layer.bias"].equal(kept)
        assert file.verify().ok


def test_stamp_of_an_older_form_says_what_to_do(tmp_path):
    with pytest.raises(apr.UnsupportedError, match=r"apr\.save"):
        apr.stamp(OLD / FILES[0], {"a": 1}, tmp_path / "out.apr")


@pytest.mark.parametrize("command", ["inspect", "tensors", "verify", "convert"])
def test_whisper_files_are_refused_by_name(command, tmp_path, run):
    path = tmp_path / "whisper.apr"
    path.write_bytes(WHISPER)
    with pytest.raises(apr.UnsupportedError) as caught:
        apr.load(path)
    assert caught.value.offset == 0
    target = [tmp_path / "out.safetensors"] if command == "convert" else []
    code, out, err = run(command, path, *target)
    assert code == 4
    assert "whisper" in out + err


# what lies

HUGE = 1 << 40
# The start of whisper.apr's container: version 1, then a header of numbers.
WHISPER = b"APR1\1\0" + bytes([2, 1, 0, 5, 0, 3]) + u32(*range(1, 11)) + bytes(500)
GOOD = forge_json(entry())
# With metadata of two bytes: metadata length 4, metadata 8, number of tensors 10, index length 14, index 18;
# the first entry of the array stands at 19.
INDEX = json.dumps([entry()]).encode()
DATA = 18 + len(INDEX)
END = DATA + 16 + 4

# id: (bytes, error, tensor, byte, what the line says)
CASES = {
    "magic alone": (b"APR1", "TruncatedError", None, 4, "the header"),
    "half a length": (b"APR1\2\0", "TruncatedError", None, 6, "the header"),
    "no JSON": (b"APR1" + bytes(40), "UnsupportedError", None, 0, "unknown layout"),
    "bundle": (b"APBUNDLE" + bytes(60), "UnsupportedError", None, 0, "bundle"),
    "whisper": (WHISPER, "UnsupportedError", None, 0, "whisper"),
    "metadata beyond the file": (
        forge_json(entry(), metadata_size=1 << 20), "TruncatedError", None, END, "the metadata",
    ),
    "metadata above the limit": (
        forge_json(entry(), metadata_size=(64 << 20) + 1), "FormatError", None, 4, "metadata length",
    ),
    "metadata cut short": (forge_json(entry(), metadata_size=1), "FormatError", None, 8, "EOF"),
    "metadata nested too deep": (
        forge_json(entry(), metadata=b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"),
        "FormatError", None, 77, "nested deeper than 64",
    ),
    "metadata not UTF-8": (forge_json(metadata=b'{"\xff":1}'), "FormatError", None, 10, "not UTF-8"),
    "number of tensors cut off": (GOOD[:12], "TruncatedError", None, 12, "the tensor index"),
    "more tensors than entries": (forge_json(entry(), count=2), "FormatError", None, 10, "index lists 1"),
    "fewer tensors than entries": (forge_json(entry(), count=0), "FormatError", None, 10, "index lists 1"),
    "index beyond the file": (
        forge_json(entry(), index_size=1 << 20), "TruncatedError", None, END, "the tensor index",
    ),
    "index above the limit": (
        forge_json(entry(), index_size=(64 << 20) + 1), "FormatError", None, 14, "index length",
    ),
    "index cut short": (
        forge_json(entry(), index_size=len(INDEX) - 1), "FormatError", None, DATA - 2, "EOF",
    ),
    "index no array": (forge_json(index=b"{}", count=0), "FormatError", None, 18, "not a list of tensors"),
    "index a text": (forge_json(index=b'"a"', count=0), "FormatError", None, 18, "not a list of tensors"),
    "index not UTF-8": (forge_json(index=b'["\xff"]', count=1), "FormatError", None, 20, "not UTF-8"),
    "index nested too deep": (
        forge_json(index=b"[" * 65 + b"]" * 65, count=1), "FormatError", None, 83, "nested deeper than 64",
    ),
    "entry no object": (forge_json(7), "FormatError", None, 19, "expected struct"),
    "entry without a name": (forge_json({"dtype": "F32"}), "FormatError", None, 34, "missing field"),
    "entry too long": (
        forge_json(entry(dtype="F" * 5000)), "FormatError", None, 19, "none takes more than 4096",
    ),
    "size a text": (forge_json(entry(size="16")), "FormatError", None, 87, "a text where a whole number"),
    "shape a text": (forge_json(entry() | {"shape": "4"}), "FormatError", None, 60, "a text where a list"),
    "dim a text": (forge_json(entry() | {"shape": ["4"]}), "FormatError", None, 61, "a text where a whole"),
    "empty name": (forge_json(entry("")), "FormatError", None, 19, "the name is empty"),
    "name with a NUL": (forge_json(entry("a\0b")), "FormatError", None, 19, "the name holds a NUL"),
    "name twice": (
        forge_json(entry(shape=(2,)), entry(shape=(2,), offset=8)), "FormatError", "a", 88, "listed twice",
    ),
    "unknown dtype": (forge_json(entry(dtype="F16")), "FormatError", "a", 19, "dtype \"F16\""),
    "nine dims": (forge_json(entry(shape=(1,) * 9, size=4)), "FormatError", None, 84, "more than 8 dims"),
    "negative dim": (forge_json(entry(shape=(-4,), size=16)), "FormatError", None, 60, "invalid value"),
    "dims overflow": (
        forge_json(entry(shape=(HUGE, HUGE), size=16)), "FormatError", "a", 19, "out of range",
    ),
    "size against dims": (forge_json(entry(size=12)), "FormatError", "a", 19, "takes 16 bytes"),
    "empty head": (
        forge_json(entry("lm_head.weight", size=0)), "FormatError", "lm_head.weight", 19, "takes",
    ),
    "offset overflow": (
        forge_json(entry(offset=(1 << 64) - 1)), "FormatError", "a", 19, "out of range",
    ),
    "past the end": (forge_json(entry(offset=8)), "TruncatedError", "a", END, "tensor \"a\""),
    "overlap": (
        forge_json(entry("a"), entry("b", offset=8), data=bytes(24)), "FormatError", "b", 166, "overlaps",
    ),
    "bytes after the footer": (
        forge_json(entry(), tail=b"xy"), "FormatError", None, END, "2 bytes after the footer",
    ),
    "no footer": (GOOD[:-4], "TruncatedError", "a", END - 4, "tensor \"a\""),
    "half a footer without tensors": (
        forge_json(data=b"")[:-2], "TruncatedError", None, 22, "the footer",
    ),
    # the wrappers; LZ4's own length stands at 9, what is wrapped at 9 or 13
    "wrapper cut off": (wrap(GOOD)[:9], "TruncatedError", None, 9, "the header"),
    "unknown compression": (
        b"APR2\3" + wrap(GOOD)[5:], "ChecksumError", None, 40, "header checksum",
    ),
    "wrapped above the limit": (
        wrap(GOOD, 2, size=(1 << 30) + 1), "FormatError", None, 5, "above the limit of 1 GiB",
    ),
    "plain length too small": (wrap(GOOD, 0, size=7), "FormatError", None, 9, "not the 7"),
    "LZ4 length too large": (wrap(GOOD, 1, size=1 << 29), "FormatError", None, 13, "cannot hold"),
    "LZ4 length one too large": (
        wrap(GOOD, 1, size=len(GOOD) + 1), "FormatError", None, 13, "LZ4 data at byte 13",
    ),
    "LZ4 length too small": (wrap(GOOD, 1, size=len(GOOD) - 1), "FormatError", None, 13, "LZ4 data"),
    "LZ4 lengths differ": (
        wrap(GOOD, 1, packed=u32(5) + b"x" * 80), "ChecksumError", None, 40, "header checksum",
    ),
    "LZ4 damaged": (wrap(GOOD, 1)[:60] + b"\xff" * 60, "FormatError", None, 13, "LZ4 data"),
    "zstd length too large": (wrap(GOOD, 2, size=1 << 29), "FormatError", None, 9, "the frame holds"),
    "zstd length too small": (wrap(GOOD, 2, size=1), "FormatError", None, 9, "the frame holds"),
    "zstd frame lies": (
        wrap(GOOD, 2, size=1 << 29, packed=zstd(GOOD, 1 << 29)), "FormatError", None, 9, "zstd data",
    ),
    "zstd frame cut off": (wrap(GOOD)[:-1], "FormatError", None, 9, "zstd data at byte 9"),
    "a second zstd frame": (
        wrap(GOOD * 2, 2, packed=zstd(GOOD) + zstd(GOOD)), "FormatError", None, 9, "the frame holds",
    ),
    "bytes after the zstd frame": (wrap(GOOD) + b"x", "FormatError", None, 9, "1 bytes follow the frame"),
    "no APR1 in the wrapper": (wrap(b"x" * 40), "FormatError", None, 0, "no APR1 file is in the wrapper"),
    "nothing in the wrapper": (wrap(b"" * 40), "TruncatedError", None, 0, "the header"),
    "what is wrapped lies": (wrap(forge_json(entry(size=12))), "FormatError", "a", 19, "unpacked contents"),
    "what is wrapped is cut off": (wrap(GOOD[:-2]), "TruncatedError", "a", END - 2, "unpacked contents"),
    "wrapped twice": (wrap(wrap(GOOD)), "FormatError", None, 0, "no APR1 file is in the wrapper"),
    # v2 under other magics
    "APR2 header checksum": (
        b"APR2" + forge(Entry())[4:], "ChecksumError", None, 40, "header checksum",
    ),
    "APRN 2.0 header checksum": (
        b"APRN" + forge(Entry())[4:], "ChecksumError", None, 40, "header checksum",
    ),
    "APRN 2.0 cut off": (forge(Entry(), magic=b"APRN")[:40], "TruncatedError", None, 40, "the header"),
    "zstd body": (
        forge(flags=2, metadata=b"\x28\xb5\x2f\xfd"), "UnsupportedError", None, 6, "ZSTD_COMPRESSED",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loading_raises_a_typed_error_that_names_tensor_and_byte(case, tmp_path):
    content, kind, tensor, offset, says = CASES[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    with pytest.raises(apr.AprError) as caught:
        apr.load(path)
    error = caught.value
    assert type(error).__name__ == kind
    assert (error.path, error.tensor, error.offset) == (str(path), tensor, offset)
    assert says in str(error)
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_commands_say_it_in_one_line_and_exit_4(command, case, tmp_path, capsys):
    path = tmp_path / "bad.apr"
    path.write_bytes(CASES[case][0])
    assert main([command, str(path)]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert CASES[case][-1] in line
    report = apr.verify(path)
    assert (report.ok, report.opened) == (False, False)
    assert [check.passed for check in report.checks] == [True] * (len(report.checks) - 1) + [False]


@pytest.mark.parametrize("content", [GOOD, wrap(GOOD, 0), wrap(GOOD, 1), wrap(GOOD, 2)])
def test_forged_files_are_otherwise_good(content, tmp_path):
    """The base of every case above opens: each is refused for the one field that lies."""
    path = tmp_path / "good.apr"
    path.write_bytes(content)
    assert apr.verify(path).ok


@pytest.mark.parametrize("content", [GOOD, wrap(GOOD, 0), wrap(GOOD, 1), wrap(GOOD, 2)])
def test_a_file_cut_off_anywhere_does_not_open(content, tmp_path):
    path = tmp_path / "cut.apr"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(apr.AprError) as caught:
            apr.load(path)
        if content is GOOD:
            assert isinstance(caught.value, apr.TruncatedError)
            assert caught.value.offset == size


def test_a_wrong_checksum_opens_and_is_found(tmp_path):
    path = tmp_path / "flipped.apr"
    flipped = GOOD[:DATA] + b"\1" + GOOD[DATA + 1 :]
    for content in (flipped, wrap(flipped, 0), wrap(flipped, 1), wrap(flipped, 2)):
        path.write_bytes(content)
        assert list(apr.load(path)) == ["a"]
        report = apr.verify(path)
        assert (report.ok, report.opened, report.checks[-1].passed) == (False, True, False)
        with pytest.raises(apr.ChecksumError) as caught:
            apr.load(path, verify="full")
        assert caught.value.offset == END - 4


def contents(path):
    with apr.load(path) as file:
        return dict(file.metadata), [(name, file[name].shape, bytes(file.raw(name))) for name in file]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(name, tmp_path):
    """Or changes nothing: a few bits of a compressed stream mean the same to every decoder."""
    path = tmp_path / "flipped.apr"
    good = bytearray((OLD / name).read_bytes())
    honest = contents(OLD / name)
    silent = []
    for at in range(len(good)):
        for bit in range(8):
            flipped = bytes(good[:at]) + bytes([good[at] ^ 1 << bit]) + bytes(good[at + 1 :])
            path.write_bytes(flipped)
            if apr.verify(path).ok:
                silent.append((at, bit))
                assert contents(path) == honest
    assert len(silent) <= (12 if name in WRAPPED else 0), silent


# memory

MEASURE = """
import resource, sys, apr
apr.load({good!r}).close()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    apr.load({path!r})
except apr.AprError as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("case", ["LZ4 length too large", "zstd length too large", "zstd frame lies"])
def test_a_length_that_lies_takes_no_memory(case, tmp_path):
    """Half a gigabyte is declared; a hundred bytes are there."""
    good, path = tmp_path / "good.apr", tmp_path / "bad.apr"
    good.write_bytes(wrap(GOOD))
    path.write_bytes(CASES[case][0])
    script = MEASURE.format(good=str(good), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kind, kilobytes = done.stdout.split()
    assert kind == "FormatError"
    assert int(kilobytes) < 4096


LONG = "x" * (1 << 20)
QUOTED = json.dumps(LONG).encode()


@pytest.mark.parametrize(
    "content",
    [
        forge_json(entry(LONG)),
        forge_json(entry(dtype=LONG)),
        forge_json(entry(size=LONG)),
        forge_json(entry() | {"shape": LONG}),
        forge_json(LONG),
        forge_json(index=QUOTED, count=1),
        forge_v1(b'{"tensor_shapes":%s}' % QUOTED),
        forge_v1(b'{"tensor_shapes":{"a":%s}}' % QUOTED),
        forge_v1(b'{"tensor_shapes":{"a":[%s]}}' % QUOTED),
        forge_v1(b'{"tensor_shapes":{%s:[1]}}' % QUOTED),
    ],
)
def test_what_a_file_holds_makes_no_long_line(content, tmp_path):
    path = tmp_path / "long.apr"
    path.write_bytes(content)
    assert max(len(check.detail) for check in apr.verify(path).checks) < 1000
    if not content.startswith(b"APRN"):
        with pytest.raises(apr.FormatError) as caught:
            apr.load(path)
        assert len(str(caught.value)) < 1000


# any bytes

MAGICS = [b"APR1\2\0\0\0{}", b"APR1", b"APR2\0", b"APR2\1", b"APR2\2", b"APR\0\1", b"APR\0\2", b"APRN\2\0"]


@given(st.sampled_from(MAGICS), st.binary(max_size=200))
def test_any_bytes_after_a_magic_open_or_raise(tmp_path, magic, rest):
    path = tmp_path / "any.apr"
    for content in (magic + rest, wrap(magic + rest, 1), wrap(magic + rest, 2)):
        path.write_bytes(content)
        report = apr.verify(path)
        try:
            contents(path)
        except apr.AprError:
            assert not report.ok


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 65) | st.text(max_size=4) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["name", "dtype", "shape", "offset", "size", "more"])


@given(st.lists(st.dictionaries(FIELDS, JSON, max_size=3), max_size=3), st.integers(0, 2), st.data())
def test_an_index_of_any_json_opens_or_raises(tmp_path, changes, how, data):
    path = tmp_path / "any.apr"
    entries = [entry(chr(97 + i), offset=16 * i) | change for i, change in enumerate(changes)]
    count = data.draw(st.sampled_from([None, None, 0, 1, 1 << 31]))
    content = forge_json(*entries, count=count, data=bytes(16 * len(entries)))
    path.write_bytes(wrap(content, how) if data.draw(st.booleans()) else content)
    report = apr.verify(path)
    try:
        contents(path)
    except apr.AprError:
        assert not report.opened
    else:
        assert report.ok
