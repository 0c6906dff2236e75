"""The directory that a conversion writes: it appears whole, and takes the place of nothing but a model."""

from __future__ import annotations

import re
import secrets
import shutil
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from apr.errors import RefusedError
from apr.files import naming, sync_directory
from apr.held import held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG, GENERATION = "config.json", "generation_config.json"
# Metadata keys: config.json and generation_config.json of a transformers directory, kept as objects.
HF_CONFIG, HF_GENERATION = "hf_config", "hf_generation_config"
# The names of a tokenizer's files; what is no text is kept as {"base64": …}.
TOKENIZER_TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)
TOKENIZER_BINARIES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# What is written into a directory, by any conversion.
_WRITTEN = {CONFIG, GENERATION, *TOKENIZER_TEXTS, *TOKENIZER_BINARIES}
_WEIGHTS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.(safetensors|apr)|model\.(safetensors|apr)\.index\.json")
# Beside the target, while it is written: what is new, and then what stood there before.
_OLD = "old"
_OURS = re.compile(rf"new-[0-9a-f]{{16}}|{_OLD}")


def check_replaceable(target: Path, *, force: bool) -> None:
    """Refuse to write a directory where something is that may not go.

    Args:
        target: what is to be written.
        force: whether a model that is there, the files that conversions write and no others, may go.

    Raises:
        RefusedError: it is not empty, without `force`; it holds something else, with it.
        NotADirectoryError: something else has its name.
    """
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(20, "not a directory", str(target))
    there = sorted(target.iterdir()) if target.is_dir() else []
    if there and not force:
        raise RefusedError(f"{target}: is there and not empty: --force replaces it")
    for path in there:
        known = path.name in _WRITTEN or _WEIGHTS.fullmatch(path.name)
        if not known or path.is_dir():
            raise RefusedError(
                f"{target}: holds {path.name}, which no conversion writes: --force replaces only a model; "
                "move it away, or name another directory"
            )


@contextmanager
def replacing_directory(path: Path, *, force: bool) -> Iterator[Path]:
    """An empty directory that takes the place of `path` at the end, with the files that were put into it.

    What stood there before goes only then, and only if `check_replaceable` still lets it. Meanwhile both are
    in `.NAME.apr-convert`, which no second conversion may have; the kernel lets go of it when this one ends.
    What a killed one left there, the next puts back or clears. Of a link, what it names is replaced.

    Raises:
        RefusedError: another conversion writes there; as `check_replaceable`.
        OSError: as writing does; what stood there before is as it was.
    """
    path = path.resolve()
    work = path.with_name(f".{path.name}.apr-convert")
    with naming(path, work), _held(work, path):
        _clear(work, path)
        check_replaceable(path, force=force)
        # A name of its own: where a file system has no locks, nobody publishes what another is writing.
        new, old = work / f"new-{secrets.token_hex(8)}", work / _OLD
        try:
            new.mkdir()
            yield new
            sync_directory(new)
            check_replaceable(path, force=force)
            if path.exists():
                path.rename(old)
            new.rename(path)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(new, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        sync_directory(path.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _held(work: Path, path: Path) -> Iterator[None]:
    """The directory `work` for this process alone, made where need be and removed at the end."""
    with ExitStack() as stack:
        while True:
            work.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(held(work, "another conversion", "wait for it"))
                break
            except FileNotFoundError:  # whoever held it removed it meanwhile
                continue
            except RefusedError:
                raise RefusedError(
                    f"{path}: another conversion is writing it: wait for it, or name another target"
                ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # what is not ours keeps it
                work.rmdir()


def _clear(work: Path, path: Path) -> None:
    """Undo what a killed process left undone: what it was writing goes, what stood there comes back."""
    entries = sorted(work.iterdir())
    for entry in entries:
        if work.is_symlink() or not _OURS.fullmatch(entry.name):
            raise RefusedError(f"{work}: holds {entry.name}, which no conversion put there: move it away")
    for entry in entries:
        if entry.name == _OLD and not path.exists():
            entry.rename(path)
        else:
            shutil.rmtree(entry)
