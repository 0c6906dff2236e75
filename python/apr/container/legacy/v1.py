"""APR v1 (magic `APRN`): metadata, payload and described tensors; signed and encrypted files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from typing import TYPE_CHECKING

from apr._core import Container
from apr.container.header import FileHeader, flag_states
from apr.container.mapped_file import MappedFile
from apr.errors import DecryptionError, UnsupportedError

if TYPE_CHECKING:
    from os import PathLike

FORM = "APR v1"
_MODEL_TYPES = {
    0x01: "linear regression",
    0x02: "logistic regression",
    0x03: "decision tree",
    0x04: "random forest",
    0x05: "gradient boosting",
    0x06: "k-means",
    0x07: "PCA",
    0x08: "naive Bayes",
    0x09: "kNN",
    0x0A: "SVM",
    0x10: "n-gram LM",
    0x11: "TF-IDF",
    0x12: "count vectorizer",
    0x20: "sequential net",
    0x21: "custom net",
    0x30: "recommender",
    0x40: "mixture of experts",
    0xFF: "custom",
}


class V1Flags(IntFlag):
    """Bits of the v1 header; bits without a name are kept."""

    ENCRYPTED = 1 << 0
    SIGNED = 1 << 1
    STREAMING = 1 << 2
    LICENSED = 1 << 3
    TRUENO_NATIVE = 1 << 4
    QUANTIZED = 1 << 5
    HAS_MODEL_CARD = 1 << 6


@dataclass(frozen=True, slots=True)
class V1Header(FileHeader):
    """The 32 bytes at the start, field by field. Sizes in bytes.

    `payload_size` is the payload's as stored, `uncompressed_size` once decrypted and decompressed;
    `compression` is "none", "zstd", "zstd19" or "lz4"; `quality` is the writer's score, 0 to 100.
    """

    model_type: int
    metadata_size: int
    payload_size: int
    uncompressed_size: int
    compression: str
    flags: V1Flags
    quality: int
    reserved: bytes

    @property
    def model_type_name(self) -> str:
        """What kind of model it is; an unknown kind is shown as its number."""
        return _MODEL_TYPES.get(self.model_type, f"{self.model_type:#x}")


@dataclass(frozen=True, slots=True)
class Signature:
    """Who signed a file. If `trusted` is false, the key is the file's own word: it proves integrity alone."""

    public_key: bytes
    trusted: bool


def open_v1(
    path: str | PathLike[str],
    *,
    password: str | None = None,
    recipient_key: bytes | None = None,
    trusted_key: bytes | None = None,
) -> V1File:
    """Open a v1 file: structure, checksum, signature and, where a key is given, decryption are checked.

    An encrypted file opens without a key too: its header and metadata can be read, its payload not.

    Args:
        path: the file.
        password: decrypts a file that was encrypted with it.
        recipient_key: the X25519 secret key, 32 bytes, of the one whom the file is encrypted for.
        trusted_key: the Ed25519 public key, 32 bytes, by which the file must be signed.

    Raises:
        DecryptionError: the key is wrong or of the wrong kind, or the file is not encrypted.
        SignatureError: the signature does not fit, is by another key, or the file is not signed.
        UnsupportedError: an `.apr` file of another form.
        AprError: the file is damaged or cut off; with path and byte.
        OSError: as `open` would.
    """
    container = Container(os.fspath(path), password, recipient_key, trusted_key)
    if container.form != FORM:
        name = os.fspath(path)
        raise UnsupportedError(
            f"{name}: {container.form}, not APR v1: apr.load opens it", path=name, offset=0
        )
    return V1File(path, container)


class V1File(MappedFile):
    """An open v1 file: a `TensorFile` over the tensors that its metadata describe. Made by `apr.load`.

    Most v1 files hold a model as one value of its writer's own type: `payload` has its bytes, and there
    are no tensors. `info(name).offset` counts from the file's start only where the payload is neither
    compressed nor encrypted, else in the payload. Of the metadata, NaN and infinities are None.
    """

    @cached_property
    def header(self) -> V1Header:
        """The header's fields."""
        fields = self._container.v1()
        assert fields is not None
        version, model_type, metadata, stored, unpacked, compression, flags, quality, reserved = fields
        return V1Header(
            magic=b"APRN",
            version=version,
            model_type=model_type,
            metadata_size=metadata,
            payload_size=stored,
            uncompressed_size=unpacked,
            compression=compression,
            flags=V1Flags(flags),
            quality=quality,
            reserved=reserved,
        )

    @cached_property
    def payload(self) -> bytes:
        """The payload, verified, decrypted and decompressed; unpacked at the first use.

        Raises:
            DecryptionError: it is encrypted, and the file was opened without a key.
            FormatError: it does not decompress to its declared size.
        """
        return self._container.payload()

    @property
    def signature(self) -> Signature | None:
        """Who signed the file; None if nobody did."""
        signer = self._container.signer
        return None if signer is None else Signature(*signer)

    @property
    def locked(self) -> bool:
        """Whether the payload is encrypted and the file was opened without a key."""
        return self._container.locked

    def header_facts(self) -> dict[str, object]:
        """Return what `apr.inspect` shows of the header."""
        header, signature = self.header, self.signature
        return {
            "version": ".".join(map(str, header.version)),
            "header_checksum": None,
            "footer_checksum": None if self.footer is None else f"{self.footer:#010x}",
            **flag_states(header.flags),
            "reserved": header.reserved.hex() if any(header.reserved) else None,
            "v1": {
                "model_type": header.model_type_name,
                "compression": header.compression,
                "quality": header.quality,
                "payload_size": header.payload_size,
                "uncompressed_size": header.uncompressed_size,
                "encrypted": V1Flags.ENCRYPTED in header.flags,
                "locked": self.locked,
                "signature": None
                if signature is None
                else "trusted"
                if signature.trusted
                else "integrity alone",
                "public_key": None if signature is None else signature.public_key.hex(),
            },
        }

    def require_tensors(self) -> None:
        """Refuse a file whose metadata describe no tensors; errors as in `TensorFile`."""
        if self.locked:
            raise DecryptionError(
                f"{self._path}: an encrypted v1 file whose tensors are locked: open it with its password or "
                "recipient_key",
                path=self._path,
            )
        if not len(self):
            raise UnsupportedError(
                f"{self._path}: a v1 file ({self.header.model_type_name}) whose payload is not described as "
                "tensors: apr.load(FILE).payload has its bytes",
                path=self._path,
            )

    def __reduce__(self) -> tuple[object, ...]:
        if self.header.flags & V1Flags.ENCRYPTED and not self.locked:
            raise TypeError(f"{self._path}: its key is not written into a pickle: open the file by its path")
        if self.signature is not None and self.signature.trusted:
            return _reopened, (self._absolute, self.signature.public_key)
        return super().__reduce__()


def _reopened(path: str, trusted_key: bytes) -> V1File:
    return open_v1(path, trusted_key=trusted_key)
