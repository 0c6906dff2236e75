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


@dataclass(frozen=True)
class Command:
    """Change metadata of a file; its tensors stay byte for byte, and are checked on the way.

    A value is JSON where it can be read as JSON, else text: layers=24 is a number, 'tags=["a"]' a list,
    author=Ada text, 'version="2"' text too. KEY=null removes a key.

    Example: apr stamp model.apr author=Ada license=mit -o stamped.apr
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The .apr file."""
    changes: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KEY=VALUE…")]
    """What to set."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The file to write; may be FILE itself, which is replaced only once the new one is whole."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Write the file, and say what was changed."""
        changes = dict(_change(text) for text in self.changes)
        if not changes:
            raise UsageError("name at least one KEY=VALUE")
        try:
            stamp(self.file, changes, self.out)
        except AprError:
            raise
        except ValueError as error:  # a key or value that is no text
            raise UsageError(str(error)) from None
        removed = [key for key, value in changes.items() if value is None]
        if self.json:
            kept = {key: value for key, value in changes.items() if value is not None}
            print(json.dumps({"file": str(self.file), "out": str(self.out), "set": kept, "removed": removed}))
        else:
            console().print(f"{self.out}: {len(changes) - len(removed)} set, {len(removed)} removed")
        return 0


def _change(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"{text!r}: expected KEY=VALUE")
    try:
        return key, json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return key, value


def _no_constant(text: str) -> NoReturn:
    """NaN and infinities are no JSON."""
    raise ValueError(text)
