"""`apr inspect`: what a file is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.filesize import decimal

from apr.cli._console import console, printable, show, table
from apr.cli._keys import KeyFlags
from apr.model.inspect import inspect

# Longer metadata values are shown by their beginning.
_SHOWN = 72


@dataclass(frozen=True)
class Command(KeyFlags):
    """Say what a file is: kind, version, architecture, parameters, dtypes, flags, checksums, metadata.

    Exits 0 whenever the file opens, and says so if a checksum is wrong; `apr verify` makes that an exit
    code.

    Example: apr inspect model.apr
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The .apr file, or an index or directory of several."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out the checksum over all bytes."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output, metadata whole."""

    def run(self) -> int:
        """Print what it is."""
        found: dict[str, Any] = inspect(
            self.file, verify="structure" if self.quick else "full", **self.keys()
        )
        if self.json:
            print(json.dumps(found))
            return 0
        verdict = "valid" if found["valid"] else "NOT VALID: apr verify says what is wrong"
        console().print(
            f"{printable(str(self.file))}: {verdict}", style="bold green" if found["valid"] else "bold red"
        )
        rows = table()
        for label, text in _rows(found):
            rows.add_row(f"  {printable(label)}", printable(text))
        show(rows)
        return 0


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    flags = [name for name, is_set in found["flags"].items() if is_set]
    flags += [f"bit {bit} (unknown)" for bit in found["unknown_flags"]]
    footer = {True: "right", False: "WRONG", None: "not checked"}[found["checksum_valid"]]
    stored = found["footer_checksum"]
    rows = [
        ("format", f"{found['format']} (version {found['version']}), a {found['kind']}"),
        ("size", f"{decimal(found['size_bytes'])} ({found['size_bytes']} bytes)"),
        ("architecture", _architecture(found)),
        ("parameters", f"{found['param_count']:,} in {found['tensor_count']} tensors"),
        ("dtypes", ", ".join(f"{dtype} ({tensors})" for dtype, tensors in found["dtypes"].items()) or "none"),
        ("flags", ", ".join(flags) or "none"),
    ]
    if found["v1"]:
        rows += _v1(found["v1"])
    if found["files"]:
        rows.append(("files", f"{len(found['files'])}, their footers {footer}"))
    else:
        header = found["header_checksum"]
        rows.append(("header", f"CRC32 {header}, right" if header else "no checksum of its own"))
        none = "none: the file's bytes cannot be verified"
        rows.append(("footer", f"CRC32 {stored}, {footer}" if stored else none))
    if found["reserved"]:
        rows.append(("reserved", f"not zero: {found['reserved']}"))
    rows.append(("metadata", f"{len(found['metadata'])} keys"))
    return rows + [(f"  {key}", _shortened(value)) for key, value in found["metadata"].items()]


def _v1(found: dict[str, Any]) -> list[tuple[str, str]]:
    sizes = f"{found['uncompressed_size']} bytes, compression {found['compression']}"
    locked = ", encrypted: no key was given" if found["locked"] else ", decrypted" * found["encrypted"]
    rows = [
        ("model type", found["model_type"]),
        ("quality", f"{found['quality']} of 100"),
        ("payload", f"{sizes}, {found['payload_size']} stored{locked}"),
    ]
    by = f"by {found['public_key']}, {found['signature']}"
    return [*rows, ("signature", by if found["signature"] else "none")]


def _architecture(found: dict[str, Any]) -> str:
    facts = {
        "layers": found["num_layers"],
        "heads": found["num_heads"],
        "KV heads": found["num_kv_heads"],
        "hidden": found["hidden_size"],
        "vocabulary": found["vocab_size"],
    }
    sizes = ", ".join(f"{what} {value}" for what, value in facts.items() if value is not None)
    return ": ".join(filter(None, [str(found["architecture"] or "unknown"), sizes]))


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _SHOWN:
        return text
    what = f"{len(value)} items" if isinstance(value, (list, dict)) else f"{len(text)} characters"
    return f"{text[:_SHOWN]}… ({what})"
