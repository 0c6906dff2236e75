"""The keys of the version 1 files, as flags of a command."""

import pytest
from tests.container.legacy.v1_files import PASSWORD, RECIPIENT, TRUSTED


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
