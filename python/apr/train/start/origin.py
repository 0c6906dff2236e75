"""The model that a run trains: from a file, from scratch, or from the checkpoint that it resumes from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.container.load import load
from apr.container.metadata import HF_TOKENIZER, VOCABULARY
from apr.data.same_tokenizer import facts_of_model
from apr.errors import RefusedError, about
from apr.files import as_utf8
from apr.model.config import ModelConfig
from apr.model.fill import check_values, match
from apr.model.init import PRESETS, is_fresh, load_arch
from apr.model.match import has_head
from apr.model.metadata import carried_metadata

if TYPE_CHECKING:
    from apr.container.tensor_file import TensorFile
    from apr.data.loaded_tokenizer import LoadedTokenizer
    from apr.data.same_tokenizer import TokenizerFacts
    from apr.train.checkpoint.metadata import BaseModel

# Bytes read at a time for the CRC of a file without a footer.
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Origin:
    """A model and where it comes from."""

    model: ModelConfig
    carried: dict[str, Any]
    """Metadata that its checkpoints carry over; `CheckpointMetadata.carried` lists the keys."""
    base: BaseModel | None
    """The file that the run was started from; None from scratch."""
    weights: Path | None
    """The file with its weights; None from scratch."""
    tokenizer: TokenizerFacts | None
    """What is known about the file's own tokenizer; None from scratch."""

    def check_values(self) -> None:
        """Check all values of the weights, as filling a model does.

        Raises:
            WeightsError: values that are not those of weights.
        """
        if self.weights is not None:
            with load(self.weights) as file:
                check_values(self.model, file)


def from_scratch(arch: str, vocab_size: int, tokenizer: LoadedTokenizer | None) -> Origin:
    """Return a model of the sizes of a preset or a YAML file."""
    carried, _ = carried_metadata({})
    if tokenizer is not None:
        carried |= tokenizer.metadata()
    return Origin(load_arch(arch, vocab_size), carried, None, None, None)


def from_file(path: Path, tokenizer: LoadedTokenizer | None) -> Origin:
    """Return the model of a file. Every byte of it is verified.

    Raises:
        AprError: the file is not valid.
        RefusedError: it does not contain a decoder, or only a part of one.
    """
    # All bytes, before hours of training on them: the CRC32 of 1 GB takes 0.13 s on two cores.
    with load(path, verify="full") as file, about(path):
        model = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
        # Names and shapes before any memory is allocated. A loader that filled only some parameters, without
        # the biases, once said nothing.
        sources = match(model, file)
        base = _base_model(file)
        if is_fresh(model, file, sources):
            base["untrained"] = True
        facts = facts_of_model(path, file.metadata)
        return Origin(model, _carried(file, tokenizer), base, path, facts)


def from_checkpoint(path: Path, init: Path | None, arch: str | None) -> Origin:
    """Return the model of a run that is resumed. What the run was started from need not exist any more.

    Args:
        path: the checkpoint to resume from, already verified.
        init: the file that the run was started from, wherever it is now.
        arch: the preset or the file of sizes, if it was started from scratch.

    Raises:
        RefusedError: `init` or `arch` exists and is not what the run was started with.
    """
    with load(path) as file, about(path):
        model = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
        carried = _carried(file, None)
        facts = facts_of_model(path, file.metadata)
        base: BaseModel | None = file.metadata["training"].get("base_model")
    # Neither file is needed any more, but one that exists and differs is a mistake that nobody would notice.
    if init is not None and init.exists():
        with load(init) as file:
            now = _base_model(file)
        # Not the name: the file may have been renamed. Without this check, later checkpoints would name a
        # file as their base that they do not come from.
        if base is None or (now["size"], now["crc32"]) != (base["size"], base["crc32"]):
            raise RefusedError(
                f"{path}: the run was started from {_text(base)}, but --init is now {_text(now)}; "
                "restore that file, or pass --force to start over",
                path=path,
            )
    exists = arch is not None and (arch in PRESETS or Path(arch).exists())
    if arch is not None and exists and load_arch(arch, model.vocab_size) != model:
        raise RefusedError(
            f"{path}: --arch {arch} does not match the run's model; "
            "restore its sizes, or pass --force to start over",
            path=path,
        )
    return Origin(model, carried, base, path, facts)


def _carried(file: TensorFile, tokenizer: LoadedTokenizer | None) -> dict[str, Any]:
    about_model, about_tokenizer = carried_metadata(file.metadata)
    # The file's own vocabulary wins: --tokenizer was only checked to be no larger.
    if tokenizer is not None and not {VOCABULARY, HF_TOKENIZER} & about_tokenizer.keys():
        return about_model | tokenizer.metadata()
    return about_model | about_tokenizer


def _base_model(file: TensorFile) -> BaseModel:
    crc = file.footer
    if crc is None:
        crc = 0
        with Path(file.path).open("rb") as raw:
            while chunk := raw.read(_CHUNK_BYTES):
                # Some old files end without a footer, which is legal.
                crc = zlib.crc32(chunk, crc)
    return {"name": as_utf8(Path(file.path).name), "size": file.nbytes, "crc32": f"{crc:08x}"}


def _text(base: BaseModel | None) -> str:
    if base is None:
        return "no file"
    return f"{base['name']} ({base['size']:,} bytes, CRC-32 {base['crc32']})"
