"""The version 1 files of another program, with their keys; and how to open and change them."""

import json
from pathlib import Path

from tests.container.legacy.forged_legacy import with_crc

import apr

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


# The payload of all the linear models, whatever their compression and encryption.
LINEAR = load("linear_none").payload


def change(content, offset, replacement):
    """Replace bytes and correct the checksum, as an attacker can."""
    return with_crc(content[:offset] + replacement + content[offset + len(replacement) : -4])
