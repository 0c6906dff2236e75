"""Version 1 files: reading them bit for bit, and the error of each kind of damage."""

import copy
import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.container.legacy.forged_legacy import forge_v1, lz4, u32, zstd
from tests.container.legacy.v1_files import EXPECTED, KEYS, LINEAR, PASSWORD, change, load, path_of

import apr
import apr.numpy

# files that another program wrote


@pytest.mark.parametrize("name", EXPECTED)
def test_files_of_another_program_are_read_bit_for_bit(name):
    expected = EXPECTED[name]
    content = path_of(name).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (expected["sha256"], expected["size_bytes"])
    with load(name, **KEYS.get(name, {})) as file:
        assert type(file) is apr.V1File
        assert file.form == "APR v1"
        assert len(file.payload) == file.header.uncompressed_size
        assert file.payload is file.payload
        assert file.metadata["aprender_version"] == "0.72.3"
        if "coefficients" in expected:
            assert file.header.quality == expected["quality_score"]
            _, count, *values = struct.unpack_from("<BQ3f", file.payload)
            assert (count, values) == (2, [*expected["coefficients"], expected["intercept"]])
            assert {key: file.metadata[key] for key in expected["metadata_has"]} == expected["metadata_has"]
        if expected.get("plaintext_is_payload_of"):
            assert file.payload == LINEAR
        if "model_type" in expected:
            assert file.header.model_type_name == expected["model_type"]
        if "compression" in expected:
            assert file.header.compression == expected["compression"].replace("zstd_max", "zstd19")
        assert file.verify().ok


def test_described_tensors_are_read_like_other_tensors():
    values = np.array(EXPECTED["tensor_shapes"]["values"], np.float32)
    with load("tensor_shapes") as file:
        assert list(file) == ["layer.bias", "layer.weight"]
        assert len(file) == len(file.keys()) == 2
        assert "layer.bias" in file
        assert file["layer.bias"].tolist() == values[:4].tolist()
        assert file["layer.weight"].tolist() == values[4:].reshape(4, 3).tolist()
        assert file.numpy("layer.weight").tobytes() == values[4:].tobytes()
        assert bytes(file.raw("layer.weight")) == values[4:].tobytes()
        assert file.slice("layer.weight")[1:3, :2].tolist() == values[4:].reshape(4, 3)[1:3, :2].tolist()
        assert file.to_torch()["layer.bias"].equal(file["layer.bias"])
        assert file.info("layer.weight") == apr.TensorInfo("layer.weight", "f32", (4, 3), 48, 24)
        with pytest.raises(KeyError, match=r"layer\.bias"):
            file["layer.bia"]
        tensor = file["layer.bias"]
        tensor[:] = 0
        assert file.payload[8:24] == values[:4].tobytes()
    assert tensor.tolist() == [0, 0, 0, 0]  # it stays valid after the file is closed


VALUES = np.arange(7, dtype="<f4")
SHAPES = b'{"tensor_shapes":{"b":[2,2],"a":[3],"none":[0,9]}}'
DESCRIBED = u32(7, 0) + VALUES.tobytes()


@pytest.mark.parametrize(
    ("payload", "compression"),
    [(DESCRIBED, 0), (zstd(DESCRIBED), 1), (zstd(DESCRIBED), 2), (u32(36) + lz4(DESCRIBED), 3)],
)
@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize("under", [b"%s", b'{"custom":%s}'])
def test_tensors_are_stored_in_the_order_of_tensor_shapes(payload, compression, padding, under, tmp_path):
    path = tmp_path / "m.apr"
    metadata = under % SHAPES + b" " * padding
    path.write_bytes(forge_v1(metadata, payload, compression=compression, uncompressed_size=36))
    with apr.load(path) as file:
        assert list(file) == ["a", "b", "none"]
        assert file["b"].tolist() == [[0, 1], [2, 3]]
        assert file["a"].tolist() == file.numpy("a").tolist() == [4, 5, 6]
        assert file["a"].data_ptr() % 4 == 0
        assert file["none"].shape == (0, 9)
        assert file.payload == DESCRIBED
        assert file.verify().ok
        if compression == 0:
            offset = file.info("b").offset
            assert path.read_bytes()[offset : offset + 16] == VALUES[:4].tobytes()


