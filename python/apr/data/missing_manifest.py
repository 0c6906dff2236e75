"""The manifest of a shard directory that has none, in the plain case.

Someone whose encoder died asks this of directories by the dozen, and it needs a listing and a small file:
nothing is imported here that takes longer than that. Whatever is not plain is left to `apr.data.rebuild`.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST = "manifest.json"
SCHEMA = "pretokenize-bin-v1"
SOURCE = "repair-manifest"
REBUILT = "rebuilt from the shards; how many documents they hold, and whether they are all, is not known"
TOKEN_SIZE = 4
# Who may hold a directory of shards.
SHARD_WRITERS = "another encoding or repair"
# What JSON calls them.
_WORDS = {"None": "null", "True": "true", "False": "false"}
# Digits of a shard's number.
_WIDTHS = (4, 5, 6)


def write_missing_manifest(arguments: list[str]) -> str | None:
    """Do what `apr repair-manifest DIR` does, and give what it says; None where the case is not plain.

    Plain are a directory without a manifest whose shards are all whole, and no flags.
    """
    directory = _directory(arguments)
    if directory is None:
        return None
    from apr.errors import RefusedError
    from apr.held import held

    try:
        with held(directory, SHARD_WRITERS, "wait for it"):
            return _write_missing(directory)
    except (RefusedError, FileNotFoundError, NotADirectoryError):
        return None


def _write_missing(directory: str) -> str | None:
    sizes = _whole_shards(directory)
    if sizes is None:
        return None
    from apr.files import write_atomically

    tokens = sum(sizes) // TOKEN_SIZE
    made = rebuilt({}, {}, len(sizes), tokens, note=REBUILT)
    write_atomically(os.path.join(directory, MANIFEST), _plain_bytes(made))  # noqa: PTH118
    return "\n".join([summary(directory, len(sizes), tokens), outcome("rebuilt", len(sizes), tokens)])


def rebuilt(
    base: Mapping[str, object], more: Mapping[str, object], shards: int, tokens: int, *, note: str
) -> dict[str, object]:
    """A rebuilt manifest: what is known from an old one, what the files say, what else was found."""
    return {
        **base,
        "schema": SCHEMA,
        "complete": True,
        "shard_count": shards,
        "total_tokens": tokens,
        "vocab_size": base.get("vocab_size"),
        "tokenizer_dir": base.get("tokenizer_dir"),
        **more,
        "repair": True,
        "repaired_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "source": SOURCE,
        "note": note,
    }


def manifest_bytes(manifest: Mapping[str, object]) -> bytes:
    """The manifest as it stands on disk: indented ASCII JSON, key order kept."""
    import json

    return (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode()


def _plain_bytes(manifest: Mapping[str, object]) -> bytes:
    """As `manifest_bytes`, of numbers, truths, nothing and text without quotes: json takes 4 ms to import."""
    texts = ((key, f'"{value}"' if isinstance(value, str) else str(value)) for key, value in manifest.items())
    lines = [f'  "{key}": {_WORDS.get(text, text)}' for key, text in texts]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def summary(path: str | os.PathLike[str], shards: int, tokens: int) -> str:
    """What is there, in a line."""
    size = f"{TOKEN_SIZE * tokens / 1e6:,.1f} MB"
    return f"{os.fspath(path)}: {counted(shards, 'shard')}, {counted(tokens, 'token')}, {size}"


def outcome(how: str, shards: int, tokens: int) -> str:
    """What was done, in a line."""
    return f"{MANIFEST}: {how}, {counted(shards, 'shard')}, {counted(tokens, 'token')}"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def _directory(arguments: list[str]) -> str | None:
    named = arguments[1:] if len(arguments) == 2 and arguments[0] == "--output" else arguments
    return named[0] if len(named) == 1 and not named[0].startswith("-") else None


def _whole_shards(directory: str) -> list[int] | None:
    """The sizes of the shards in bytes; None where a manifest is there, or anything but whole shards is."""
    found = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name == MANIFEST:
                    return None
                if entry.name.endswith(".bin"):
                    if not entry.is_file(follow_symlinks=False):
                        return None
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
    except OSError:
        return None
    width = len(min(found, default="")) - len("shard-.bin")
    expected = [f"shard-{number:0{width}}.bin" for number in range(len(found))] if width in _WIDTHS else []
    if (
        not found
        or sorted(found) != expected
        or any(not size or size % TOKEN_SIZE for size in found.values())
    ):
        return None
    return list(found.values())
