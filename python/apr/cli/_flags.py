"""Parsing the flags of a command, which are the fields of its dataclass.

tyro does the parsing and prints help. A rule in its registry translates the markers of `apr.options`.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import tyro
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from apr.errors import EXIT_USAGE
from apr.options import Metavar, Negatable, Unset, options_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import DataclassInstance

    from apr.options import Option

T = TypeVar("T")

_REGISTRY = ConstructorRegistry()
# Fields of a nested dataclass are a group in help, and their flags have no prefix. Positional arguments are
# named by their fields (SOURCE TARGET) instead of their types (PATH PATH).
_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalMetavarFromFieldName)


def parse(command: type[T], prog: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Parse the flags of a command.

    Args:
        command: a dataclass, or a union of them for subcommands.
        prog: the words before the flags, for help and errors.
        arguments: the words to parse.
        default: the values of flags that are not typed.

    Raises:
        SystemExit: with code 0 after printing help, with code 2 after printing what is wrong with the flags.
    """
    errors = io.StringIO()
    try:
        # tyro suggests nothing when a required flag is missing, perhaps because it is misspelled. Its errors
        # are held back until it is known whether there is a suggestion.
        with redirect_stderr(errors):
            return tyro.cli(
                command,
                prog=prog,
                args=arguments,
                default=MISSING_NONPROP if default is None else default,
                config=_CONFIG,
                registry=_REGISTRY,
            )
    except SystemExit as stop:
        if stop.code == EXIT_USAGE and (suggestions := _suggestions(command, prog, arguments)):
            print(*suggestions, sep="\n", file=sys.stderr)
        else:
            sys.stderr.write(errors.getvalue())
        raise


def parse_known(command: type[T], prog: str, arguments: Sequence[str]) -> T:
    """Parse the flags that a command has, and leave out all others."""
    # Without --help, which is left to the parse of all flags that follows.
    parsed, _ = tyro.cli(
        command, prog=prog, args=arguments, return_unknown_args=True, add_help=False, registry=_REGISTRY
    )
    return parsed


def _suggestions(command: Any, prog: str, arguments: Sequence[str]) -> list[str]:  # noqa: ANN401
    """Return a line for each word of a command line that is meant as a flag or subcommand but is not one."""
    lines = []
    subcommands = {}
    for arm in get_args(command):  # of a union; a dataclass has none
        cls, subcommand = get_args(arm)
        subcommands[subcommand.name] = cls
    flags = ["--help"] if subcommands else _flags(command)
    for word in arguments:
        name = word.partition("=")[0]
        dashed = name.replace("_", "-")  # --num_steps is --num-steps
        if word in subcommands:
            prog, flags, subcommands = f"{prog} {word}", _flags(subcommands[word]), {}
        elif close := get_close_matches(word, subcommands, n=1):
            return [f"{prog}: error: unknown command {word!r}; did you mean {close[0]}?"]
        elif word.startswith("--") and dashed not in flags:
            close = get_close_matches(dashed, flags, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see {prog} --help"
            lines.append(f"{prog}: error: unknown option {name}; {hint}")
    return lines


def _flags(cls: type[DataclassInstance]) -> list[str]:
    """Return the flags of a dataclass and of those nested in it."""
    flags = ["--help"]
    for option in options_of(cls).values():
        if isinstance(option.type, type) and is_dataclass(option.type):
            flags += _flags(option.type)
        elif tyro.conf.Positional not in option.markers:
            flags += [option.flag, *option.aliases]
            if option.type is bool:
                flags.append(option.flag.replace("--", "--no-"))
    return flags


@_REGISTRY.struct_rule
def _options_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe the fields of a dataclass to tyro, with the markers of `apr.options` translated."""
    # tyro wraps a union of subcommands in a dataclass of its own, which has no options.
    if not is_dataclass(info.type) or info.type.__module__.partition(".")[0] == "tyro":
        return None
    hints = get_type_hints(info.type, include_extras=True)
    specs = []
    for field in fields(info.type):
        default = field.default
        if isinstance(info.default, info.type):
            default = getattr(info.default, field.name)
        elif field.default_factory is not MISSING:
            default = field.default_factory()
        elif default is MISSING:
            default = MISSING_NONPROP
        option = options_of(info.type)[field.name]
        markers = [_argument(option)]
        # A switch has a --no- form where it has something to undo: it is on by default, or in a YAML file.
        if option.type is bool and not (field.default is True or default is True or option.marker(Negatable)):
            markers.append(tyro.conf.FlagCreatePairsOff)
        # A switch that may be unset is a switch too: tyro would ask for one of None, True and False.
        if option.type is bool:
            markers.append(tyro.conf.DisallowNone)
        hint: Any = Annotated[(hints[field.name], *markers)]
        # Reading help out of source text is slow, so tyro calls for it only when it shows it.
        text = partial(help_text, info.type, field.name)
        specs.append(StructFieldSpec(name=field.name, type=hint, default=default, helptext=text))
    return StructConstructorSpec(instantiate=info.type, fields=tuple(specs))


def _argument(option: Option) -> object:
    """Return tyro's description of an option: its names in the order of help, its metavar and default."""
    description: dict[str, Any] = {}
    if option.aliases:
        # tyro lists aliases before the name. So that the main name precedes its long aliases, it is declared
        # as an alias itself, and the last alias as the name.
        in_order = sorted([option.flag, *option.aliases], key=lambda flag: flag.startswith("--"))
        description = {"aliases": tuple(in_order[:-1]), "name": in_order[-1].removeprefix("--")}
    metavar = option.marker(Metavar)
    if metavar is not None:
        description["metavar"] = metavar.word
    elif option.optional and option.type is not bool:
        # tyro would show `{None}|PATH`.
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(option.type, set()))
        if isinstance(spec, PrimitiveConstructorSpec):
            description["metavar"] = spec.metavar
    return tyro.conf.arg(**description, help_behavior_hint=partial(_default_hint, option))


def _default_hint(option: Option, default: str) -> str:
    """Return what help shows as an option's default, which tyro passes as text."""
    unset = option.marker(Unset)
    if default in {"None", ""}:
        if unset is None:
            return "(required)" if option.required else "(optional)"
        default = unset.meaning
    elif option.type is bool:
        default = "on" if default == "True" else "off"
    return f"(default: {default})"


def help_text(cls: type, name: str) -> str:
    """Return the text below a field of a dataclass or of its bases, as one line."""
    return next((texts[name] for base in cls.__mro__ if name in (texts := _help_texts(base))), "")


@cache
def _help_texts(cls: type) -> dict[str, str]:
    import docstring_parser

    if not is_dataclass(cls):
        return {}
    parameters = docstring_parser.parse_from_object(cls).params
    return {field.arg_name: " ".join(field.description.split()) for field in parameters if field.description}
