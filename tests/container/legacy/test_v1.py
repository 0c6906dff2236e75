"""APR v1: what others wrote is read bit for bit, keys open it, what lies is one line with its byte."""

import copy
import hashlib
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.container.legacy.forged_old import forge_json, forge_v1, lz4, u32, with_crc, zstd

import apr
import apr.numpy
from apr.cli import main

DATA = Path(__file__).parents[2] / "fixtures" / "aprender-0.72"
EXPECTED = {
    expected["file"].removeprefix("v1_").removesuffix(".apr"): expected
    for expected in json.loads((DATA / "v1.expected.json").read_text())
}
PASSWORD = EXPECTED["encrypted_password"]["password"]
RECIPIENT = bytes.fromhex(EXPECTED["encrypted_recipient"]["recipient_secret"])
TRUSTED = bytes.fromhex(EXPECTED["signed"]["public_key"])
KEYS = {
    "encrypted_password": {"password": PASSWORD},
    "encrypted_recipient": {"recipient_key": RECIPIENT},
    "signed": {"trusted_key": TRUSTED},
}


def path_of(name):
    return DATA / f"v1_{name}.apr"


def load(name, **keys):
    return apr.load(path_of(name), verify="full", **keys)


LINEAR = load("linear_none").payload


# honest files


@pytest.mark.parametrize("name", EXPECTED)
def test_what_its_writer_wrote_is_read_bit_for_bit(name):
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


def test_described_tensors_are_read_as_any_tensor():
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
        with pytest.raises(KeyError, match=r"close: layer\.bias"):
            file["layer.bia"]
        tensor = file["layer.bias"]
        tensor[:] = 0
        assert file.payload[8:24] == values[:4].tobytes()
    assert tensor.tolist() == [0, 0, 0, 0]  # outlives the file


VALUES = np.arange(7, dtype="<f4")
SHAPES = b'{"tensor_shapes":{"b":[2,2],"a":[3],"none":[0,9]}}'
DESCRIBED = u32(7, 0) + VALUES.tobytes()


@pytest.mark.parametrize(
    ("payload", "compression"),
    [(DESCRIBED, 0), (zstd(DESCRIBED), 1), (zstd(DESCRIBED), 2), (u32(36) + lz4(DESCRIBED), 3)],
)
@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize("under", [b"%s", b'{"custom":%s}'])
def test_values_lie_in_the_order_of_the_names_as_listed(payload, compression, padding, under, tmp_path):
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


def test_msgpack_metadata_of_every_kind_become_python_values(tmp_path):
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


