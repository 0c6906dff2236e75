"""The keys that open encrypted and signed files, as keyword arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from apr.errors import DecryptionError, SignatureError

if TYPE_CHECKING:
    from os import PathLike


class Keys(TypedDict, total=False):
    """What `apr.load` takes; each may be None."""

    password: str | None
    recipient_key: bytes | None
    trusted_key: bytes | None


def refuse(path: str | PathLike[str], keys: Keys) -> None:
    """A model in several files is neither encrypted nor signed.

    Raises:
        SignatureError: there is a trusted key.
        DecryptionError: there is a password or a recipient key.
    """
    if keys.get("trusted_key") is not None:
        raise SignatureError(f"{path}: a model in several files is not signed", path=path)
    if keys.get("password") is not None or keys.get("recipient_key") is not None:
        raise DecryptionError(f"{path}: a model in several files is not encrypted", path=path)
