"""The flags of keys. They name files: what stands on a command line is seen by every user of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apr.errors import UsageError

if TYPE_CHECKING:
    from apr.container.legacy.keys import Keys

# Longer than any key or password that is meant.
_LARGEST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class KeyFlags:
    """Keys of v1 files that are encrypted or signed."""

    password_file: Path | None = None
    """A file whose first line is the password of an encrypted file."""
    recipient_key_file: Path | None = None
    """A file with the recipient's X25519 secret key: 32 bytes, or 64 hex digits."""
    trusted_key_file: Path | None = None
    """A file with the Ed25519 public key by which the file must be signed: 32 bytes, or 64 hex digits."""

    def keys(self) -> Keys:
        """The keys in the files that are named."""
        if self.password_file is not None and self.recipient_key_file is not None:
            raise UsageError("give --password-file or --recipient-key-file, not both")
        return {
            "password": None if self.password_file is None else _password(self.password_file),
            "recipient_key": None if self.recipient_key_file is None else _key(self.recipient_key_file),
            "trusted_key": None if self.trusted_key_file is None else _key(self.trusted_key_file),
        }


def _password(path: Path) -> str:
    try:
        return _read(path).decode().partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: a password is UTF-8 text") from None


def _key(path: Path) -> bytes:
    content = _read(path)
    if len(content) == 32:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UsageError(f"{path}: a key is 32 bytes, or 64 hex digits")
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise UsageError(f"{path}: too large for a key")
    return content
