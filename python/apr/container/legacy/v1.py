"""Version 1 files (magic `APRN`): header, metadata, payload and tensors; signatures and encryption."""

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
from apr.path_arguments import as_path

if TYPE_CHECKING:
    from os import PathLike

# Names of the model types, by the number that the header stores.
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
    """Bits of a version 1 header's flags field; bits without a name are kept."""

    ENCRYPTED = 1 << 0
    SIGNED = 1 << 1
    STREAMING = 1 << 2
    LICENSED = 1 << 3
    TRUENO_NATIVE = 1 << 4
    QUANTIZED = 1 << 5
    HAS_MODEL_CARD = 1 << 6


@dataclass(frozen=True, slots=True)
class V1Header(FileHeader):
    """The fields of a version 1 header, which takes 32 bytes.

    Attributes:
        model_type: the number of the kind of model; `model_type_name` has it in words.
        metadata_size: bytes of the metadata.
        payload_size: bytes of the payload as stored.
        uncompressed_size: bytes of the payload once decrypted and decompressed.
        compression: "none", "zstd", "zstd19" (zstd at level 19) or "lz4".
        flags: the set flags.
        quality: the score that the writer gave the model, 0 to 100.
        reserved: the last 9 bytes, zero in every known file.
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
        """The kind of model, such as "random forest"; an unknown kind as its number in hexadecimal."""
        return _MODEL_TYPES.get(self.model_type, f"{self.model_type:#x}")


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature of a file, which was checked when the file was opened.

    Attributes:
        public_key: the Ed25519 public key (32 bytes) that the file contains.
        trusted: whether it is the trusted key that the caller gave. If not, the signature only proves that
            the file is as its signer left it: anyone can sign a file and put their own key into it.
    """

    public_key: bytes
    trusted: bool


def open_v1(
    path: str | PathLike[str],
    *,
    password: str | None = None,
    recipient_key: bytes | None = None,
    trusted_key: bytes | None = None,
) -> V1File:
    """Open a version 1 file. Opening checks the structure, the checksum and the signature.

    With a key, opening also decrypts the payload. An encrypted file opens without its key too: its header
    and metadata can be read, its payload cannot.

    Args:
        path: the file.
        password: the password of a file that was encrypted with one.
        recipient_key: the X25519 secret key (32 bytes) that the file is encrypted for.
        trusted_key: the Ed25519 public key (32 bytes) that must have signed the file.

    Raises:
        DecryptionError: the key is wrong or of the wrong kind, or the file is not encrypted.
        SignatureError: the signature is missing, wrong, or not made by the trusted key.
        UnsupportedError: the file has another version or format.
        AprError: the file is damaged or cut short; the error has the path and byte.
        OSError: the file cannot be opened or read.
    """
    container = Container(as_path(path), password, recipient_key, trusted_key)
    # `Container` opens every form; only version 1 has this header.
    if container.v1_header() is None:
        name = os.fspath(path)
        raise UnsupportedError(
            f"{name}: not a version 1 file but {container.form}; open it with apr.load", path=name, offset=0
        )
    return V1File(path, container)


class V1File(MappedFile):
    """An opened version 1 file. `apr.load` and `apr.open_v1` return one.

    The mapping has the tensors that the metadata describe. Most version 1 files have none: their payload is
    one value of a type of their writer, and `payload` has its bytes.

    If the payload is compressed or encrypted, `info(name).offset` counts from the start of the decompressed
    payload, else from the start of the file. NaN and infinities in the metadata are None.
    """

    @cached_property
    def header(self) -> V1Header:
        """The fields of the header."""
        fields = self._container.v1_header()
        assert fields is not None  # `apr.load` and `open_v1` make a V1File for version 1 only
        return V1Header(
            magic=b"APRN",
            version=fields.version,
            model_type=fields.model_type,
            metadata_size=fields.metadata_size,
            payload_size=fields.payload_size,
            uncompressed_size=fields.uncompressed_size,
            compression=fields.compression,
            flags=V1Flags(fields.flags),
            quality=fields.quality,
            reserved=fields.reserved,
        )

    @cached_property
    def payload(self) -> bytes:
        """The payload, decrypted and decompressed on first use.

        Raises:
            DecryptionError: the payload is encrypted, and the file was opened without a key.
            FormatError: the payload does not decompress to its declared size.
            TruncatedError: the file was cut short since it was opened.
        """
        return self._container.payload()

    @property
    def signature(self) -> Signature | None:
        """The signature, or None if the file is not signed."""
        signer = self._container.signer
        return None if signer is None else Signature(signer.public_key, signer.is_trusted)

    @property
    def locked(self) -> bool:
        """Whether the payload is encrypted and the file was opened without a key."""
        return self._container.locked

    def header_facts(self) -> dict[str, object]:
        """Return what `apr.inspect` shows of the header."""
        header, signature = self.header, self.signature
        signed, public_key = None, None
        if signature is not None:
            signed = "trusted" if signature.trusted else "integrity alone"
            public_key = signature.public_key.hex()
        return {
            "version": ".".join(map(str, header.version)),
            # Version 1 has one CRC32, at the end, which covers the header too.
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
                "signature": signed,
                "public_key": public_key,
            },
        }

    def require_tensors(self) -> None:
        """Check that the metadata describe the payload as tensors and that it is not locked.

        Raises:
            DecryptionError: the file is encrypted and was opened without its key.
            UnsupportedError: the metadata do not describe the payload as tensors.
        """
        if self.locked:
            raise DecryptionError(
                f"{self._path}: the tensors of this version 1 file are encrypted; open it with its "
                "password or recipient key",
                path=self._path,
            )
        # Most payloads are one value of their writer's own Rust type, which nobody else can take apart.
        if not len(self):
            raise UnsupportedError(
                f"{self._path}: the payload of this version 1 file ({self.header.model_type_name}) is not "
                "described as tensors; read its bytes with apr.load(FILE).payload",
                path=self._path,
            )

    def __reduce__(self) -> tuple[object, ...]:
        # A pickle may be stored or sent to another process, so it must not contain a secret. A public key is
        # not one: with it, the copy checks the signature again.
        if V1Flags.ENCRYPTED in self.header.flags and not self.locked:
            raise TypeError(
                f"{self._path}: an open encrypted file cannot be pickled, because the pickle would contain "
                "its key; pickle the path and open the file again"
            )
        if self.signature is not None and self.signature.trusted:
            return _open_signed, (self._absolute, self.signature.public_key)
        return super().__reduce__()


def _open_signed(path: str, trusted_key: bytes) -> V1File:
    return open_v1(path, trusted_key=trusted_key)