def test_what_only_looks_odd_is_read_and_shown(tmp_path, capsys):
    path = tmp_path / "odd.apr"
    path.write_bytes(
        forge_v1(version=(1, 9), model_type=0x1234, flags=0b11111100, quality=200, reserved=b"\1")
    )
    with apr.load(path) as file:
        assert file.header.model_type_name == "0x1234"
        named = apr.V1Flags.STREAMING | apr.V1Flags.LICENSED | apr.V1Flags.TRUENO_NATIVE
        assert file.header.flags == named | apr.V1Flags.QUANTIZED | apr.V1Flags.HAS_MODEL_CARD | 1 << 7
        assert file.payload == b"payload"
    found = apr.inspect(path)
    assert (found["version"], found["unknown_flags"], found["v1"]["quality"]) == ("1.9", [7], 200)
    assert found["flags"]["streaming"] is True
    assert str(found["reserved"]).startswith("01")
    assert main(["inspect", str(path)]) == 0
    assert "bit 7 (unknown)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (b'{"a":[8]}', "40 bytes, but it has 36"),
        (b'{"a":[7],"a":[7]}', "64 bytes, but it has 36"),
        (b'{"a":[2,-1]}', "invalid value"),
        (b"[7]", "no map from names to dims"),
        (b'{"a":"7"}', "a text where a list of dims belongs"),
        (b'{"a":[4294967296,4294967296]}', "out of range"),
        (b'{"":[7]}', "is empty"),
    ],
)
def test_shapes_that_do_not_fit_the_payload_leave_bytes_alone_and_say_why(shapes, says, tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(forge_v1(b'{"tensor_shapes":%s}' % shapes, DESCRIBED))
    with apr.load(path) as file:
        assert (list(file), file.payload) == ([], DESCRIBED)
        (index,) = [check for check in file.verify().checks if check.name == "tensor index"]
    assert index.passed is None
    assert says in index.detail


# keys


def test_a_signature_is_trusted_only_by_a_trusted_key():
    with load("signed") as file:
        assert (file.signature.public_key, file.signature.trusted) == (TRUSTED, False)
        assert check_of(file, "signature").detail.startswith("integrity alone")
    with load("signed", trusted_key=TRUSTED) as file:
        assert file.signature.trusted
        assert check_of(file, "signature").detail == f"by the trusted key {TRUSTED.hex()}"
    with pytest.raises(apr.SignatureError, match=f"signed by {TRUSTED.hex()}, which is not the trusted key"):
        load("signed", trusted_key=bytes(32))
    with pytest.raises(apr.SignatureError, match="not signed"):
        load("linear_none", trusted_key=TRUSTED)
    assert load("linear_none").signature is None
    assert check_of(load("linear_none"), "signature").passed is None


def check_of(file, name):
    return next(check for check in file.verify().checks if check.name == name)


@pytest.mark.parametrize("name", ["encrypted_password", "encrypted_recipient"])
def test_an_encrypted_file_without_a_key_shows_header_and_metadata(name):
    with load(name) as file:
        assert file.locked
        assert apr.V1Flags.ENCRYPTED in file.header.flags
        assert file.metadata["aprender_version"] == "0.72.3"
        assert len(file) == 0
        with pytest.raises(apr.DecryptionError, match="password or the recipient's key") as caught:
            file.payload  # noqa: B018
        assert caught.value.offset == 32 + file.header.metadata_size
        report = file.verify()
        assert report.ok
        assert [c.passed for c in report.checks if c.name in {"encryption", "payload"}] == [None, None]
    assert not load(name, **KEYS[name]).locked


def test_described_tensors_of_a_locked_file_are_listed(tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(forge_v1(SHAPES, bytes(80), flags=1, uncompressed_size=36))
    with apr.load(path) as file:
        assert list(file) == ["a", "b", "none"]
        for act in (file.__getitem__, file.numpy, file.raw):
            with pytest.raises(apr.DecryptionError):
                act("a")


SECRET = "a secret that nobody may see"
WRONG = {
    "wrong password": ("encrypted_password", {"password": SECRET}, "the password is wrong"),
    "empty password": ("encrypted_password", {"password": ""}, "the password is wrong"),
    "password for a recipient's file": ("encrypted_recipient", {"password": SECRET}, "for a recipient's key"),
    "another's key": ("encrypted_recipient", {"recipient_key": SECRET.encode().ljust(32)}, "another's"),
    "key for a password's file": ("encrypted_password", {"recipient_key": RECIPIENT}, "needs a password"),
    "password for a plain file": ("linear_zstd", {"password": SECRET}, "open it without a password"),
    "key for a plain file": ("signed", {"recipient_key": RECIPIENT}, "open it without a recipient key"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_key_is_one_line_without_a_secret(case):
    name, keys, says = WRONG[case]
    with pytest.raises(apr.DecryptionError, match=says) as caught:
        load(name, **keys)
    report = apr.verify(path_of(name), **keys)
    assert (report.ok, report.opened, report.checks[-1].name) == (False, False, "encryption")
    for text in (str(caught.value), repr(caught.value), str(report)):
        assert SECRET not in text
        assert RECIPIENT.hex() not in text
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "keys", [{"password": SECRET}, {"recipient_key": RECIPIENT}, {"trusted_key": TRUSTED}]
)
def test_keys_for_other_forms_are_refused(keys, tmp_path):
    apr.save({}, tmp_path / "v2.apr")
    (tmp_path / "json.apr").write_bytes(forge_json(data=b""))
    index = tmp_path / "model.apr.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {}}))
    kind = apr.SignatureError if "trusted_key" in keys else apr.DecryptionError
    for path in (tmp_path / "v2.apr", tmp_path / "json.apr", index):
        with pytest.raises(kind, match=r"not signed|not encrypted"):
            apr.load(path, **keys)
        assert not apr.verify(path, **keys).ok


def test_keys_of_another_kind_are_wrong_arguments():
    for keys in ({"recipient_key": b"short"}, {"trusted_key": bytes(33)}):
        with pytest.raises(ValueError, match=r"must be 32 bytes, not (5|33)"):
            load("signed", **keys)
    with pytest.raises(ValueError, match="not both"):
        load("signed", password="x", recipient_key=bytes(32))
    with pytest.raises(TypeError):
        load("signed", password=b"x")


def test_secrets_are_in_no_repr_and_no_pickle():
    for name in ("encrypted_password", "encrypted_recipient"):
        file = load(name, **KEYS[name])
        assert PASSWORD not in repr(file) + repr(file.__dict__) + repr(file.header)
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(file)
    assert pickle.loads(pickle.dumps(load("linear_none"))).payload == LINEAR
    assert pickle.loads(pickle.dumps(load("encrypted_password"))).locked
    again = pickle.loads(pickle.dumps(load("signed", trusted_key=TRUSTED)))
    assert again.signature.trusted


def test_open_v1_opens_v1_alone(tmp_path):
    assert apr.open_v1(path_of("linear_lz4")).payload == LINEAR
    assert apr.open_v1(path_of("encrypted_password"), password=PASSWORD).payload == LINEAR
    apr.save({}, tmp_path / "v2.apr")
    with pytest.raises(apr.UnsupportedError, match=r"apr\.load"):
        apr.open_v1(tmp_path / "v2.apr")


def test_a_payload_that_is_no_tensors_is_neither_compared_nor_converted_nor_an_empty_state_dict(tmp_path):
    path = path_of("linear_none")
    with pytest.raises(apr.UnsupportedError):
        apr.stamp(path, {"a": 1}, tmp_path / "out.apr")
    acts = [
        lambda: apr.diff(path, path),
        lambda: apr.safe_open(path, framework="np"),
        lambda: apr.numpy.load_file(path),
    ]
    for act in acts:
        with pytest.raises(apr.UnsupportedError, match="payload"):
            act()
    assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 4
    assert list(tmp_path.iterdir()) == []
    assert apr.diff(path_of("tensor_shapes"), path_of("tensor_shapes")).same


# commands


@pytest.fixture
def key_files(tmp_path):
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    (tmp_path / "recipient").write_bytes(RECIPIENT)
    (tmp_path / "trusted").write_text(TRUSTED.hex() + "\n")
    return {
        "encrypted_password": ("--password-file", tmp_path / "password"),
        "encrypted_recipient": ("--recipient-key-file", tmp_path / "recipient"),
        "signed": ("--trusted-key-file", tmp_path / "trusted"),
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_inspect_tensors_and_verify_work_on_v1(name, run, key_files):
    path, keys = path_of(name), key_files.get(name, ())
    for flags in ((), keys):
        code, out, err = run("inspect", "--json", path, *flags)
        found = json.loads(out)
        assert (code, err, found["format"], found["valid"]) == (0, "", "APR v1", True)
        assert found["checksum_valid"] is True
        assert found["v1"]["locked"] == (name.startswith("encrypted") and not flags)
        assert found["tensor_count"] == (2 if name == "tensor_shapes" else 0)
        code, out, err = run("inspect", path, *flags)
        assert (code, err) == (0, "")
        assert "APR v1 (version 1.0)" in out
        code, out, err = run("tensors", "--json", path, *flags)
        assert (code, len(json.loads(out)["tensors"])) == (0, found["tensor_count"])
        code, out, err = run("verify", path, *flags)
        assert (code, err) == (0, "")
    if name == "signed":
        assert "by the trusted key" in out
        assert found["v1"]["signature"] == "trusted"
        assert "integrity alone" in run("verify", path)[1]
    if name.startswith("encrypted"):
        assert "ok  encryption" in out


def test_keys_in_files_that_are_none_are_wrong_usage(run, tmp_path, key_files):
    path = path_of("encrypted_password")
    (tmp_path / "bad").write_text("zz" * 32)
    assert run("inspect", path, "--recipient-key-file", tmp_path / "bad")[0] == 2
    assert run("verify", path, "--trusted-key-file", tmp_path / "password")[0] == 2
    (tmp_path / "bad").write_bytes(b"\xff")
    assert run("tensors", path, "--password-file", tmp_path / "bad")[0] == 2
    assert run("verify", path, "--password-file", tmp_path / "gone")[0] == 3
    both = (*key_files["encrypted_password"], *key_files["encrypted_recipient"])
    assert run("verify", path, *both)[0] == 2


def test_a_wrong_key_exits_4(run, tmp_path):
    (tmp_path / "password").write_text(SECRET)
    code, out, err = run("verify", path_of("encrypted_password"), "--password-file", tmp_path / "password")
    assert (code, out) == (4, "")
    assert SECRET not in err
    assert "the password is wrong" in err


# what lies

GOOD = forge_v1()  # metadata at 32, payload at 34, footer at 41
ENCRYPTED = path_of("encrypted_password").read_bytes()
SIGNED = path_of("signed").read_bytes()  # metadata at 32, payload 79, signature 110, key 174, footer 206
SMALL_ORDER = bytes([1]) + bytes(31)
DEEP = b"\x81\xa1a" + b"\x91" * 64 + b"\1"


def fixed(content, at, replaced):
    """Other bytes at a place, the checksum made right again."""
    return with_crc(content[:at] + replaced + content[at + len(replaced) : -4])


# id: (bytes, error, byte, what the line says)
OPENING = {
    "header cut off": (GOOD[:31], "TruncatedError", 31, "the header"),
    "magic alone": (b"APRN", "TruncatedError", 4, "the header"),
    "version 0": (forge_v1(version=(0, 9)), "UnsupportedError", 4, "version 0.9"),
    "version 3": (forge_v1(version=(3, 0)), "UnsupportedError", 4, "version 3.0"),
    "version 2 without its header": (
        forge_v1(payload=bytes(64), version=(2, 0)), "ChecksumError", 40, "header checksum",
    ),
    "no metadata": (forge_v1(b""), "FormatError", 8, "metadata_size is 0"),
    "metadata above the limit": (forge_v1(metadata_size=(64 << 20) + 1), "FormatError", 8, "64 MiB"),
    "metadata beyond the file": (forge_v1(metadata_size=100), "TruncatedError", 45, "the metadata"),
    "payload beyond the file": (
        forge_v1(payload_size=100, compression=1), "TruncatedError", 45, "the payload",
    ),
    "payload size overflows": (
        forge_v1(payload_size=2**32 - 1, compression=1), "TruncatedError", 45, "the payload",
    ),
    "payload too small": (
        forge_v1(payload_size=6, uncompressed_size=6), "FormatError", 44, "1 bytes after the footer",
    ),
    "uncompressed above the limit": (
        forge_v1(uncompressed_size=(1 << 30) + 1, compression=1), "FormatError", 16, "1 GiB",
    ),
    "uncompressed is not compressed": (
        forge_v1(uncompressed_size=8), "FormatError", 16, "uncompressed_size 8, but the payload is 7",
    ),
    "unknown compression": (forge_v1(compression=4), "FormatError", 20, "compression 4"),
    "encrypted too small": (forge_v1(flags=1), "FormatError", 12, "too small for an encrypted payload"),
    "signed without a signature": (forge_v1(flags=2), "TruncatedError", 45, "the signature"),
    "bytes after the footer": (forge_v1(tail=b"xy"), "FormatError", 45, "2 bytes after the footer"),
    "no footer": (GOOD[:-4], "TruncatedError", 41, "the footer"),
    "footer": (GOOD[:-4] + u32(7), "ChecksumError", 41, "footer checksum"),
    "payload flipped": (GOOD[:35] + b"?" + GOOD[36:], "ChecksumError", 41, "footer checksum"),
    "metadata an array": (forge_v1(b"\x90"), "FormatError", 32, "neither a MessagePack map nor"),
    "metadata a JSON array": (forge_v1(b"[1]"), "FormatError", 32, "neither a MessagePack map nor"),
    "metadata cut short": (forge_v1(b"\x82\xa1a\1"), "FormatError", 36, "in the middle of a value"),
    "metadata too long": (forge_v1(b"\x80\x80"), "FormatError", 33, "1 bytes after the map"),
    "metadata not UTF-8": (forge_v1(b"\x81\xa1\xff\1"), "FormatError", 33, "not UTF-8"),
    "metadata a number as key": (forge_v1(b"\x81\1\1"), "FormatError", 33, "a key that is no text"),
    "metadata extension": (forge_v1(b"\x81\xa1a\xd4\1\1"), "FormatError", 35, "a MessagePack extension"),
    "metadata reserved marker": (forge_v1(b"\x81\xa1a\xc1"), "FormatError", 35, "a MessagePack extension"),
    "metadata array that lies": (
        forge_v1(b"\x81\xa1a\xdd\xff\xff\xff\xff"), "FormatError", 40, "in the middle of a value",
    ),
    "metadata map that lies": (
        forge_v1(b"\xdf\xff\xff\xff\xff"), "FormatError", 37, "in the middle of a value",
    ),
    "metadata bytes that lie": (
        forge_v1(b"\x81\xa1a\xc6\xff\xff\xff\xff"), "FormatError", 40, "2000000 values",
    ),
    "metadata text that lies": (
        forge_v1(b"\x81\xa1a\xdb\xff\xff\xff\xff"), "FormatError", 40, "in the middle of a value",
    ),
    "metadata nested too deep": (forge_v1(DEEP), "FormatError", 98, "nested deeper than 64"),
    "JSON metadata cut short": (forge_v1(b'{"a":'), "FormatError", 36, "EOF"),
    "JSON metadata nested too deep": (
        forge_v1(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"), "FormatError", 101, "nested deeper than 64",
    ),
    "JSON metadata NaN": (forge_v1(b'{"a":NaN}'), "FormatError", 37, "expected value"),
    "signature": (fixed(SIGNED, 110, b"\0"), "SignatureError", 110, "the signature does not fit"),
    "signature's second half": (fixed(SIGNED, 173, b"\xff"), "SignatureError", 110, "does not fit"),
    "public key": (fixed(SIGNED, 174, bytes(32)), "SignatureError", 110, "does not fit"),
    "public key no point": (fixed(SIGNED, 174, b"\2" + bytes(31)), "SignatureError", 174, "is none"),
    "public key of small order": (
        fixed(SIGNED, 110, SMALL_ORDER + bytes(32) + SMALL_ORDER), "SignatureError", 110, "does not fit",
    ),
    "signed header": (fixed(SIGNED, 22, b"\x63"), "SignatureError", 110, "does not fit"),
    "signed metadata": (fixed(SIGNED, 60, b"9"), "SignatureError", 110, "does not fit"),
    "signed payload": (fixed(SIGNED, 100, b"9"), "SignatureError", 110, "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENING)
def test_loading_raises_a_typed_error_that_names_the_byte(case, tmp_path):
    content, kind, offset, says = OPENING[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    for act in (apr.load, apr.open_v1):
        with pytest.raises(apr.AprError) as caught:
            act(path)
        error = caught.value
        assert type(error).__name__ == kind
        assert (error.path, error.tensor, error.offset) == (str(path), None, offset)
        assert says in str(error)
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("case", OPENING)
@pytest.mark.parametrize("command", ["inspect", "tensors", "verify"])
def test_commands_say_it_in_one_line_and_exit_4(command, case, tmp_path, run):
    path = tmp_path / "bad.apr"
    path.write_bytes(OPENING[case][0])
    code, out, err = run(command, path)
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert line.startswith(f"apr {command}: error: {path}: ")
    assert OPENING[case][-1] in line
    report = apr.verify(path)
    assert (report.ok, report.opened) == (False, False)
    assert [check.passed for check in report.checks] == [True] * (len(report.checks) - 1) + [False]


# A salt, nonce, ciphertext and tag of the password; an ephemeral key, hint, nonce … of the recipient.
SEALED = {
    "salt": ("encrypted_password", 0, "the password is wrong"),
    "nonce": ("encrypted_password", 16, "the password is wrong"),
    "ciphertext": ("encrypted_password", 28, "the password is wrong"),
    "tag": ("encrypted_password", 67, "the password is wrong"),
    "ephemeral key": ("encrypted_recipient", 0, "it was changed"),
    "hint": ("encrypted_recipient", 32, "another's"),
    "recipient's nonce": ("encrypted_recipient", 40, "it was changed"),
    "recipient's ciphertext": ("encrypted_recipient", 52, "it was changed"),
    "recipient's tag": ("encrypted_recipient", 98, "it was changed"),
}


@pytest.mark.parametrize("case", SEALED)
def test_what_was_encrypted_cannot_be_changed(case, tmp_path):
    name, at, says = SEALED[case]
    content = path_of(name).read_bytes()
    payload = 32 + 47
    path = tmp_path / "bad.apr"
    path.write_bytes(fixed(content, payload + at, bytes([content[payload + at] ^ 1])))
    with pytest.raises(apr.DecryptionError, match=says) as caught:
        apr.load(path, **KEYS[name])
    assert caught.value.offset == payload
    assert apr.load(path).locked  # what needs no key is as it was


def test_an_ephemeral_key_that_gives_no_secret_is_refused(tmp_path):
    path = tmp_path / "bad.apr"
    path.write_bytes(fixed(path_of("encrypted_recipient").read_bytes(), 79, bytes(32)))
    with pytest.raises(apr.DecryptionError, match="gives no secret"):
        apr.load(path, **KEYS["encrypted_recipient"])


def test_a_payload_too_small_for_a_recipient_is_said_to_need_a_password(tmp_path):
    path = tmp_path / "small.apr"
    path.write_bytes(forge_v1(payload=bytes(44), flags=1))
    with pytest.raises(apr.DecryptionError, match="needs a password"):
        apr.load(path, recipient_key=RECIPIENT)
    with pytest.raises(apr.DecryptionError, match="the password is wrong"):
        apr.load(path, password=PASSWORD)


PAYLOAD = b"payload" * 100
# id: (bytes, byte, what the line says); the payload starts at 34
UNPACKING = {
    "zstd": (forge_v1(payload=zstd(PAYLOAD)[:-1], compression=1, uncompressed_size=700), 34, "zstd data"),
    "no zstd": (forge_v1(payload=b"?" * 99, compression=2, uncompressed_size=700), 34, "not a zstd frame"),
    "zstd frame of another size": (
        forge_v1(payload=zstd(PAYLOAD), compression=1, uncompressed_size=701), 34, "the frame holds 700",
    ),
    "zstd frame that lies": (
        forge_v1(payload=zstd(PAYLOAD, 1 << 29), compression=1, uncompressed_size=1 << 29), 34, "zstd data",
    ),
    "zstd frames": (
        forge_v1(payload=zstd(b"a" * 9) * 2, compression=1, uncompressed_size=9), 34, "follow the frame",
    ),
    "empty zstd": (forge_v1(payload=b"", compression=1, uncompressed_size=700), 34, "not a zstd frame"),
    "lz4 without its size": (
        forge_v1(payload=b"abc", compression=3, uncompressed_size=700), 34, "no size is before it",
    ),
    "lz4 of another size": (
        forge_v1(payload=u32(6) + lz4(PAYLOAD), compression=3, uncompressed_size=700), 34, "its size is 6",
    ),
    "lz4 that ends early": (
        forge_v1(payload=u32(701) + lz4(PAYLOAD), compression=3, uncompressed_size=701), 34, "LZ4 data",
    ),
    "lz4 that goes on": (
        forge_v1(payload=u32(699) + lz4(PAYLOAD), compression=3, uncompressed_size=699), 34, "LZ4 data",
    ),
    "lz4 that lies": (
        forge_v1(payload=u32(1 << 29) + lz4(PAYLOAD), compression=3, uncompressed_size=1 << 29),
        34, "cannot hold",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNPACKING)
def test_a_payload_that_does_not_unpack_is_found_when_it_is_used(case, tmp_path, run):
    content, offset, says = UNPACKING[case]
    path = tmp_path / "bad.apr"
    path.write_bytes(content)
    with apr.load(path) as file, pytest.raises(apr.FormatError, match=says) as caught:
        file.payload  # noqa: B018
    assert caught.value.offset == offset
    report = apr.verify(path)
    assert (report.ok, report.opened) == (False, True)
    (failed,) = [check for check in report.checks if check.passed is False]
    assert (failed.name, failed.offset) == ("payload", offset)
    assert run("verify", path)[0] == 5
    code, out, _ = run("inspect", "--json", path)
    assert (code, json.loads(out)["valid"]) == (0, False)


@pytest.mark.parametrize("compression", [0, 1])
def test_a_count_that_is_not_the_tensors_is_found_when_they_are_used(compression, tmp_path):
    path = tmp_path / "bad.apr"
    lie = u32(8, 0) + VALUES.tobytes()
    stored = zstd(lie) if compression else lie
    path.write_bytes(forge_v1(SHAPES, stored, compression=compression, uncompressed_size=36))
    with apr.load(path) as file:
        assert file.payload == lie
        for act in (file.__getitem__, file.numpy, file.raw, lambda name: file.slice(name)[:]):
            with pytest.raises(apr.FormatError, match="starts with the count 8, but the metadata describe 7"):
                act("a")
    report = apr.verify(path)
    assert [check.name for check in report.checks if check.passed is False] == ["payload"]


def test_a_file_cut_off_anywhere_is_truncated(tmp_path):
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
    with pytest.raises(apr.TruncatedError, match="cut short since"):
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


@pytest.mark.parametrize("case", ["zstd frame that lies", "lz4 that lies", "zstd frame of another size"])
def test_a_size_that_lies_takes_no_memory(case, tmp_path):
    """Half a gigabyte is declared; some hundred bytes are there."""
    path = tmp_path / "bad.apr"
    path.write_bytes(UNPACKING[case][0])
    script = MEASURE.format(good=str(path_of("linear_zstd")), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kind, kilobytes = done.stdout.split()
    assert kind == "FormatError"
    assert int(kilobytes) < 4096


# any bytes


def outcome(path):
    """Everything that a reader can ask for works or is an AprError."""
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
            outcome(path)


SIZES = st.sampled_from([0, 1, 7, 36, 44, 68, 1 << 20, 1 << 30, (1 << 32) - 1])


@given(
    metadata=st.sampled_from([b"{}", b"\x80", SHAPES]) | st.binary(max_size=40),
    payload=st.sampled_from([DESCRIBED, zstd(DESCRIBED), u32(36) + lz4(DESCRIBED)]) | st.binary(max_size=120),
    signature=st.just(b"") | st.binary(min_size=96, max_size=96),
    compression=st.integers(0, 4),
    flags=st.integers(0, 255),
    sizes=st.dictionaries(st.sampled_from(["metadata_size", "payload_size", "uncompressed_size"]), SIZES),
)
def test_a_file_of_any_fields_with_a_right_checksum_opens_or_raises(
    tmp_path, metadata, payload, signature, compression, flags, sizes
):
    path = tmp_path / "any.apr"
    fields = {"compression": compression, "flags": flags} | sizes
    path.write_bytes(forge_v1(metadata, payload, signature, **fields))
    outcome(path)


@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_changed_files_with_a_right_checksum_open_or_raise(tmp_path, name, data):
    path = tmp_path / "any.apr"
    content = path_of(name).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(6, len(content) - 5))
        content = fixed(content, at, data.draw(st.binary(min_size=1, max_size=1)))
    path.write_bytes(content)
    outcome(path)


@given(st.text(max_size=20), st.binary(min_size=32, max_size=32))
def test_any_other_key_is_wrong(password, key):
    if password != PASSWORD:
        with pytest.raises(apr.DecryptionError):
            load("encrypted_password", password=password)
    if key != RECIPIENT:
        with pytest.raises(apr.DecryptionError):
            load("encrypted_recipient", recipient_key=key)
    if key != TRUSTED:
        with pytest.raises(apr.SignatureError):
            load("signed", trusted_key=key)
