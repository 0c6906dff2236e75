"""`apr.verify`: check model files of any format, and every byte of sealed ones against their seal."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from apr.container.legacy.keys import refuse_keys
from apr.container.report import Check, Report
from apr.container.verify import verify as verify_apr
from apr.errors import AprError, named_extras
from apr.formats.open import find, format_of, open_model
from apr.formats.seal import SEAL, check_files, read_seal
from apr.path_arguments import as_path
from apr.recognize import recognized

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from typing import Unpack

    from apr.container.legacy.keys import Keys

    OnProgress = Callable[[int, int], None]


@named_extras()
def verify(
    path: str | PathLike[str], *, on_progress: OnProgress | None = None, **keys: Unpack[Keys]
) -> Report:
    """Check a model file, or every file of a model in several files.

    An .apr file is checked byte for byte. safetensors and GGUF store no checksum, so that only their
    structure is checked: header, dtypes, sizes, bounds, overlaps, and an index against its files. If there
    is an `apr-seal.json` beside the file, every byte is checked against it too, whatever the format.

    Damage is reported, not raised, even if it keeps the file from opening. Ctrl-C ends the check soon.

    Args:
        path: an .apr, safetensors or GGUF file; for a model in several files, its index or directory. A
            directory stands for all files of its seal too, and so does the seal.
        on_progress: called from time to time with the bytes that have been read and the bytes in all. An
            exception that it raises ends the check. A sealed .apr file is read, and counted, twice.
        keys: `password`, `recipient_key` and `trusted_key` as in `apr.load`, for an .apr file. Without a key,
            the payload of an encrypted file is not checked, and a signature only proves integrity.

    Raises:
        OSError: a file cannot be opened or read.
        ModuleNotFoundError: the gguf package, which reads GGUF files, is not installed.
    """
    path = as_path(path)
    given = Path(path)
    if given.name == SEAL:
        return _verify_seal(given, on_progress)
    target = (given if given.is_dir() else given.parent) / SEAL
    if not target.is_file():
        return _structure(given, on_progress, keys)
    try:
        seal = read_seal(target)
    except AprError as error:
        report = _structure(given, on_progress, keys)
        return replace(report, checks=(*report.checks, _failed("seal", error)))
    if given.is_file() and format_of(given) is None and given.name in seal.files:
        # A configuration or a tokenizer, sealed beside its model.
        return Report(path, opened=True, checks=tuple(check_files(seal, given, on_progress)))
    try:
        report = _structure(given, on_progress, keys)
    except IsADirectoryError:
        # A directory of several models, or of other files, can be sealed too.
        return _verify_seal(target, on_progress)
    checks = check_files(seal, given, on_progress)
    structure = report.checks
    if all(check.passed is not None for check in checks):
        # The seal takes the place of the checksum that the format lacks.
        structure = tuple(check for check in structure if check.name != "checksum")
    return replace(report, checks=(*structure, *checks))


def _structure(path: Path, on_progress: OnProgress | None, keys: Keys) -> Report:
    """Check a model as far as its format allows."""
    shown = os.fspath(path)
    model = find(path)
    format_ = format_of(model)
    named_as_model = shown.endswith((".apr", ".gguf", ".safetensors"))
    if format_ is None and not named_as_model and model.is_file() and (what := recognized(model)):
        return Report(
            shown, opened=False, checks=(Check("magic", False, f"not a model file, but {what}", offset=0),)
        )
    if format_ in {"apr", None}:
        return verify_apr(path, on_progress=on_progress, **keys)
    try:
        refuse_keys(model, keys)
        with open_model(path) as file:
            return file.verify()
    except AprError as error:
        return Report(shown, opened=False, checks=(_failed("structure", error),))


def _verify_seal(path: Path, on_progress: OnProgress | None) -> Report:
    """Check all files of a seal, and nothing else."""
    try:
        seal = read_seal(path)
    except AprError as error:
        return Report(os.fspath(path), opened=False, checks=(_failed("seal", error),))
    return Report(os.fspath(path), opened=True, checks=tuple(check_files(seal, path.parent, on_progress)))


def _failed(name: str, error: AprError) -> Check:
    # The report shows the path already.
    detail = str(error).removeprefix(f"{error.path}: ")
    return Check(name, False, detail, error.tensor, error.offset)
