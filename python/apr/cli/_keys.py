"""Flags for the keys of encrypted or signed version 1 files.

The flags name files that hold keys, because every user of a machine can read its command lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr.errors import UsageError

if TYPE_CHECKING:
    from apr.container.legacy.keys import Keys

# Far above any key or password, so that a wrong path, such as a model file, is not read whole.
_MAX_KEY_FILE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class KeyFlags:
    """Flags that name files with keys."""

    password_file: Path | None = None
    """File whose first line is the password of an encrypted file."""
    recipient_key_file: Path | None = None
    """File with the recipient's X25519 secret key, as 32 bytes or 64 hex digits."""
    trusted_key_file: Path | None = None
    """File with the Ed25519 public key that must have signed the file, as 32 bytes or 64 hex digits."""

    def keys(self) -> Keys:
        """Read the keys from the named files.

        Raises:
            UsageError: both a password and a recipient key are named, or a file does not hold a key.
            OSError: a file cannot be read.
        """
        if self.password_file is not None and self.recipient_key_file is not None:
            raise UsageError("--password-file and --recipient-key-file cannot be used together; pass one")
        return {
            "password": None if self.password_file is None else _password(self.password_file),
            "recipient_key": None if self.recipient_key_file is None else _key(self.recipient_key_file),
            "trusted_key": None if self.trusted_key_file is None else _key(self.trusted_key_file),
        }


def _password(path: Path) -> str:
    try:
        # An editor ends the line with a newline that is not part of the password.
        return _read(path).decode().partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: the password is not UTF-8 text", path=path) from None


def _key(path: Path) -> bytes:
    content = _read(path)
    # The length tells the two forms apart. X25519 and Ed25519 keys both have 32 bytes.
    if len(content) == 32:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UsageError(f"{path}: not a key; it must hold 32 bytes or 64 hex digits", path=path)
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        # One byte more than allowed shows that there are more.
        content = file.read(_MAX_KEY_FILE + 1)
    if len(content) > _MAX_KEY_FILE:
        raise UsageError(
            f"{path}: too large for a key file; it must hold 32 bytes or 64 hex digits", path=path
        )
    return content