def test_each_kind_of_msgpack_value_becomes_a_python_value(tmp_path):
    metadata = {
        b"\xc0": None, b"\xc2": False, b"\x07": 7, b"\xe0": -32, b"\xcf" + b"\xff" * 8: 2**64 - 1,
        b"\xd3\x80" + bytes(7): -(2**63), b"\xcb\x3f\xe8" + bytes(6): 0.75, b"\xca\x7f\xc0\0\0": None,
        b"\xa3\xe2\x82\xac": "€", b"\xc4\2\0\xff": [0, 255], b"\x92\xc3\x90": [True, []],
        b"\x81\xa1k\xd9\1v": {"k": "v"},
    }  # fmt: skip
    encoded = b"".join(b"\xa2" + b"%02d" % i + value for i, value in enumerate(metadata))
    path = tmp_path / "m.apr"
    path.write_bytes(forge_v1(b"\xde\0\x0c" + encoded))
    assert apr.load(path).metadata == {f"{i:02d}": value for i, value in enumerate(metadata.values())}


def test_metadata_are_read_only():
    file = load("linear_none")
    with pytest.raises(TypeError):
        file.metadata["a"] = 1
    assert copy.copy(file.metadata) == file.metadata


def test_unknown_flags_and_model_types_are_read_and_shown(tmp_path, run):
    path = tmp_path / "odd.apr"
    path.write_bytes(
        forge_v1(version=(1, 9), model_type=0x1234, flags=0b11111100, quality=200, reserved=b"\1")
    )
    with apr.load(path) as file:
        assert file.header.model_type_name == "0x1234"
        named = apr.V1Flags.STREAMING | apr.V1Flags.LICENSED | apr.V1Flags.TRUENO_NATIVE
        assert file.header.flags == named | apr.V1Flags.QUANTIZED | apr.V1Flags.HAS_MODEL_CARD | 1 << 7
        assert file.payload == b"payload"
    facts = apr.inspect(path)
    assert (facts["version"], facts["unknown_flags"], facts["v1"]["quality"]) == ("1.9", [7], 200)
    assert facts["flags"]["streaming"] is True
    assert str(facts["reserved"]).startswith("01")
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "bit 7" in out


