"""The JSON container, its compressed wrappers, and version 2 under older magics.

Files of other programs are read bit for bit; a damaged file is one line with the byte at fault.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import LONG as EVERY_BIT
from tests.container.forged import Entry, forge
from tests.container.legacy.forged_legacy import entry, forge_json, forge_v1, u32, wrap, zstd

import apr

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


# files that other programs wrote


@pytest.mark.parametrize("expected", EXPECTED, ids=FILES)
def test_files_of_older_releases_are_read_bit_for_bit(expected):
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
def test_commands_describe_older_forms(name, run):
    path = OLD / name
    code, out, _ = run("inspect", "--json", path)
    assert code == 0
    facts = json.loads(out)
    assert (facts["format"], facts["valid"], facts["checksum_valid"]) == (FORMS[name][0], True, True)
    assert (facts["header_checksum"] is None) == name.startswith("json")
    assert facts["tensor_count"] == 2
    code, out, _ = run("inspect", path)
    assert code == 0
    assert FORMS[name][0] in out
    code, out, _ = run("tensors", "--json", "--stats", path)
    assert (code, len(json.loads(out)["tensors"])) == (0, 2)
    code, out, _ = run("verify", path)
    assert code == 0
    assert "footer" in out


@pytest.mark.parametrize("name", FILES)
def test_saving_the_tensors_of_an_older_form_gives_a_current_file(name, tmp_path):
    with apr.load(OLD / name) as old:
        apr.save(dict(old), tmp_path / "new.apr", dict(old.metadata))
        with apr.load(tmp_path / "new.apr", verify="full") as new:
            assert new.form == "APR v2"
            assert new.metadata == old.metadata
            assert all(new[tensor].equal(old[tensor]) for tensor in old)


@pytest.mark.parametrize("how", [0, 1, 2])
@pytest.mark.parametrize("magic", [b"APR2", b"APR\0"])
def test_wrappers_of_both_magics_are_read(how, magic, tmp_path):
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
def test_unaligned_tensors_are_copied_to_aligned_memory(padding, tmp_path):
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


def test_tensors_of_a_decompressed_file_stay_valid_after_close():
    file = apr.load(OLD / WRAPPED[0])
    tensor, values = file["layer.bias"], file["layer.bias"].tolist()
    file.close()
    del file
    assert tensor.tolist() == values


def test_writing_to_a_tensor_of_a_decompressed_file_changes_no_other_opened_copy():
    with apr.load(OLD / WRAPPED[0]) as file, apr.load(OLD / WRAPPED[0]) as other:
        before = other["layer.bias"].clone()
        file["layer.bias"][:] = 0
        assert other["layer.bias"].equal(before)
        assert file.verify().ok


def test_stamping_an_older_form_is_refused_with_the_way_to_convert_it(tmp_path):
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


# damaged files

HUGE = 1 << 40
# How a file of whisper.apr starts: version 1, then a header of binary numbers.
WHISPER = b"APR1\1\0" + bytes([2, 1, 0, 5, 0, 3]) + u32(*range(1, 11)) + bytes(500)
GOOD = forge_json(entry())
# Offsets in GOOD, whose metadata take two bytes: metadata length 4, metadata 8, number of tensors 10, index
# length 14, index 18, first entry of the index 19.
INDEX = json.dumps([entry()]).encode()
DATA = 18 + len(INDEX)
END = DATA + 16 + 4

# id: (bytes, error, tensor, byte, a key word of the message)
CASES = {
    "magic alone": (b"APR1", "TruncatedError", None, 4, "header"),
    "half a length": (b"APR1\2\0", "TruncatedError", None, 6, "header"),
    "neither JSON nor whisper": (b"APR1" + bytes(40), "UnsupportedError", None, 0, "APR1"),
    "bundle": (b"APBUNDLE" + bytes(60), "UnsupportedError", None, 0, "bundle"),
    "whisper": (WHISPER, "UnsupportedError", None, 0, "whisper"),
    "metadata beyond the file": (
        forge_json(entry(), metadata_size=1 << 20), "TruncatedError", None, END, "metadata",
    ),
    "metadata above the limit": (
        forge_json(entry(), metadata_size=(64 << 20) + 1), "FormatError", None, 4, "64 MiB",
    ),
    "metadata cut short": (forge_json(entry(), metadata_size=1), "FormatError", None, 8, "EOF"),
    "metadata nested too deep": (
        forge_json(entry(), metadata=b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"),
        "FormatError", None, 77, "deeper",
    ),
    "metadata not UTF-8": (forge_json(metadata=b'{"\xff":1}'), "FormatError", None, 10, "UTF-8"),
    "number of tensors cut off": (GOOD[:12], "TruncatedError", None, 12, "index"),
    "more tensors than entries": (forge_json(entry(), count=2), "FormatError", None, 10, "number"),
    "fewer tensors than entries": (forge_json(entry(), count=0), "FormatError", None, 10, "number"),
    "index beyond the file": (
        forge_json(entry(), index_size=1 << 20), "TruncatedError", None, END, "index",
    ),
    "index above the limit": (
        forge_json(entry(), index_size=(64 << 20) + 1), "FormatError", None, 14, "64 MiB",
    ),
    "index cut short": (
        forge_json(entry(), index_size=len(INDEX) - 1), "FormatError", None, DATA - 2, "EOF",
    ),
    "index an object": (forge_json(index=b"{}", count=0), "FormatError", None, 18, "list"),
    "index a string": (forge_json(index=b'"a"', count=0), "FormatError", None, 18, "list"),
    "index not UTF-8": (forge_json(index=b'["\xff"]', count=1), "FormatError", None, 20, "UTF-8"),
    "index nested too deep": (
        forge_json(index=b"[" * 65 + b"]" * 65, count=1), "FormatError", None, 83, "deeper",
    ),
    "entry a number": (forge_json(7), "FormatError", None, 19, "expected"),
    "entry without a name": (forge_json({"dtype": "F32"}), "FormatError", None, 34, "missing"),
    "entry too long": (
        forge_json(entry(dtype="F" * 5000)), "FormatError", None, 19, "4096",
    ),
    "size a string": (forge_json(entry(size="16")), "FormatError", None, 87, "number"),
    "shape a string": (forge_json(entry() | {"shape": "4"}), "FormatError", None, 60, "list"),
    "dim a string": (forge_json(entry() | {"shape": ["4"]}), "FormatError", None, 61, "number"),
    "empty name": (forge_json(entry("")), "FormatError", None, 19, "empty"),
    "name with a NUL": (forge_json(entry("a\0b")), "FormatError", None, 19, "NUL"),
    "duplicate name": (
        forge_json(entry(shape=(2,)), entry(shape=(2,), offset=8)), "FormatError", "a", 88, "twice",
    ),
    "unknown dtype": (forge_json(entry(dtype="F16")), "FormatError", "a", 19, "F16"),
    "nine dims": (forge_json(entry(shape=(1,) * 9, size=4)), "FormatError", None, 84, "8 dim"),
    "negative dim": (forge_json(entry(shape=(-4,), size=16)), "FormatError", None, 60, "invalid"),
    "dims overflow": (
        forge_json(entry(shape=(HUGE, HUGE), size=16)), "FormatError", "a", 19, "range",
    ),
    "size does not match dims": (forge_json(entry(size=12)), "FormatError", "a", 19, "16 bytes"),
    "empty head": (
        forge_json(entry("lm_head.weight", size=0)), "FormatError", "lm_head.weight", 19, "bytes",
    ),
    "offset overflow": (
        forge_json(entry(offset=(1 << 64) - 1)), "FormatError", "a", 19, "range",
    ),
    "past the end": (forge_json(entry(offset=8)), "TruncatedError", "a", END, "tensor"),
    "overlap": (
        forge_json(entry("a"), entry("b", offset=8), data=bytes(24)), "FormatError", "b", 166, "overlap",
    ),
    "bytes after the footer": (
        forge_json(entry(), tail=b"xy"), "FormatError", None, END, "footer",
    ),
    "no footer": (GOOD[:-4], "TruncatedError", "a", END - 4, "tensor"),
    "half a footer without tensors": (
        forge_json(data=b"")[:-2], "TruncatedError", None, 22, "footer",
    ),
    # Wrappers: the compressed file starts at byte 9, with LZ4 at 13, after a second length.
    "wrapper cut off": (wrap(GOOD)[:9], "TruncatedError", None, 9, "header"),
    "unknown compression": (
        b"APR2\3" + wrap(GOOD)[5:], "ChecksumError", None, 40, "checksum",
    ),
    "wrapped above the limit": (
        wrap(GOOD, 2, size=(1 << 30) + 1), "FormatError", None, 5, "1 GiB",
    ),
    "plain length too small": (wrap(GOOD, 0, size=7), "FormatError", None, 9, "plain"),
    "LZ4 length too large": (wrap(GOOD, 1, size=1 << 29), "FormatError", None, 13, "LZ4"),
    "LZ4 length one too large": (
        wrap(GOOD, 1, size=len(GOOD) + 1), "FormatError", None, 13, "LZ4",
    ),
    "LZ4 length too small": (wrap(GOOD, 1, size=len(GOOD) - 1), "FormatError", None, 13, "LZ4"),
    "LZ4 lengths differ": (
        wrap(GOOD, 1, packed=u32(5) + b"x" * 80), "ChecksumError", None, 40, "checksum",
    ),
    "LZ4 damaged": (wrap(GOOD, 1)[:60] + b"\xff" * 60, "FormatError", None, 13, "LZ4"),
    "zstd length too large": (wrap(GOOD, 2, size=1 << 29), "FormatError", None, 9, "zstd"),
    "zstd length too small": (wrap(GOOD, 2, size=1), "FormatError", None, 9, "zstd"),
    "zstd frame declares too much": (
        wrap(GOOD, 2, size=1 << 29, packed=zstd(GOOD, 1 << 29)), "FormatError", None, 9, "zstd",
    ),
    "zstd frame cut off": (wrap(GOOD)[:-1], "FormatError", None, 9, "zstd"),
    "a second zstd frame": (
        wrap(GOOD * 2, 2, packed=zstd(GOOD) + zstd(GOOD)), "FormatError", None, 9, "zstd",
    ),
    "bytes after the zstd frame": (wrap(GOOD) + b"x", "FormatError", None, 9, "zstd"),
    "no APR1 in the wrapper": (wrap(b"x" * 40), "FormatError", None, 0, "wrapper"),
    "nothing in the wrapper": (wrap(b""), "TruncatedError", None, 0, "header"),
    "wrong size in the wrapped file": (wrap(forge_json(entry(size=12))), "FormatError", "a", 19, "unpacked"),
    "wrapped file cut off": (wrap(GOOD[:-2]), "TruncatedError", "a", END - 2, "unpacked"),
    "wrapped twice": (wrap(wrap(GOOD)), "FormatError", None, 0, "wrapper"),
    # Version 2 under its older magics.
    "APR2 header checksum": (
        b"APR2" + forge(Entry())[4:], "ChecksumError", None, 40, "checksum",
    ),
    "APRN 2.0 header checksum": (
        b"APRN" + forge(Entry())[4:], "ChecksumError", None, 40, "checksum",
    ),
    "APRN 2.0 cut off": (forge(Entry(), magic=b"APRN")[:40], "TruncatedError", None, 40, "header"),
    "zstd body": (
        forge(flags=2, metadata=b"\x28\xb5\x2f\xfd"), "UnsupportedError", None, 6, "ZSTD_COMPRESSED",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loading_raises_a_typed_error_with_tensor_and_byte(case, tmp_path):
    content, kind, tensor, offset, key_word = CASES[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    with pytest.raises(apr.AprError) as caught:
        apr.load(path)
    error = caught.value
    assert type(error).__name__ == kind
    assert (error.path, error.tensor, error.offset) == (str(path), tensor, offset)
    assert key_word in str(error)
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_commands_print_one_line_and_exit_4(command, case, tmp_path, run):
    path = tmp_path / "bad.apr"
    path.write_bytes(CASES[case][0])
    code, out, err = run(command, path)
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert CASES[case][-1] in line
    report = apr.verify(path)
    assert (report.ok, report.opened) == (False, False)
    assert [check.passed for check in report.checks] == [True] * (len(report.checks) - 1) + [False]


@pytest.mark.parametrize("content", [GOOD, wrap(GOOD, 0), wrap(GOOD, 1), wrap(GOOD, 2)])
def test_the_base_of_all_damaged_cases_is_a_good_file(content, tmp_path):
    """So each case above is refused for the one field that it changes."""
    path = tmp_path / "good.apr"
    path.write_bytes(content)
    assert apr.verify(path).ok


@pytest.mark.parametrize("content", [GOOD, wrap(GOOD, 0), wrap(GOOD, 1), wrap(GOOD, 2)])
def test_a_file_cut_off_at_any_byte_does_not_open(content, tmp_path):
    path = tmp_path / "cut.apr"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(apr.AprError) as caught:
            apr.load(path)
        if content is GOOD:
            assert isinstance(caught.value, apr.TruncatedError)
            assert caught.value.offset == size


def test_a_wrong_footer_checksum_is_found_by_verification_only(tmp_path):
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
    """Except bits that change nothing: a compressed stream has a few that every decoder ignores.

    One bit of every byte; with the long budget, every bit.
    """
    path = tmp_path / "flipped.apr"
    good = bytearray((OLD / name).read_bytes())
    original = contents(OLD / name)
    ignored = []
    for at in range(len(good)):
        for bit in range(8) if EVERY_BIT else [at % 8]:
            flipped = bytes(good[:at]) + bytes([good[at] ^ 1 << bit]) + bytes(good[at + 1 :])
            path.write_bytes(flipped)
            if apr.verify(path).ok:
                ignored.append((at, bit))
                assert contents(path) == original
    # These files have at most twelve such bits.
    assert len(ignored) <= (12 if name in WRAPPED else 0), ignored


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


@pytest.mark.parametrize(
    "case", ["LZ4 length too large", "zstd length too large", "zstd frame declares too much"]
)
def test_a_declared_length_takes_no_memory(case, tmp_path):
    """The file declares half a gigabyte and has about a hundred bytes."""
    good, path = tmp_path / "good.apr", tmp_path / "bad.apr"
    good.write_bytes(wrap(GOOD))
    path.write_bytes(CASES[case][0])
    script = MEASURE.format(good=str(good), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kind, kilobytes = done.stdout.split()
    assert kind == "FormatError"
    assert int(kilobytes) < 4096


LONG = "x" * (1 << 20)
LONG_JSON = json.dumps(LONG).encode()


@pytest.mark.parametrize(
    "content",
    [
        forge_json(entry(LONG)),
        forge_json(entry(dtype=LONG)),
        forge_json(entry(size=LONG)),
        forge_json(entry() | {"shape": LONG}),
        forge_json(LONG),
        forge_json(index=LONG_JSON, count=1),
        forge_v1(b'{"tensor_shapes":%s}' % LONG_JSON),
        forge_v1(b'{"tensor_shapes":{"a":%s}}' % LONG_JSON),
        forge_v1(b'{"tensor_shapes":{"a":[%s]}}' % LONG_JSON),
        forge_v1(b'{"tensor_shapes":{%s:[1]}}' % LONG_JSON),
    ],
)
def test_long_strings_in_a_file_make_no_long_line(content, tmp_path):
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
