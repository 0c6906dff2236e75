"""The keys of encrypted and signed version 1 files, as keyword arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from apr.errors import DecryptionError, SignatureError

if TYPE_CHECKING:
    from os import PathLike


class Keys(TypedDict, total=False):
    """The key arguments of `apr.load`, described there. Each may be None."""

    password: str | None
    recipient_key: bytes | None
    trusted_key: bytes | None


def refuse_keys(path: str | PathLike[str], keys: Keys) -> None:
    """Raise an error if there are keys for a model in several files, which is neither encrypted nor signed.

    To ignore them would let a caller believe that a signature was checked.

    Raises:
        SignatureError: there is a trusted key.
        DecryptionError: there is a password or a recipient key.
    """
    if keys.get("trusted_key") is not None:
        raise SignatureError(
            f"{path}: a model in several files is not signed; open it without a trusted key", path=path
        )
    if keys.get("password") is not None or keys.get("recipient_key") is not None:
        raise DecryptionError(
            f"{path}: a model in several files is not encrypted; open it without a password or recipient key",
            path=path,
        )
