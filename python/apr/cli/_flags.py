"""Parsing the flags of a command, which are the fields of its dataclass.

tyro does the parsing and prints help. A rule in its registry translates the markers of `apr.options`.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial, wraps
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

from apr.cli._usage import is_negatable, usage_problems
from apr.errors import EXIT_USAGE, AprError
from apr.options import Metavar, Unset, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        AprError: the dataclass refused its values.
    """
    # `apr tokenize help` and `apr tokenize help encode`; a dataclass has no subcommands.
    if get_args(command) and arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    errors = io.StringIO()
    try:
        # tyro draws its errors in boxes of many lines. They are only a last resort.
        with redirect_stderr(errors):
            parsed = tyro.cli(
                command,
                prog=prog,
                args=arguments,
                default=MISSING_NONPROP if default is None else default,
                config=_CONFIG,
                registry=_REGISTRY,
            )
    except _Refused as refused:
        raise refused.error from None
    except SystemExit as stop:
        if stop.code != EXIT_USAGE:
            sys.stderr.write(errors.getvalue())
            raise
        problems = usage_problems(command, prog, arguments, default) or [_one_line(errors.getvalue())]
    else:
        problems = usage_problems(command, prog, arguments, default, accepted=True)
        if not problems:
            return parsed
    print(*problems, sep="\n", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def parse_known(command: type[T], prog: str, arguments: Sequence[str]) -> T:
    """Parse the flags that a command has, and leave out all others.

    Flags that cannot be parsed have their defaults. The parse of all flags, which follows, refuses them.
    """
    try:
        with redirect_stderr(io.StringIO()):
            # Without --help, which is left to the parse of all flags too.
            parsed, _ = tyro.cli(
                command,
                prog=prog,
                args=arguments,
                return_unknown_args=True,
                add_help=False,
                registry=_REGISTRY,
            )
    except SystemExit:
        return command()
    return command() if usage_problems(command, prog, arguments, accepted=True) else parsed


class _Refused(Exception):  # noqa: N818 (never seen outside this module)
    """Carries the refusal of a dataclass through tyro, which takes every ValueError for one of its own."""

    def __init__(self, error: AprError) -> None:
        super().__init__(str(error))
        self.error = error


def _constructor(cls: type[T]) -> Callable[..., T]:
    """Return a function that creates an instance of a dataclass, and whose refusals pass through tyro."""

    @wraps(cls, updated=())  # help shows its docstring
    def construct(*arguments: Any, **values: Any) -> T:  # noqa: ANN401 (of any dataclass)
        try:
            return cls(*arguments, **values)
        except AprError as error:
            raise _Refused(error) from None

    return construct


def _one_line(text: str) -> str:
    """Return an error of tyro without its box."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "╭╮╰╯│─"), " ")).split())


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
        if option.type is bool and not is_negatable(option, field.default, default):
            markers.append(tyro.conf.FlagCreatePairsOff)
        # A switch that may be unset is a switch too: tyro would ask for one of None, True and False.
        if option.type is bool:
            markers.append(tyro.conf.DisallowNone)
        hint: Any = Annotated[(hints[field.name], *markers)]
        # Reading help out of source text is slow, so tyro calls for it only when it shows it.
        text = partial(help_text, info.type, field.name)
        specs.append(StructFieldSpec(name=field.name, type=hint, default=default, helptext=text))
    return StructConstructorSpec(instantiate=_constructor(info.type), fields=tuple(specs))


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
