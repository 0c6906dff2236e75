"""An `.apr` file as a model on its way to another file: every tensor, training state too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.container.dtypes import QUANTIZED
from apr.container.metadata import HF_TOKENIZER, SHARDING
from apr.convert.plan import Layout
from apr.convert.stream import Model, from_apr, stored_in
from apr.errors import UsageError
from apr.model.names import TRAINING_PREFIX

if TYPE_CHECKING:
    from apr.container.tensor_file import TensorFile
    from apr.convert.plan import Plan


def read(file: TensorFile, plan: Plan) -> Model:
    """Everything that is in an .apr file, as the target file holds it.

    Raises:
        UsageError: the target is one of the files that are read.
    """
    target, options = plan.target, plan.options
    if target.exists() and any(target.samefile(one.path) for one in file.files):
        raise UsageError(f"{target}: is one of the files that are read: name another file")
    to_apr = plan.layout in {Layout.APR, Layout.APR_SHARDS}
    quantized = stored_in if to_apr and (options.keep_quantized or options.dtype is None) else from_apr
    names = [name for name in file if not file.info(name).tied]
    state = [name for name in names if name.startswith(TRAINING_PREFIX)]
    items = [
        (quantized if file.info(name).dtype in QUANTIZED else from_apr)(file, name).cast(
            None if name.startswith(TRAINING_PREFIX) else options.dtype
        )
        for name in names
    ]
    metadata = {
        key: value
        for key, value in file.metadata.items()
        if key != SHARDING
        and (options.tokenizer or not (key == HF_TOKENIZER or key.startswith("tokenizer.")))
    }
    notes = [
        f"{file.path}: {count} {what}"
        for count, what in (
            (len(file) - len(names), "empty head, tied to the embedding, is left out"),
            (len(state), "tensors of a run's training state go along (a directory leaves them out)"),
        )
        if count
    ]
    return Model(metadata, items, tuple(notes))
