"""Writing an `.apr` file whose tensors become known one by one, in constant memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from apr._core import StreamWriter
from apr.container.metadata import encode
from apr.container.save import bytes_of, flags, spec_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from types import TracebackType

    import numpy as np
    import torch

    from apr.container.quantized import Quantized


class Writer:
    """Writes a file tensor by tensor; what is at `path` is replaced only by `close`, once all is there.

    Memory holds the tensor at hand and the index, however large the file becomes: data go to a file
    without a name in the same directory first, so that twice the space is needed until `close` is done.
    The data keep the order of the `add`s, the index is sorted by name. The same adds are the same bytes.

    As a context manager it closes at the end of the block; an exception in the block, Ctrl-C among them,
    leaves the old file and nothing else. Without `close` nothing is written.

        with apr.Writer("model.apr", metadata={"architecture": "qwen2"}) as writer:
            for name, tensor in tensors:
                writer.add(name, tensor)

    Attributes:
        metadata: what is written; a dict that may be changed until `close`.
    """

    def __init__(self, path: str | PathLike[str], metadata: Mapping[str, object] | None = None) -> None:
        """Start writing.

        Raises:
            TypeError, ValueError: metadata that JSON has no form for.
            OSError: the directory cannot be written to.
        """
        self.metadata: dict[str, object] = dict(metadata or {})
        encode(self.metadata)  # refused now rather than after hours of adding
        self._path = os.fspath(path)
        self._stream = StreamWriter(self._path)
        self._closed = False

    def add(self, name: str, tensor: torch.Tensor | np.ndarray | Quantized) -> None:
        """Write one tensor: torch (any device), NumPy (bfloat16 through ml_dtypes), or stored bytes.

        Raises:
            TypeError: no tensor, or of a dtype that the format lacks.
            AprError: a name that was added before, a name or shape that the format cannot hold, or the
                writer is closed. The writer is then as it was.
            OSError: the disk is full, for example. Nothing more can be added then.
        """
        spec = spec_of(name, tensor)
        self._stream.add(spec.name, spec.dtype, spec.shape, bytes_of(tensor))

    def close(self) -> None:
        """Write the file, flush it to the disk and put it in its place. Closing twice is closing once.

        Raises:
            TypeError, ValueError: metadata that JSON has no form for; they may be mended, and closed again.
            AprError: metadata above 16 MiB; or writing failed before.
            OSError: the file cannot be written; what was at `path` is as it was, unless the message says
                that the new file is there but its directory was not flushed.
        """
        if self._closed:
            return
        self._stream.finish(encode(self.metadata), flags(self.metadata))
        self._closed = True

    def abort(self) -> None:
        """Forget what was added; what was at `path` stays. After `close` it does nothing."""
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
        finally:
            self.abort()

    def __repr__(self) -> str:
        return f"<apr.Writer {self._path!r}>"
