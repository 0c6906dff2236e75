"""The `apr` command: finds the subcommand, parses its flags, runs it, turns errors into exit codes.

Each module beside this one holds one command: a dataclass (or a union of them, for subcommands) named
`Command`, whose fields are the flags, whose docstring is the help, and whose `run()` gives the exit code. It
may have `flags_from_file`, flags that come before those that were typed, and `refusal`, an error as its JSON.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Protocol, TextIO

from apr.errors import EXIT_UNFORESEEN, EXIT_USAGE, AprError, RefusedError, exit_code, messages

if TYPE_CHECKING:
    from collections.abc import Sequence

# name: (module, one line of help)
COMMANDS = {
    "inspect": ("apr.cli.inspect", "what a model file is: kind, architecture, parameters, dtypes, checksums"),
    "tensors": ("apr.cli.tensors", "list the tensors of a file"),
    "verify": ("apr.cli.verify", "check files byte for byte"),
    "diff": ("apr.cli.diff", "what differs between two files: metadata, tensors, values"),
    "stamp": ("apr.cli.stamp", "change the metadata of a file, and nothing else"),
    "convert": ("apr.cli.convert", "GGUF, safetensors and transformers directories to .apr, and back"),
    "init": ("apr.cli.init", "a freshly initialized model file"),
    "tokenize": ("apr.cli.tokenize", "train a vocabulary, encode a corpus to shards"),
    "repair-manifest": ("apr.cli.repair_manifest", "rebuild the manifest of a shard directory"),
    "pretrain": ("apr.cli.pretrain", "train from an .apr file or from scratch"),
    "evaluate": ("apr.cli.evaluate", "held-out loss of a model file on shards"),
    "contracts": ("apr.cli.contracts", "lint contracts, check them against a run"),
}

EXIT_INTERRUPTED = 130


class Runnable(Protocol):
    """What a parsed command offers."""

    def run(self) -> int:
        """Do it, and return the exit code."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run `apr ARGV…` and return the exit code."""
    _take_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_overview())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        from apr import __version__

        print(f"apr {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"apr: error: no such command: {name!r} (see apr --help)", file=sys.stderr)
        return EXIT_USAGE
    return run(name, arguments[1:])


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command by its name; `argv` defaults to the process's own arguments."""
    _take_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = _run(name, arguments)
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    return code


def _take_any_text() -> None:
    """Let standard output take what its encoding lacks, escaped, and nothing at all where it is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (a device, for as long as we run)
        elif isinstance(stream, TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
            stream.reconfigure(errors="backslashreplace")


def _let_go(stream: TextIO) -> None:
    """Drop what a broken pipe did not take: the interpreter would try again at its end, and exit with 120."""
    try:
        stream.flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 (a device)
            os.dup2(nothing.fileno(), stream.fileno())


def _run(name: str, arguments: list[str]) -> int:
    try:
        return _parse(name, arguments).run()
    except SystemExit as stop:  # tyro: 0 after --help, 2 for wrong usage
        return stop.code if isinstance(stop.code, int) else EXIT_UNFORESEEN
    except KeyboardInterrupt:
        print(f"apr {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away: `apr tensors FILE | head`
        return 0
    except (AprError, RefusedError, OSError, ModuleNotFoundError) as error:
        code = exit_code(error)
        if code == EXIT_UNFORESEEN:
            raise
        with suppress(BrokenPipeError):
            for line in messages(error):
                print(f"apr {name}: error: {line}", file=sys.stderr)
            if "--json" in arguments:
                print(_refusal(name, error))
        return code


def _refusal(name: str, error: Exception) -> str:
    """An error as the JSON object that takes the place of a result."""
    module = import_module(COMMANDS[name][0])
    if hasattr(module, "refusal"):
        return str(module.refusal(error))
    import json

    return json.dumps({"error": "; ".join(messages(error)), "exit_code": exit_code(error)})


def _parse(name: str, arguments: list[str]) -> Runnable:
    import tyro

    module = import_module(COMMANDS[name][0])
    # Of a flag that is given twice the last one counts: what a file says comes first.
    from_file = module.flags_from_file(arguments) if hasattr(module, "flags_from_file") else []
    parsed: Runnable = tyro.cli(module.Command, prog=f"apr {name}", args=[*from_file, *arguments])
    return parsed


def _overview() -> str:
    rows = "\n".join(f"  {name:<17}{text}" for name, (_, text) in COMMANDS.items())
    return f"usage: apr COMMAND …\n\n{rows}\n\napr COMMAND --help shows a command's flags and an example."
