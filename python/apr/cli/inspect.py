"""`apr inspect`: show what a model file contains."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.filesize import decimal

from apr.cli._console import console, printable, show, table
from apr.cli._keys import KeyFlags
from apr.files import json_text
from apr.formats.inspect import inspect

# Characters of a metadata value on one line. A tokenizer's vocabulary would fill the screen; --json prints
# all.
_MAX_VALUE = 72


@dataclass(frozen=True)
class Command(KeyFlags):
    """Show what a model file contains: kind, version, architecture, parameters, dtypes, checksums, metadata.

    The exit code is 0 for every file that can be opened, even if a checksum is wrong. Use `apr verify` to get
    an exit code for a damaged file.

    Example: apr inspect model.apr
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The .apr, safetensors or GGUF file, or the index or directory of a model in several files."""
    quick: bool = False
    """Skip the checksum over all bytes, which takes the time to read the file."""
    json: bool = False
    """Print one JSON object to standard output, with all metadata."""

    def run(self) -> int:
        """Print the facts about the file."""
        facts = inspect(self.file, verify="structure" if self.quick else "full", **self.keys())
        if self.json:
            # GGUF's keys may hold NaN, which JSON has not.
            print(json_text(facts))
            return 0
        path = printable(str(self.file))
        if facts["valid"]:
            console().print(f"{path}: valid", style="bold green")
        else:
            console().print(f"{path}: NOT VALID; run apr verify to see why", style="bold red")
        rows = table()
        for label, text in _rows(facts):
            rows.add_row(f"  {printable(label)}", printable(text))
        show(rows)
        return 0


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    flags = [name for name, is_set in facts["flags"].items() if is_set]
    flags += [f"bit {bit} (unknown)" for bit in facts["unknown_flags"]]
    dtypes = [f"{dtype} ({count})" for dtype, count in facts["dtypes"].items()]
    rows = [
        ("format", f"{_format(facts)}, a {facts['kind']}"),
        ("size", f"{decimal(facts['size_bytes'])} ({facts['size_bytes']:,} bytes)"),
        ("architecture", _architecture(facts)),
        ("parameters", f"{facts['param_count']:,} in {facts['tensor_count']} tensors"),
        ("dtypes", ", ".join(dtypes) or "none"),
    ]
    # safetensors and GGUF have no flags.
    if facts["flags"]:
        rows.append(("flags", ", ".join(flags) or "none"))
    if facts["v1"]:
        rows += _v1_rows(facts["v1"])
    footer = {True: "correct", False: "WRONG", None: "not checked"}[facts["checksum_valid"]]
    if not facts["format"].startswith("APR"):
        files = f"{len(facts['files'])} files, " if facts["files"] else ""
        rows.append(("checksum", f"{files}none stored: the bytes cannot be verified without apr seal"))
    elif facts["files"]:
        rows.append(("files", f"{len(facts['files'])}, footer checksums {footer}"))
    else:
        header, stored = facts["header_checksum"], facts["footer_checksum"]
        rows.append(("header", f"CRC32 {header}, correct" if header else "no checksum"))
        rows.append(
            ("footer", f"CRC32 {stored}, {footer}" if stored else "none: the bytes cannot be verified")
        )
    if facts["reserved"]:
        rows.append(("reserved", f"not zero: {facts['reserved']}"))
    rows.append(("metadata", f"{len(facts['metadata'])} keys"))
    return rows + [(f"  {key}", _shortened(value)) for key, value in facts["metadata"].items()]


def _format(facts: dict[str, Any]) -> str:
    if facts["version"] is None:
        return str(facts["format"])
    return f"{facts['format']} (version {facts['version']})"


def _v1_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    payload = (
        f"{facts['uncompressed_size']} bytes, compression {facts['compression']}, "
        f"{facts['payload_size']} bytes stored"
    )
    if facts["locked"]:
        payload += ", encrypted (no key given)"
    elif facts["encrypted"]:
        payload += ", decrypted"
    signature = f"by {facts['public_key']}, {facts['signature']}" if facts["signature"] else "none"
    return [
        ("model type", facts["model_type"]),
        ("quality", f"{facts['quality']} of 100"),
        ("payload", payload),
        ("signature", signature),
    ]


def _architecture(facts: dict[str, Any]) -> str:
    sizes = {
        "layers": facts["num_layers"],
        "heads": facts["num_heads"],
        "KV heads": facts["num_kv_heads"],
        "hidden": facts["hidden_size"],
        "vocabulary": facts["vocab_size"],
    }
    name = str(facts["architecture"] or "unknown")
    shown = [f"{label} {size}" for label, size in sizes.items() if size is not None]
    return f"{name}: {', '.join(shown)}" if shown else name


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _MAX_VALUE:
        return text
    length = f"{len(value)} items" if isinstance(value, (list, dict)) else f"{len(text)} characters"
    return f"{text[:_MAX_VALUE]}… ({length})"
