"""Write an `.apr` file whose tensors become known one by one, in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from apr._core import StreamWriter
from apr.container.byte_dtypes import check_unreserved, stored_as, with_dtypes
from apr.container.metadata import encode
from apr.container.save import bytes_of, flags_of, spec_of
from apr.path_arguments import as_path, warn_of_foreign_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from types import TracebackType

    import numpy as np
    import torch

    from apr.container.quantized import Quantized


class Writer:
    """Write a file tensor by tensor. `close` puts it in place, where it replaces an existing file.

    Memory holds the current tensor and the index, however large the file becomes. The data first go to an
    unnamed file in the same directory, so that twice the space is needed until `close` returns. The data
    keep the order of the `add` calls, the index is sorted by name. The same calls write the same bytes.

    As a context manager, it closes at the end of the block. An exception in the block, including Ctrl-C,
    leaves an existing file as it is and nothing else. Without `close` nothing is written.

        with apr.Writer("model.apr", metadata={"architecture": "qwen2"}) as writer:
            for name, tensor in tensors:
                writer.add(name, tensor)

    Attributes:
        metadata: the metadata to write, a dictionary that may be changed until `close`.
    """

    def __init__(self, path: str | PathLike[str], metadata: Mapping[str, object] | None = None) -> None:
        """Start a file.

        Args:
            path: the file.
            metadata: any JSON values by name, written in this order; at most 16 MiB of JSON.

        Raises:
            TypeError, ValueError: metadata that JSON cannot represent.
            OSError: the directory cannot be written to.
        """
        self._path = as_path(path, order="Writer(path, metadata)", is_written=True)
        check_unreserved(metadata)
        self.metadata: dict[str, object] = dict(metadata or {})
        encode(self.metadata)  # refuse wrong metadata now rather than after hours of adding tensors
        warn_of_foreign_name(self._path)
        self._stream = StreamWriter(self._path)
        self._closed = False
        self._tensors: list[tuple[str, str, tuple[int, ...]]] = []

    def add(self, name: str, tensor: torch.Tensor | np.ndarray | Quantized) -> None:
        """Write one tensor.

        Args:
            name: a name that was not added before.
            tensor: a torch tensor (any device), a NumPy array (bfloat16 through ml_dtypes), or
                `apr.Quantized`.

        Raises:
            TypeError: the value is not a tensor or has a dtype that the format does not have.
            AprError: a name that was added before, a name or shape that the format does not allow, or a
                closed writer. The writer is unchanged and accepts other tensors.
            OSError: writing failed, for example on a full disk. Nothing more can be added.
        """
        spec = spec_of(name, tensor)
        dtype, shape = stored_as(spec.dtype, spec.shape)
        self._stream.add(spec.name, dtype, shape, bytes_of(tensor))
        if dtype != spec.dtype:
            self._tensors.append((spec.name, spec.dtype, spec.shape))

    def close(self) -> None:
        """Write the file, flush it to the disk and put it in place. A second call does nothing.

        Raises:
            TypeError, ValueError: metadata that JSON cannot represent. Correct them and call `close` again.
            AprError: more than 16 MiB of metadata; or an earlier write failed.
            OSError: the file cannot be written. An existing file is unchanged, unless the message says that
                the new file is in place but its directory was not flushed.
        """
        if self._closed:
            return
        # Encoded again, because the dictionary may have been changed since the writer was made.
        metadata = with_dtypes(self.metadata, self._tensors)
        self._stream.finish(encode(metadata), flags_of(metadata))
        self._closed = True

    def abort(self) -> None:
        """Discard what was added; an existing file stays as it is. After `close` this does nothing."""
        self._stream.abort()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        # After `close` this does nothing. If `close` failed, nothing half-written stays.
        finally:
            self.abort()

    def __repr__(self) -> str:
        return f"<apr.Writer {self._path!r}>"
