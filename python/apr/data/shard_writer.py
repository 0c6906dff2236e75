"""Shards written one after another in a thread of their own, each followed by the manifest that counts it."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from apr.data.corpus import START, Place
from apr.data.manifest import write_manifest
from apr.errors import RefusedError
from apr.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Reached:
    """How far the corpus is in whole shards."""

    place: Place = START
    """Where the next document begins."""
    documents: int = 0
    skipped: int = 0


class ShardWriter:
    """Writes shards; `with` ends when all that were given are on the disk, after an error too.

    Args:
        output: the directory.
        rows: the rows of shards that are there already.
        digits: of a new shard's number.
        manifest: makes the manifest of rows and of what they reach.
    """

    def __init__(
        self,
        output: Path,
        rows: Sequence[dict[str, Any]],
        digits: int,
        manifest: Callable[[list[dict[str, Any]], Reached], dict[str, Any]],
    ) -> None:
        self.rows = list(rows)
        """Of the shards that are on the disk."""
        self._output, self._digits, self._manifest = output, digits, manifest
        self._given = len(self.rows)
        self._last: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "shards")

    def write(self, parts: Sequence[NDArray[np.uint32]], documents: int, reached: Reached) -> None:
        """Write the next shard in the background, once the one before is on the disk.

        Raises:
            OSError: one given before could not be written.
            RefusedError: there are more shards than digits number.
        """
        self.wait()
        name = f"shard-{self._given:0{self._digits}}.bin"
        if len(name) > len(f"shard-{0:0{self._digits}}.bin"):
            raise RefusedError(
                f"{self._output}: more shards than {self._digits} digits number: raise --shard-tokens"
            )
        self._given += 1
        self._last = self._thread.submit(self._write, name, parts, documents, reached)

    def wait(self) -> None:
        """Wait until all that was given is on the disk.

        Raises:
            OSError: it could not be written.
        """
        if self._last is not None:
            self._last.result()

    def _write(
        self, name: str, parts: Sequence[NDArray[np.uint32]], documents: int, reached: Reached
    ) -> None:
        digest = hashlib.sha256()
        with replacing(self._output / name) as file:
            for part in parts:
                file.write(part.data)
                digest.update(part.data)
        row = {
            "name": name,
            "tokens": sum(map(len, parts)),
            "documents": documents,
            "sha256": digest.hexdigest(),
        }
        self.rows.append(row)
        write_manifest(self._output, self._manifest(self.rows, reached))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
