"""Small model files of every format that the tests of `apr.formats` share."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np

import apr

IMPORTED = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
FAMILIES = ["llama_tied", "llama_untied", "qwen2_tied", "qwen2_untied"]
# A file for each format, with at least one tensor.
FILES = ["from_gguf_qwen2_tied.apr", "hf_llama_tied/model.safetensors", "llama_untied.gguf"]


def copied(name: str, directory: Path) -> Path:
    """A writable copy of a fixture."""
    target = directory / Path(name).name
    shutil.copyfile(IMPORTED / name, target)
    return target


def safetensors_bytes(entries, values=b"", texts=None) -> bytes:
    header = json.dumps(({"__metadata__": texts} if texts is not None else {}) | entries).encode()
    return struct.pack("<Q", len(header)) + header + values


def sharded(directory: Path, parts: int = 2) -> Path:
    """The index of a safetensors model in several files."""
    from safetensors.numpy import save_file

    weight_map = {}
    for part in range(parts):
        name = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        tensors = {f"model.layers.{part}.w{n}": np.full((3, 4), part + n, np.float32) for n in range(3)}
        save_file(tensors, directory / name)
        weight_map |= dict.fromkeys(tensors, name)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48 * 3 * parts}, "weight_map": weight_map}))
    return index


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def places(path: Path) -> dict[str, tuple[int, int]]:
    """First byte and size of each tensor of a file."""
    from apr.formats.open import open_model

    with open_model(path) as file:
        return {name: (file.info(name).offset, file.info(name).nbytes) for name in file}


def failed(report: apr.Report, name: str | None = None) -> list[apr.Check]:
    return [check for check in report.checks if check.passed is False and name in (None, check.name)]
