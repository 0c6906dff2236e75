"""The keys of encrypted and signed version 1 files."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import LONG
from tests.container.legacy.forged_legacy import forge_json, forge_v1
from tests.container.legacy.v1_files import KEYS, LINEAR, PASSWORD, RECIPIENT, TRUSTED, change, load, path_of

import apr


def test_a_signature_is_trusted_only_by_a_trusted_key():
    with load("signed") as file:
        assert (file.signature.public_key, file.signature.trusted) == (TRUSTED, False)
        assert check_of(file, "signature").detail.startswith("integrity")
    with load("signed", trusted_key=TRUSTED) as file:
        assert file.signature.trusted
        assert TRUSTED.hex() in check_of(file, "signature").detail
    with pytest.raises(apr.SignatureError, match=TRUSTED.hex()):
        load("signed", trusted_key=bytes(32))
    with pytest.raises(apr.SignatureError, match="not signed"):
        load("linear_none", trusted_key=TRUSTED)
    assert load("linear_none").signature is None
    assert check_of(load("linear_none"), "signature").passed is None


def check_of(file, name):
    return next(check for check in file.verify().checks if check.name == name)


@pytest.mark.parametrize("name", ["encrypted_password", "encrypted_recipient"])
def test_header_and_metadata_of_an_encrypted_file_need_no_key(name):
    with load(name) as file:
        assert file.locked
        assert apr.V1Flags.ENCRYPTED in file.header.flags
        assert file.metadata["aprender_version"] == "0.72.3"
        assert len(file) == 0
        with pytest.raises(apr.DecryptionError, match="encrypted") as caught:
            file.payload  # noqa: B018
        assert caught.value.offset == 32 + file.header.metadata_size
        report = file.verify()
        assert report.ok
        assert [c.passed for c in report.checks if c.name in {"encryption", "payload"}] == [None, None]
    assert not load(name, **KEYS[name]).locked


def test_described_tensors_of_a_locked_file_are_listed(tmp_path):
    path = tmp_path / "m.apr"
    path.write_bytes(
        forge_v1(b'{"tensor_shapes":{"b":[2,2],"a":[3]}}', bytes(80), flags=1, uncompressed_size=36)
    )
    with apr.load(path) as file:
        assert list(file) == ["a", "b"]
        for read in (file.__getitem__, file.numpy, file.raw):
            with pytest.raises(apr.DecryptionError):
                read("a")


SECRET = "a secret that nobody may see"
# id: (file, keys, a key word of the message)
WRONG = {
    "wrong password": ("encrypted_password", {"password": SECRET}, "password"),
    "empty password": ("encrypted_password", {"password": ""}, "password"),
    "password for a recipient's file": ("encrypted_recipient", {"password": SECRET}, "password"),
    "key of another recipient": ("encrypted_recipient", {"recipient_key": SECRET.encode().ljust(32)}, "key"),
    "key for a password's file": ("encrypted_password", {"recipient_key": RECIPIENT}, "password"),
    "password for a plain file": ("linear_zstd", {"password": SECRET}, "not encrypted"),
    "key for a plain file": ("signed", {"recipient_key": RECIPIENT}, "not encrypted"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_key_is_one_line_without_a_secret(case):
    name, keys, key_word = WRONG[case]
    with pytest.raises(apr.DecryptionError, match=key_word) as caught:
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
    error = apr.SignatureError if "trusted_key" in keys else apr.DecryptionError
    for path in (tmp_path / "v2.apr", tmp_path / "json.apr", index):
        with pytest.raises(error, match=r"not signed|not encrypted"):
            apr.load(path, **keys)
        assert not apr.verify(path, **keys).ok


def test_keys_of_a_wrong_type_or_length_are_wrong_arguments():
    for keys in ({"recipient_key": b"short"}, {"trusted_key": bytes(33)}):
        with pytest.raises(ValueError, match="32 bytes"):
            load("signed", **keys)
    with pytest.raises(ValueError, match="both"):
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


# A payload encrypted with a password is salt, nonce, ciphertext and tag; for a recipient it is ephemeral key,
# hint, nonce, ciphertext and tag. id: (file, offset in the payload, a key word of the message)
ENCRYPTED_PARTS = {
    "salt": ("encrypted_password", 0, "password"),
    "nonce": ("encrypted_password", 16, "password"),
    "ciphertext": ("encrypted_password", 28, "password"),
    "tag": ("encrypted_password", 67, "password"),
    "ephemeral key": ("encrypted_recipient", 0, "changed"),
    "hint": ("encrypted_recipient", 32, "key"),
    "recipient's nonce": ("encrypted_recipient", 40, "changed"),
    "recipient's ciphertext": ("encrypted_recipient", 52, "changed"),
    "recipient's tag": ("encrypted_recipient", 98, "changed"),
}


@pytest.mark.parametrize("case", ENCRYPTED_PARTS)
def test_an_encrypted_payload_cannot_be_changed(case, tmp_path):
    name, at, key_word = ENCRYPTED_PARTS[case]
    content = path_of(name).read_bytes()
    payload = 32 + 47  # after the header and the metadata
    path = tmp_path / "bad.apr"
    path.write_bytes(change(content, payload + at, bytes([content[payload + at] ^ 1])))
    with pytest.raises(apr.DecryptionError, match=key_word) as caught:
        apr.load(path, **KEYS[name])
    assert caught.value.offset == payload
    assert apr.load(path).locked  # header and metadata are still readable


def test_an_ephemeral_key_that_gives_no_secret_is_refused(tmp_path):
    path = tmp_path / "bad.apr"
    path.write_bytes(change(path_of("encrypted_recipient").read_bytes(), 79, bytes(32)))
    with pytest.raises(apr.DecryptionError, match="key"):
        apr.load(path, **KEYS["encrypted_recipient"])


def test_a_payload_too_small_for_a_recipient_needs_a_password(tmp_path):
    path = tmp_path / "small.apr"
    path.write_bytes(forge_v1(payload=bytes(44), flags=1))
    with pytest.raises(apr.DecryptionError, match="password"):
        apr.load(path, recipient_key=RECIPIENT)
    with pytest.raises(apr.DecryptionError, match="password"):
        apr.load(path, password=PASSWORD)


def test_invalid_key_files_are_wrong_usage(run, tmp_path, key_files):
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
    assert "password" in err


# Deriving a key from a password takes a quarter of a second, on purpose.
@settings(max_examples=500 if LONG else 8)
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
