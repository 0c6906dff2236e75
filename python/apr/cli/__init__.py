"""The `apr` command: finds the subcommand, parses its flags, runs it, turns errors into exit codes.

Each module beside this one holds one command: a dataclass (or a union of them, for subcommands) named
`Command`, whose fields are the flags, whose docstring is the help, and whose `run()` gives the exit code.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from apr.errors import AprError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

# name: (module, one line of help)
COMMANDS = {
    "inspect": ("apr.cli.inspect", "what a model file is: kind, architecture, parameters, dtypes, checksums"),
    "tensors": ("apr.cli.tensors", "list the tensors of a file"),
    "verify": ("apr.cli.verify", "check files byte for byte"),
    "convert": ("apr.cli.convert", "GGUF to .apr"),
    "tokenize": ("apr.cli.tokenize", "train a vocabulary, encode a corpus to shards"),
    "repair-manifest": ("apr.cli.repair_manifest", "rebuild the manifest of a shard directory"),
    "pretrain": ("apr.cli.pretrain", "train from an .apr file or from scratch"),
    "evaluate": ("apr.cli.evaluate", "held-out loss of a model file on shards"),
    "contracts": ("apr.cli.contracts", "lint contracts, check them against a run"),
}

EXIT_UNFORESEEN, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_NOT_VALID, EXIT_IO, EXIT_UNAVAILABLE = 1, 2, 3, 4, 7, 9
EXIT_INTERRUPTED = 130
# What to install for a module that is not there; everything else belongs to the train extra.
_EXTRA = {"transformers": "hf", "safetensors": "hf"}


class Runnable(Protocol):
    """What a parsed command offers."""

    def run(self) -> int:
        """Do it, and return the exit code."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run `apr ARGV…` and return the exit code."""
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
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _parse(name, arguments).run()
    except SystemExit as stop:  # tyro: 0 after --help, 2 for wrong usage
        return stop.code if isinstance(stop.code, int) else EXIT_UNFORESEEN
    except KeyboardInterrupt:
        print(f"apr {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away: `apr tensors FILE | head`
        sys.stderr.close()
        return 0
    except (AprError, RefusedError, OSError, ModuleNotFoundError) as error:
        code = exit_code(error)
        if code == EXIT_UNFORESEEN:
            raise
        print(f"apr {name}: error: {message(error)}", file=sys.stderr)
        return code


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an error, as the ecosystem's own tools number them."""
    if isinstance(error, RefusedError):
        return error.exit_code
    if isinstance(error, AprError):
        return EXIT_NOT_VALID
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return EXIT_NOT_FOUND
    if isinstance(error, OSError):
        return EXIT_IO
    if isinstance(error, ModuleNotFoundError) and not (error.name or "apr").startswith("apr"):
        return EXIT_UNAVAILABLE
    return EXIT_UNFORESEEN


def message(error: BaseException) -> str:
    """The error as one line for a person."""
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, AprError):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = _EXTRA.get(error.name.partition(".")[0], "train")
        return f"{error.name} is not installed: pip install 'apr[{extra}]' (in a checkout: uv pip install '.[{extra}]')"
    return " ".join(str(error).split())


def _parse(name: str, arguments: list[str]) -> Runnable:
    import tyro

    command = import_module(COMMANDS[name][0]).Command
    parsed: Runnable = tyro.cli(command, prog=f"apr {name}", args=arguments)
    return parsed


def _overview() -> str:
    rows = "\n".join(f"  {name:<17}{text}" for name, (_, text) in COMMANDS.items())
    return f"usage: apr COMMAND …\n\n{rows}\n\napr COMMAND --help shows a command's flags and an example."
