"""The model that a run trains: from a file, from scratch, or from the checkpoint that it goes on from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.container.load import load
from apr.container.metadata import HF_TOKENIZER, VOCABULARY
from apr.errors import RefusedError
from apr.model.config import ModelConfig
from apr.model.fill import check_values, has_head, match
from apr.model.init import PRESETS, load_arch

if TYPE_CHECKING:
    from apr.container.tensor_file import TensorFile
    from apr.data.tokenizers import LoadedTokenizer

_TOKENIZER_KEYS = ("tokenizer.", "chat_template", "special_tokens", HF_TOKENIZER)
_CARRIED_KEYS = ("name", "license", "data_source", "data_license")


@dataclass(frozen=True)
class Origin:
    """What model it is, and where it comes from."""

    model: ModelConfig
    carried: dict[str, Any]
    """What its checkpoints carry on from the file or the tokenizer."""
    base: dict[str, Any] | None
    """Name, size and CRC-32 of the file that the run was started from."""
    weights: Path | None
    """The file to fill it from; None from scratch."""

    def check_values(self) -> None:
        """Look at all values, as filling a model does.

        Raises:
            WeightsError: some are none that weights have.
        """
        if self.weights is not None:
            with load(self.weights) as file:
                check_values(self.model, file)


def from_scratch(arch: str, vocab_size: int, tokenizer: LoadedTokenizer | None) -> Origin:
    """A preset or a YAML file of sizes."""
    carried = dict.fromkeys(_CARRIED_KEYS[1:]) | (tokenizer.metadata() if tokenizer is not None else {})
    return Origin(load_arch(arch, vocab_size), carried, None, None)


def from_file(path: Path, tokenizer: LoadedTokenizer | None) -> Origin:
    """A model file, which is verified.

    Raises:
        AprError: it is not valid.
        RefusedError: it holds no decoder, or not all of one.
    """
    with load(path, verify="full") as file:
        try:
            model = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
        except RefusedError as error:
            raise type(error)(f"{path}: {error}") from None
        match(model, file)
        return Origin(model, _carried(file, tokenizer), _base(file), path)


def from_checkpoint(path: Path, init: Path | None, arch: str | None) -> Origin:
    """The model of a run that is taken up; the file that it was started from need not be there any more.

    Args:
        path: the checkpoint to go on from, verified.
        init: the file that it was started from, if it was from one; wherever it lies by now.
        arch: the preset or the file of sizes, if it was started from scratch.

    Raises:
        RefusedError: it is there, and another one by now.
    """
    with load(path) as file:
        model = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
        carried, base = _carried(file, None), file.metadata["training"].get("base_model")
    if init is not None and init.exists():
        with load(init) as file:
            now = _base(file)
        if base is None or {**now, "name": base["name"]} != base:
            raise RefusedError(
                f"{path}: the run was started from {_named(base)}, --init is now {_named(now)}: "
                "bring that file back, or take --force to start anew"
            )
    there = arch is not None and (arch in PRESETS or Path(arch).exists())
    if arch is not None and there and load_arch(arch, model.vocab_size) != model:
        raise RefusedError(
            f"{path}: --arch {arch} is not what the run was started with: "
            "bring those sizes back, or take --force to start anew"
        )
    return Origin(model, carried, base, path)


def _carried(file: TensorFile, tokenizer: LoadedTokenizer | None) -> dict[str, Any]:
    inside = {key: value for key, value in file.metadata.items() if key.startswith(_TOKENIZER_KEYS)}
    if tokenizer is not None and not {VOCABULARY, HF_TOKENIZER} & inside.keys():
        inside = tokenizer.metadata()
    carried = dict.fromkeys(_CARRIED_KEYS[1:])
    carried |= {key: file.metadata[key] for key in _CARRIED_KEYS if key in file.metadata}
    return carried | inside


def _base(file: TensorFile) -> dict[str, Any]:
    return {"name": Path(file.path).name, "size": file.nbytes, "crc32": f"{_crc32(file):08x}"}


def _crc32(file: TensorFile) -> int:
    if file.footer is not None:
        return file.footer
    crc = 0
    with Path(file.path).open("rb") as raw:
        while chunk := raw.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _named(base: dict[str, Any] | None) -> str:
    """A base file as a sentence names it."""
    return "no file" if base is None else f"{base['name']} ({base['size']:,} bytes, CRC-32 {base['crc32']})"
