"""Read an `.apr` file for an `.apr` or safetensors target: every tensor, training state included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.container.dtypes import QUANTIZED
from apr.container.metadata import HF_TOKENIZER, SHARDING
from apr.convert.plan import Layout
from apr.convert.stream import ModelStream, stream_stored, stream_values
from apr.errors import UsageError
from apr.model.names import TRAINING_PREFIX

if TYPE_CHECKING:
    from apr.container.tensor_file import TensorFile
    from apr.convert.plan import Plan


def read(file: TensorFile, plan: Plan) -> ModelStream:
    """Read all tensors and metadata of an .apr file, in the form in which the target stores them.

    Raises:
        UsageError: the target is one of the files of the source.
    """
    target, options = plan.target, plan.options
    if target.exists() and any(target.samefile(part.path) for part in file.files):
        raise UsageError(
            f"{target}: the target is one of the source files; choose another target", path=target
        )
    to_apr = plan.layout in {Layout.APR, Layout.APR_SHARDS}
    keep_quantized = to_apr and (options.keep_quantized or options.dtype is None)
    tensors, tied, training = [], 0, 0
    for name in file:
        info = file.info(name)
        if info.tied:  # an entry of no bytes, which other formats do not have
            tied += 1
            continue
        if keep_quantized and info.dtype in QUANTIZED:
            tensor = stream_stored(file, name)
        else:
            tensor = stream_values(file, name)
        if name.startswith(TRAINING_PREFIX):
            training += 1  # optimizer moments keep their dtype, so that a run can resume from them
        else:
            tensor = tensor.cast(options.float_dtype, allow_overflow=options.allow_overflow)
        tensors.append(tensor)
    metadata = dict(file.metadata)
    # It describes the files of the source; the target gets its own. Anything but an object is a user's key.
    if isinstance(metadata.get(SHARDING), dict):
        del metadata[SHARDING]
    if not options.tokenizer:
        metadata = {
            key: value
            for key, value in metadata.items()
            if key != HF_TOKENIZER and not key.startswith("tokenizer.")
        }
    notes = []
    if tied:
        notes.append(
            f"{file.path}: left out the output head, which is tied to the embedding and has no values of "
            "its own"
        )
    if training:
        notes.append(
            f"{file.path}: {training} tensors of training state are included; convert to a transformers "
            "directory to leave them out"
        )
    return ModelStream(metadata, tensors, tuple(notes))