@pytest.mark.parametrize(
    ("shapes", "key_word"),
    [
        (b'{"a":[8]}', "40 bytes"),
        (b'{"a":[7],"a":[7]}', "64 bytes"),
        (b'{"a":[2,-1]}', "invalid"),
        (b"[7]", "tensor_shapes"),
        (b'{"a":"7"}', "list"),
        (b'{"a":[4294967296,4294967296]}', "range"),
        (b'{"":[7]}', "empty"),
    ],
)
def test_shapes_that_do_not_fit_the_payload_give_no_tensors_and_a_reason(shapes, key_word, tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(forge_v1(b'{"tensor_shapes":%s}' % shapes, DESCRIBED))
    with apr.load(path) as file:
        assert (list(file), file.payload) == ([], DESCRIBED)
        (index,) = [check for check in file.verify().checks if check.name == "tensor index"]
    assert index.passed is None
    assert key_word in index.detail


def test_open_v1_refuses_other_versions(tmp_path):
    assert apr.open_v1(path_of("linear_lz4")).payload == LINEAR
    assert apr.open_v1(path_of("encrypted_password"), password=PASSWORD).payload == LINEAR
    apr.save({}, tmp_path / "v2.apr")
    with pytest.raises(apr.UnsupportedError, match=r"apr\.load"):
        apr.open_v1(tmp_path / "v2.apr")


def test_a_payload_without_tensors_is_refused_where_tensors_are_needed(tmp_path, run):
    path = path_of("linear_none")
    with pytest.raises(apr.UnsupportedError):
        apr.stamp(path, {"a": 1}, tmp_path / "out.apr")
    actions = [
        lambda: apr.diff(path, path),
        lambda: apr.safe_open(path, framework="np"),
        lambda: apr.numpy.load_file(path),
    ]
    for action in actions:
        with pytest.raises(apr.UnsupportedError, match="payload"):
            action()
    assert run("convert", path, tmp_path / "out.safetensors")[0] == 4
    assert list(tmp_path.iterdir()) == []
    assert apr.diff(path_of("tensor_shapes"), path_of("tensor_shapes")).same


@pytest.mark.parametrize("name", EXPECTED)
def test_commands_describe_each_file_with_and_without_its_key(name, run, key_files):
    path, keys = path_of(name), key_files.get(name, ())
    for flags in ((), keys):
        code, out, err = run("inspect", "--json", path, *flags)
        facts = json.loads(out)
        assert (code, err, facts["format"], facts["valid"]) == (0, "", "APR v1", True)
        assert facts["checksum_valid"] is True
        assert facts["v1"]["locked"] == (name.startswith("encrypted") and not flags)
        assert facts["tensor_count"] == (2 if name == "tensor_shapes" else 0)
        code, out, err = run("inspect", path, *flags)
        assert (code, err) == (0, "")
        assert "APR v1 (version 1.0)" in out
        code, out, err = run("tensors", "--json", path, *flags)
        assert (code, len(json.loads(out)["tensors"])) == (0, facts["tensor_count"])
        code, out, err = run("verify", path, *flags)
        assert (code, err) == (0, "")
    if name == "signed":
        assert "trusted" in out
        assert facts["v1"]["signature"] == "trusted"
        assert "integrity" in run("verify", path)[1]
    if name.startswith("encrypted"):
        assert "ok  encryption" in out


# damaged files

# Offsets: metadata 32, payload 34, footer 41.
GOOD = forge_v1()
ENCRYPTED = path_of("encrypted_password").read_bytes()
# Offsets: metadata 32, payload 79, signature 110, public key 174, footer 206.
SIGNED = path_of("signed").read_bytes()
# The neutral element of the curve. With it as public key, one signature would fit every message.
SMALL_ORDER = bytes([1]) + bytes(31)
# MessagePack: a map of one key to 64 nested arrays.
DEEP = b"\x81\xa1a" + b"\x91" * 64 + b"\1"


# id: (bytes, error, byte, a key word of the message)
DAMAGED = {
    "header cut off": (GOOD[:31], "TruncatedError", 31, "header"),
    "magic alone": (b"APRN", "TruncatedError", 4, "header"),
    "version 0": (forge_v1(version=(0, 9)), "UnsupportedError", 4, "0.9"),
    "version 3": (forge_v1(version=(3, 0)), "UnsupportedError", 4, "3.0"),
    "version 2 without its header": (
        forge_v1(payload=bytes(64), version=(2, 0)), "ChecksumError", 40, "checksum",
    ),
    "no metadata": (forge_v1(b""), "FormatError", 8, "metadata_size"),
    "metadata above the limit": (forge_v1(metadata_size=(64 << 20) + 1), "FormatError", 8, "64 MiB"),
    "metadata beyond the file": (forge_v1(metadata_size=100), "TruncatedError", 45, "metadata"),
    "payload beyond the file": (
        forge_v1(payload_size=100, compression=1), "TruncatedError", 45, "payload",
    ),
    "payload size overflows": (
        forge_v1(payload_size=2**32 - 1, compression=1), "TruncatedError", 45, "payload",
    ),
    "payload too small": (
        forge_v1(payload_size=6, uncompressed_size=6), "FormatError", 44, "footer",
    ),
    "uncompressed above the limit": (
        forge_v1(uncompressed_size=(1 << 30) + 1, compression=1), "FormatError", 16, "1 GiB",
    ),
    "two sizes of an uncompressed payload": (
        forge_v1(uncompressed_size=8), "FormatError", 16, "uncompressed_size",
    ),
    "unknown compression": (forge_v1(compression=4), "FormatError", 20, "compression"),
    "encrypted too small": (forge_v1(flags=1), "FormatError", 12, "encrypted"),
    "signed without a signature": (forge_v1(flags=2), "TruncatedError", 45, "signature"),
    "bytes after the footer": (forge_v1(tail=b"xy"), "FormatError", 45, "footer"),
    "no footer": (GOOD[:-4], "TruncatedError", 41, "footer"),
    "footer": (GOOD[:-4] + u32(7), "ChecksumError", 41, "checksum"),
    "payload flipped": (GOOD[:35] + b"?" + GOOD[36:], "ChecksumError", 41, "checksum"),
    "metadata an array": (forge_v1(b"\x90"), "FormatError", 32, "map"),
    "metadata a JSON array": (forge_v1(b"[1]"), "FormatError", 32, "map"),
    "metadata cut short": (forge_v1(b"\x82\xa1a\1"), "FormatError", 36, "value"),
    "metadata followed by bytes": (forge_v1(b"\x80\x80"), "FormatError", 33, "after"),
    "metadata not UTF-8": (forge_v1(b"\x81\xa1\xff\1"), "FormatError", 33, "UTF-8"),
    "metadata with a number as key": (forge_v1(b"\x81\1\1"), "FormatError", 33, "key"),
    "metadata with an extension": (forge_v1(b"\x81\xa1a\xd4\1\1"), "FormatError", 35, "extension"),
    "metadata with the reserved marker": (forge_v1(b"\x81\xa1a\xc1"), "FormatError", 35, "extension"),
    "metadata array longer than the file": (
        forge_v1(b"\x81\xa1a\xdd\xff\xff\xff\xff"), "FormatError", 40, "value",
    ),
    "metadata map longer than the file": (
        forge_v1(b"\xdf\xff\xff\xff\xff"), "FormatError", 37, "value",
    ),
    "metadata bytes longer than the file": (
        forge_v1(b"\x81\xa1a\xc6\xff\xff\xff\xff"), "FormatError", 40, "values",
    ),
    "metadata string longer than the file": (
        forge_v1(b"\x81\xa1a\xdb\xff\xff\xff\xff"), "FormatError", 40, "value",
    ),
    "metadata nested too deep": (forge_v1(DEEP), "FormatError", 98, "deeper"),
    "JSON metadata cut short": (forge_v1(b'{"a":'), "FormatError", 36, "EOF"),
    "JSON metadata nested too deep": (
        forge_v1(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"), "FormatError", 101, "deeper",
    ),
    "JSON metadata NaN": (forge_v1(b'{"a":NaN}'), "FormatError", 37, "value"),
    "signature, first half": (change(SIGNED, 110, b"\0"), "SignatureError", 110, "signature"),
    "signature, second half": (change(SIGNED, 173, b"\xff"), "SignatureError", 110, "signature"),
    "public key": (change(SIGNED, 174, bytes(32)), "SignatureError", 110, "signature"),
    "public key not a point": (change(SIGNED, 174, b"\2" + bytes(31)), "SignatureError", 174, "key"),
    "public key of small order": (
        change(SIGNED, 110, SMALL_ORDER + bytes(32) + SMALL_ORDER), "SignatureError", 110, "signature",
    ),
    "signed header": (change(SIGNED, 22, b"\x63"), "SignatureError", 110, "signature"),
    "signed metadata": (change(SIGNED, 60, b"9"), "SignatureError", 110, "signature"),
    "signed payload": (change(SIGNED, 100, b"9"), "SignatureError", 110, "signature"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_loading_raises_a_typed_error_with_the_byte(case, tmp_path):
    content, kind, offset, key_word = DAMAGED[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    for open_file in (apr.load, apr.open_v1):
        with pytest.raises(apr.AprError) as caught:
            open_file(path)
        error = caught.value
        assert type(error).__name__ == kind
        assert (error.path, error.tensor, error.offset) == (str(path), None, offset)
        assert key_word in str(error)
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_commands_print_one_line_and_exit_4(command, case, tmp_path, run):
    path = tmp_path / "bad.apr"
    path.write_bytes(DAMAGED[case][0])
    code, out, err = run(command, path)
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert DAMAGED[case][-1] in line
    report = apr.verify(path)
    assert (report.ok, report.opened) == (False, False)
    assert [check.passed for check in report.checks] == [True] * (len(report.checks) - 1) + [False]


PAYLOAD = b"payload" * 100
# id: (bytes, a key word of the message). The payload starts at byte 34.
COMPRESSED = {
    "zstd cut off": (forge_v1(payload=zstd(PAYLOAD)[:-1], compression=1, uncompressed_size=700), "zstd"),
    "not zstd": (forge_v1(payload=b"?" * 99, compression=2, uncompressed_size=700), "zstd"),
    "zstd frame of another size": (
        forge_v1(payload=zstd(PAYLOAD), compression=1, uncompressed_size=701), "700",
    ),
    "zstd frame declares too much": (
        forge_v1(payload=zstd(PAYLOAD, 1 << 29), compression=1, uncompressed_size=1 << 29), "zstd",
    ),
    "two zstd frames": (
        forge_v1(payload=zstd(b"a" * 9) * 2, compression=1, uncompressed_size=9), "frame",
    ),
    "empty zstd": (forge_v1(payload=b"", compression=1, uncompressed_size=700), "zstd"),
    "LZ4 without its size": (forge_v1(payload=b"abc", compression=3, uncompressed_size=700), "size"),
    "LZ4 of another size": (
        forge_v1(payload=u32(6) + lz4(PAYLOAD), compression=3, uncompressed_size=700), "size",
    ),
    "LZ4 that ends early": (
        forge_v1(payload=u32(701) + lz4(PAYLOAD), compression=3, uncompressed_size=701), "LZ4",
    ),
    "LZ4 that does not end": (
        forge_v1(payload=u32(699) + lz4(PAYLOAD), compression=3, uncompressed_size=699), "LZ4",
    ),
    "LZ4 declares too much": (
        forge_v1(payload=u32(1 << 29) + lz4(PAYLOAD), compression=3, uncompressed_size=1 << 29), "LZ4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPRESSED)
def test_a_payload_that_does_not_decompress_is_found_when_it_is_used(case, tmp_path, run):
    content, key_word = COMPRESSED[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    with apr.load(path) as file, pytest.raises(apr.FormatError, match=key_word) as caught:
        file.payload  # noqa: B018
    assert caught.value.offset == 34
    report = apr.verify(path)
    assert (report.ok, report.opened) == (False, True)
    (failed,) = [check for check in report.checks if check.passed is False]
    assert (failed.name, failed.offset) == ("payload", 34)
    assert run("verify", path)[0] == 5
    code, out, _ = run("inspect", "--json", path)
    assert (code, json.loads(out)["valid"]) == (0, False)


@pytest.mark.parametrize("compression", [0, 1])
def test_a_count_that_does_not_match_the_tensors_is_found_when_they_are_used(compression, tmp_path):
    path = tmp_path / "bad.apr"
    wrong_count = u32(8, 0) + VALUES.tobytes()
    stored = zstd(wrong_count) if compression else wrong_count
    path.write_bytes(forge_v1(SHAPES, stored, compression=compression, uncompressed_size=36))
    with apr.load(path) as file:
        assert file.payload == wrong_count
        for read in (file.__getitem__, file.numpy, file.raw, lambda name: file.slice(name)[:]):
            with pytest.raises(apr.FormatError, match="count"):
                read("a")
    report = apr.verify(path)
    assert [check.name for check in report.checks if check.passed is False] == ["payload"]


def test_a_file_cut_off_at_any_byte_is_truncated(tmp_path):
    path = tmp_path / "cut.apr"
    for content in (GOOD, SIGNED, ENCRYPTED):
        for size in range(4, len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(apr.TruncatedError) as caught:
                apr.load(path)
            assert caught.value.offset == size


@pytest.mark.parametrize("name", EXPECTED)
def test_every_flipped_bit_is_found(name, tmp_path):
    path = tmp_path / "flipped.apr"
    good = path_of(name).read_bytes()
    for at in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
            assert not apr.verify(path).ok, (at, bit)


def test_a_file_cut_short_after_it_was_opened_is_an_error(tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(path_of("linear_zstd").read_bytes())
    file = apr.load(path)
    with path.open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(apr.TruncatedError):
        file.payload  # noqa: B018


# memory

MEASURE = """
import resource, sys, apr
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
apr.load({good!r}).payload
before = peak()
try:
    apr.load({path!r}).payload
except apr.AprError as error:
    print(type(error).__name__, peak() - before)
"""


@pytest.mark.parametrize(
    "case", ["zstd frame declares too much", "LZ4 declares too much", "zstd frame of another size"]
)
def test_a_declared_size_takes_no_memory(case, tmp_path):
    """The file declares half a gigabyte and has a few hundred bytes."""
    path = tmp_path / "bad.apr"
    path.write_bytes(COMPRESSED[case][0])
    script = MEASURE.format(good=str(path_of("linear_zstd")), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kind, kilobytes = done.stdout.split()
    assert kind == "FormatError"
    assert int(kilobytes) < 4096


# any bytes


def open_and_read(path):
    """Check that everything a reader can ask for works or is an AprError."""
    report = apr.verify(path)
    try:
        with apr.load(path) as file:
            assert report.opened
            json.dumps(file.metadata)
            assert file.header.magic == b"APRN"
            if not report.ok:
                return
            names = [name for name in file if not file.locked]
            assert all(file[name].shape == file.info(name).shape for name in names)
            assert file.locked or len(file.payload) == file.header.uncompressed_size
    except apr.AprError:
        assert not report.opened


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_open_or_raise(tmp_path, rest):
    path = tmp_path / "any.apr"
    for content in (b"APRN" + rest, b"APRN\1\0" + rest, forge_v1(rest), forge_v1(b"\x81\xa1a" + rest)):
        path.write_bytes(content)
        if content[4:6] != b"\2\0":
            open_and_read(path)


SIZES = st.sampled_from([0, 1, 7, 36, 44, 68, 1 << 20, 1 << 30, (1 << 32) - 1])


@given(
    metadata=st.sampled_from([b"{}", b"\x80", SHAPES]) | st.binary(max_size=40),
    payload=st.sampled_from([DESCRIBED, zstd(DESCRIBED), u32(36) + lz4(DESCRIBED)]) | st.binary(max_size=120),
    signature=st.just(b"") | st.binary(min_size=96, max_size=96),
    compression=st.integers(0, 4),
    flags=st.integers(0, 255),
    sizes=st.dictionaries(st.sampled_from(["metadata_size", "payload_size", "uncompressed_size"]), SIZES),
)
def test_any_header_fields_with_a_correct_checksum_open_or_raise(
    tmp_path, metadata, payload, signature, compression, flags, sizes
):
    path = tmp_path / "any.apr"
    fields = {"compression": compression, "flags": flags} | sizes
    path.write_bytes(forge_v1(metadata, payload, signature, **fields))
    open_and_read(path)


@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_changed_files_with_a_correct_checksum_open_or_raise(tmp_path, name, data):
    path = tmp_path / "any.apr"
    content = path_of(name).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(6, len(content) - 5))
        content = change(content, at, data.draw(st.binary(min_size=1, max_size=1)))
    path.write_bytes(content)
    open_and_read(path)
