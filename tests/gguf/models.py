"""GGUF models that the tests of `apr.gguf` and of its conversion share."""

from math import prod
from pathlib import Path

import numpy as np

from apr.cli import main

DATA = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
MODELS = ["llama_tied", "llama_untied", "qwen2_tied", "qwen2_untied"]
# (type, bytes of one row of 256 values)
QUANTIZED = {"Q4_0": 144, "Q4_1": 160, "Q5_0": 176, "Q8_0": 272, "Q4_K": 144, "Q6_K": 210}
EMBEDDING = [("token_embd.weight", np.ones((8, 256), np.float32))]


def convert(source: Path, target: Path, *flags: str) -> int:
    return main(["convert", str(source), str(target), *flags])


def write_gguf(path, architecture="llama", tensors=None, endianess=None, **changes):
    """A one-layer GGUF model of 256 dimensions; keywords change its keys, None drops one.

    `tensors` are (name, values or bytes or a shape, GGML type where it does not follow).
    """
    import gguf

    keys = {
        "block_count": 1,
        "context_length": 128,
        "embedding_length": 256,
        "feed_forward_length": 256,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": 64,
    } | changes
    writer = gguf.GGUFWriter(str(path), architecture, endianess=endianess or gguf.GGUFEndian.LITTLE)
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    holes = 0
    for name, values, *kind in tensors or EMBEDDING:
        if isinstance(values, tuple):  # a shape: zeros that take no space
            of_block, nbytes = gguf.GGML_QUANT_SIZES[kind[0]]
            holes += prod(values) // of_block * nbytes
            writer.add_tensor_info(name, values, np.dtype("<f4"), holes, raw_dtype=kind[0])
        else:
            writer.add_tensor(name, values, raw_dtype=kind[0] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if holes:
        writer.write_ti_data_to_file()
    else:
        writer.write_tensors_to_file()
    writer.close()
    if holes:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + holes + 64)
    return path


def add_key(writer, key, value):
    """Add a key with the type that Python's value has; a list is an array."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def with_keys(source, target, *, of_architecture=True, **changes):
    """Copy a GGUF file with other keys of its architecture; None drops one, and a list is an array.

    With `of_architecture=False` the keys are given whole.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    if of_architecture:
        changes = {f"{architecture}.{key}": value for key, value in changes.items()}
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key not in changes and not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for key, value in changes.items():
        if value is not None:
            add_key(writer, key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
