"""Shards written one after another on a thread, each followed by the manifest that counts it."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from apr.data.documents import START, Place
from apr.data.manifest import ManifestWriter
from apr.errors import RefusedError
from apr.files import replacing, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from apr.data.manifest import Manifest, ShardRow

# Names have five digits. An estimate of more shards than this gets six, because it may be too low.
_SIX_DIGITS_FROM = 90_000


LENGTHS_SUFFIX = ".lengths"


def lengths_path(directory: Path, shard: str) -> Path:
    """Return the file beside a part's shard with the number of ids of each document, as 64-bit integers."""
    return directory / (shard.removesuffix(".bin") + LENGTHS_SUFFIX)


def name_digits(estimated_tokens: int | None, shard_tokens: int) -> int:
    """Return the digits of shard names for a corpus of so many tokens; None is an unknown number."""
    return 6 if (estimated_tokens or 0) > _SIX_DIGITS_FROM * shard_tokens else 5


@dataclass(frozen=True)
class CorpusPosition:
    """The documents of a corpus that are in whole shards."""

    place: Place = START
    """Where the next document begins."""
    documents: int = 0
    skipped: int = 0
    text_bytes: int | None = 0
    """Bytes of their text; None if an earlier version began the encoding without counting them."""


class ShardWriter:
    """Writes shards in the background. Leaving a `with` block waits for all of them, after an error too.

    A shard has its name only when it is whole and on the disk, and only then the manifest that counts it is
    written: a process that is killed leaves at most one shard that the manifest does not count.

    Args:
        output: the directory.
        rows: the manifest's rows of shards that exist.
        digits: digits of a new shard's number.
        manifest: returns the manifest for rows and the position that they reach.
    """

    def __init__(
        self,
        output: Path,
        rows: Sequence[ShardRow],
        digits: int,
        manifest: Callable[[list[ShardRow], CorpusPosition], Manifest],
    ) -> None:
        self.rows = list(rows)
        """The rows of shards that are on the disk."""
        self._output, self._digits, self._manifest = output, digits, manifest
        self._submitted = len(self.rows)
        self._writer = ManifestWriter(output)
        self._last: Future[None] | None = None
        # One thread, so that shards and manifests are written in order.
        self._thread = ThreadPoolExecutor(1, "shards")

    def write(
        self,
        parts: Sequence[NDArray[np.uint32]],
        documents: int,
        position: CorpusPosition,
        lengths: NDArray[np.uint64] | None = None,
    ) -> None:
        """Start to write the next shard, after waiting for the one before.

        Args:
            parts: the ids, uint32, in order.
            documents: documents that end in this shard.
            position: the position in the corpus after this shard.
            lengths: the number of ids of each document, uint64, to be kept beside the shard.

        Raises:
            OSError: an earlier shard could not be written.
            RefusedError: the number of the shard has too many digits.
        """
        # One shard at a time: a disk that is slower than the encoder slows it down instead of filling memory.
        self.wait()
        number = f"{self._submitted:0{self._digits}}"
        if len(number) > self._digits:
            raise RefusedError(
                f"{self._output}: too many shards; number {number} has more than {self._digits} digits; "
                "increase --shard-tokens",
                path=self._output,
            )
        self._submitted += 1
        name = f"shard-{number}.bin"
        self._last = self._thread.submit(self._write, name, parts, documents, position, lengths)

    def wait(self) -> None:
        """Wait until every submitted shard is on the disk.

        Raises:
            OSError: a shard could not be written.
        """
        if self._last is not None:
            self._last.result()

    def _write(
        self,
        name: str,
        parts: Sequence[NDArray[np.uint32]],
        documents: int,
        position: CorpusPosition,
        lengths: NDArray[np.uint64] | None,
    ) -> None:
        if lengths is not None:
            # First: a shard never stands without its lengths.
            write_atomically(lengths_path(self._output, name), lengths.data)
        # Hashed on the way to the disk, so that no shard is read again for its hash.
        digest = hashlib.sha256()
        with replacing(self._output / name) as file:
            # Part by part: joined, a large document's ids would be in memory twice.
            for part in parts:
                file.write(part.data)
                digest.update(part.data)
        self.rows.append(
            {
                "name": name,
                "tokens": sum(map(len, parts)),
                "documents": documents,
                "sha256": digest.hexdigest(),
            }
        )
        self._writer.write(self._manifest(self.rows, position), self.rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
