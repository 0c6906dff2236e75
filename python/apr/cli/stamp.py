"""`apr stamp`: change the metadata of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from apr.cli._console import console
from apr.container.stamp import stamp
from apr.errors import AprError, UsageError
from apr.options import Alias
from apr.path_arguments import foreign_name
from apr.plurals import counted


@dataclass(frozen=True)
class Command:
    """Copy a file with changed metadata. Tensor bytes are verified and copied as they are.

    A value is read as JSON if it is valid JSON, and as text otherwise: layers=24 sets a number, 'tags=["a"]'
    a list, author=Ada text, and 'version="2"' text as well. KEY=null removes a key.

    Example: apr stamp model.apr author=Ada license=mit -o stamped.apr
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The .apr file to read."""
    changes: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KEY=VALUE…")]
    """The metadata keys to set."""
    out: Annotated[Path, Alias("-o")]
    """The file to write. It may be FILE, which is replaced only once the new file is complete."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Write the file and print what changed."""
        changes = dict(_change(text) for text in self.changes)
        if not changes:
            raise UsageError("no change given; name at least one KEY=VALUE")
        problem = foreign_name(str(self.out))
        if problem is not None:
            raise UsageError(problem, path=self.out)
        try:
            stamp(self.file, changes, self.out)
        except AprError:  # also a ValueError: the file is not valid, which is not a mistake in the arguments
            raise
        except ValueError as error:  # a key or value that JSON cannot hold
            raise UsageError(str(error)) from None
        removed = [key for key, value in changes.items() if value is None]
        if self.json:
            kept = {key: value for key, value in changes.items() if value is not None}
            print(json.dumps({"file": str(self.file), "out": str(self.out), "set": kept, "removed": removed}))
        else:
            console().print(
                f"{self.out}: {counted(len(changes) - len(removed), 'key')} set, {len(removed)} removed"
            )
        return 0


def _change(text: str) -> tuple[str, object]:
    """Return the key and the value of KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"{text!r} is not of the form KEY=VALUE")
    try:
        return key, json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return key, value


def _refuse_constant(text: str) -> NoReturn:
    """Refuse NaN and infinities, which Python reads but JSON does not have: they stay text."""
    raise ValueError(text)
