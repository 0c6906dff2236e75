"""The `apr` command: find the subcommand, parse its flags, run it, and turn errors into exit codes.

Each module beside this one holds one command: a dataclass named `Command`, or a union of them for
subcommands. Its fields are the flags, its docstring is the help, and its `run()` returns the exit code.
The module may define three functions. `default(arguments)` returns a `Command` whose values apply where a
flag is not typed. `refusal(error)` returns the JSON that `--json` prints for an error. And
`elsewhere(command, arguments)` runs the command in other processes and returns their exit code, or None to
run it in this one.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Protocol, TextIO

from apr.errors import EXIT_UNFORESEEN, EXIT_USAGE, AprError, RefusedError, exit_code, messages
from apr.train.parallel.launched import is_silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The module and one line of help for each command. Modules are imported only when their command runs, so that
# `apr --help` loads neither torch nor numpy.
COMMANDS = {
    "inspect": ("apr.cli.inspect", "show what a model file contains: architecture, parameters, dtypes"),
    "tensors": ("apr.cli.tensors", "list the tensors of a file"),
    "verify": ("apr.cli.verify", "check model files: .apr, safetensors and GGUF"),
    "seal": ("apr.cli.seal", "record checksums of model files, for apr verify"),
    "diff": ("apr.cli.diff", "compare the metadata and tensors of two files of any format"),
    "stamp": ("apr.cli.stamp", "change the metadata of a file"),
    "convert": ("apr.cli.convert", "convert GGUF, safetensors and transformers models to .apr, and back"),
    "init": ("apr.cli.init", "create a model file with random weights"),
    "tokenize": ("apr.cli.tokenize", "train a tokenizer, or encode text to token shards"),
    "repair-manifest": ("apr.cli.repair_manifest", "rebuild the manifest of a shard directory"),
    "pretrain": ("apr.cli.pretrain", "train a model from a file or from scratch"),
    "evaluate": ("apr.cli.evaluate", "measure the loss of a model file on token shards"),
    "generate": ("apr.cli.generate", "continue a text, or answer in a chat, with a model file"),
    "report": ("apr.cli.report", "write an HTML page about a training run, or compare two"),
    "contracts": ("apr.cli.contracts", "check whether a training run met the requirements in a YAML file"),
}

SUBCOMMANDS = {
    "tokenize": ("train", "encode", "decode", "merge", "import"),
    "contracts": ("lint", "check", "list"),
}

# 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED = 130


class Runnable(Protocol):
    """A parsed command."""

    def run(self) -> int:
        """Run the command and return its exit code."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run `apr ARGV…` and return the exit code."""
    _accept_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_overview())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        from apr import __version__

        print(f"apr {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"apr: error: {_unknown(name, arguments[1:])}", file=sys.stderr)
        return EXIT_USAGE
    return run(name, arguments[1:])


def _unknown(name: str, others: Sequence[str]) -> str:
    """Return what to say about the first word if it is not a command."""
    from apr.meant import meant_commands

    if name.startswith("-"):
        close, what = meant_commands(name, ["--help", "--version"]), "option"
        command = next((word for word in others if word in COMMANDS), None)
        if command is not None:
            return f"unknown option {name!r}; flags follow the command, as in apr {command} {name}"
    else:
        # A subcommand may be typed alone: apr encode.
        names = [
            *COMMANDS,
            *(f"{command} {word}" for command, words in SUBCOMMANDS.items() for word in words),
        ]
        close, what = meant_commands(name, [*names, "--help", "--version"]), "command"
    hint = f"did you mean {' or '.join(f'apr {word}' for word in close)}?" if close else "see apr --help"
    return f"unknown {what} {name!r}; {hint}"


def run(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command by its name; `argv` defaults to the process's own arguments."""
    _accept_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    code = _run(name, arguments)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    return code


def _accept_any_text() -> None:
    """Make the standard streams escape what their encoding lacks, and exist where they were closed."""
    # In an ASCII locale a name with other letters ended in a traceback, and so did every output with a closed
    # descriptor.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (a device, for as long as we run)
        elif isinstance(stream, TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
            stream.reconfigure(errors="backslashreplace")


def _flush(stream: TextIO) -> None:
    """Flush a stream, or drop what is left if its reader or its terminal is gone.

    The interpreter flushes again when it exits; on a broken pipe it would then exit with code 120.
    """
    try:
        stream.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EIO:
            raise
        with open(os.devnull, "wb") as devnull:  # noqa: PTH123 (a device)
            os.dup2(devnull.fileno(), stream.fileno())


def _run(name: str, arguments: list[str]) -> int:
    from apr.cli._flags import parse

    try:
        module = import_module(COMMANDS[name][0])
        default = module.default(arguments) if hasattr(module, "default") else None
        with _one_voice():
            command: Runnable = parse(module.Command, f"apr {name}", arguments, default)
        code = module.elsewhere(command, arguments) if hasattr(module, "elsewhere") else None
        return command.run() if code is None else code
    except SystemExit as stop:  # the parser: 0 after --help, 2 for wrong usage
        return stop.code if isinstance(stop.code, int) else EXIT_UNFORESEEN
    except KeyboardInterrupt:
        print(f"apr {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe: `apr tensors FILE | head`
        return 0
    except (AprError, RefusedError, OSError, ModuleNotFoundError) as error:
        code = exit_code(error)
        # A defect of apr itself keeps its traceback.
        if code == EXIT_UNFORESEEN:
            raise
        with suppress(BrokenPipeError), _one_voice():
            for line in messages(error):
                print(f"apr {name}: error: {line}", file=sys.stderr)
            if "--json" in arguments:
                print(_refusal(name, error))
        return code


@contextmanager
def _one_voice() -> Iterator[None]:
    """Print what is wrong with a command in one process only, if torchrun started several that run it."""
    if not is_silent():
        yield
        return
    with open(os.devnull, "w") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):  # noqa: PTH123
        yield


def _refusal(name: str, error: Exception) -> str:
    """Return an error as the JSON object that takes the place of a result."""
    module = import_module(COMMANDS[name][0])
    if hasattr(module, "refusal"):
        return str(module.refusal(error))
    import json

    return json.dumps({"error": "; ".join(messages(error)), "exit_code": exit_code(error)})


def _overview() -> str:
    rows = "\n".join(f"  {name:<17}{text}" for name, (_, text) in COMMANDS.items())
    return (
        f"usage: apr [--help] [--version] COMMAND …\n\n{rows}\n\n"
        "Run `apr COMMAND --help` for the flags of a command and an example."
    )
