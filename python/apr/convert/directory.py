"""Replace a directory as a whole, and only if it holds nothing but a model."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from apr.convert.hf_files import CONFIG, GENERATION, TEMPLATES, content_of
from apr.errors import RefusedError
from apr.files import beside, sync_directory
from apr.held import held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The files that conversions write to a directory, beside those of tokenizers.
_WRITTEN = {CONFIG, GENERATION}
_WEIGHTS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.(safetensors|apr)|model\.(safetensors|apr)\.index\.json")
# Errors that only writing has.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# In the work directory: the earlier content of the target, and the new content while it is written.
_OLD = "old"
_WORK_ENTRY = re.compile(rf"new-[0-9a-f]{{16}}|{_OLD}")


def check_replaceable(target: Path, *, force: bool) -> None:
    """Refuse to replace a directory that must stay.

    Args:
        target: the directory to write.
        force: whether an existing directory may be replaced if all its files are ones that conversions write.

    Raises:
        RefusedError: the directory is not empty and `force` is not set, or it holds other files.
        NotADirectoryError: `target` exists and is not a directory.
    """
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(20, "not a directory", str(target))
    existing = sorted(target.iterdir()) if target.is_dir() else []
    if existing and not force:
        raise RefusedError(
            f"{target}: the directory exists and is not empty; pass --force to replace it", path=target
        )
    templates = target / TEMPLATES
    if templates in existing and templates.is_dir() and not templates.is_symlink():
        existing[existing.index(templates) : existing.index(templates) + 1] = sorted(templates.iterdir())
    for path in existing:
        name = path.relative_to(target).as_posix()
        # Everything else stays, so that a mistyped target costs nothing. A run's checkpoints have other
        # names.
        if path.is_dir() or not (name in _WRITTEN or _WEIGHTS.fullmatch(name) or content_of(name)):
            raise RefusedError(
                f"{target}: --force replaces only models, but the directory holds {name}; move it away or "
                "choose another directory",
                path=target,
            )


@contextmanager
def replacing_directory(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `path` when the block ends without an error.

    Until then, an earlier directory stays as it is. All work is done in `.NAME.apr-convert` beside it, which
    one conversion at a time holds; what a killed conversion leaves there, the next one restores or deletes.
    If `path` is a symbolic link, the directory it points to is replaced. The modes of the directory and of
    files of the same names stay.

    Args:
        path: the directory to write.
        force: whether an existing model directory may be replaced.

    Raises:
        RefusedError: another conversion writes to `path`, or `check_replaceable` refuses it, now or at the
            end.
        OSError: the directory cannot be written; the earlier one is unchanged.
    """
    path = path.resolve()
    # One work directory per target, with a lock. Two conversions that shared an unlocked one could publish
    # what the other had half written.
    work = beside(path, ".apr-convert", prefix=".")
    with _errors_about(path, work), _held(work, path):
        _recover(work, path)
        check_replaceable(path, force=force)
        # A random name: on file systems without locks, two conversions get here, and neither must publish
        # what the other is still writing.
        new, old = work / f"new-{secrets.token_hex(8)}", work / _OLD
        try:
            new.mkdir()
            yield new
            # The files must be on the disk before the directory gets its name, and the name before the old
            # files are deleted: after a loss of power, one of the two is complete.
            sync_directory(new)
            # Files may have appeared in the target during the minutes that a large model takes.
            check_replaceable(path, force=force)
            if path.exists():
                _copy_modes(path, new)
                path.rename(old)
            new.rename(path)
        except BaseException:  # also KeyboardInterrupt, between the two renames too
            shutil.rmtree(new, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        sync_directory(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def _copy_modes(old: Path, new: Path) -> None:
    """Give a directory and its files the modes of those that they replace: a private model stays private."""
    for path in new.iterdir():
        with suppress(FileNotFoundError):
            shutil.copymode(old / path.name, path)
    shutil.copymode(old, new)


@contextmanager
def _errors_about(path: Path, work: Path) -> Iterator[None]:
    """Make errors of writing name the target where they name something in `work`, or no file at all."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            # Python's `write` names no file; nor does its `read`, of another file.
            is_of_target = error.errno in _NO_ROOM
        else:
            is_of_target = os.fspath(error.filename).startswith(str(work))
        if is_of_target:
            error.filename = str(path)
        raise


@contextmanager
def _held(work: Path, path: Path) -> Iterator[None]:
    """Create the work directory, hold it for this process, and remove it at the end."""
    with ExitStack() as stack:
        while True:
            work.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(held(work, "another conversion", "wait for it"))
                break
            except FileNotFoundError:  # the conversion that held it removed it after our mkdir
                continue
            except RefusedError:
                raise RefusedError(
                    f"{path}: another conversion is writing to it; wait, or choose another target", path=path
                ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # not empty: _recover found files of someone else in it
                work.rmdir()


def _recover(work: Path, path: Path) -> None:
    """Restore the directory that a killed conversion had moved away, and delete what it was writing."""
    entries = sorted(work.iterdir())
    # Checked before anything is deleted. Through a link, the entries would be in another place.
    for entry in entries:
        if work.is_symlink() or not _WORK_ENTRY.fullmatch(entry.name):
            raise RefusedError(
                f"{work}: contains {entry.name}, which apr convert did not write; move it away", path=work
            )
    for entry in entries:
        if entry.name == _OLD and not path.exists():
            entry.rename(path)
        else:
            shutil.rmtree(entry)
