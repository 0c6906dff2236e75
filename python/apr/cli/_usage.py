"""What is wrong with the words of a command line, in a line for each problem.

tyro parses command lines. These functions are called when it refuses one, and say why in the words of the
option: which flag was probably meant, what its value must be, what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import tyro

from apr.meant import flag_note, meant_commands, meant_flags
from apr.options import Metavar, Negatable, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import DataclassInstance

    from apr.options import Option

# What people type after a switch, which takes no value.
_SWITCH_VALUES = {"true", "false", "yes", "no", "on", "off", "1", "0"}


def is_negatable(option: Option, *defaults: object) -> bool:
    """Whether an option is a switch with a `--no-` form: one that has something to undo.

    Args:
        option: the option.
        defaults: the default of its field and, where there is one, that of a YAML file.
    """
    # By identity: tyro's marker for a missing default answers every comparison.
    is_on = any(default is True for default in defaults)
    return option.type is bool and (is_on or option.marker(Negatable) is not None)


@dataclass
class _Grammar:
    """The flags and arguments of a command."""

    flags: dict[str, Option] = field(default_factory=dict)
    """By every spelling, `--no-` forms and aliases included."""
    arguments: list[Option] = field(default_factory=list)
    required: list[Option] = field(default_factory=list)

    def add(self, cls: type[DataclassInstance], default: object) -> None:
        """Add the fields of a dataclass and of those nested in it."""
        for item in fields(cls):
            option = options_of(cls)[item.name]
            value = getattr(default, item.name, tyro.MISSING)
            if isinstance(option.type, type) and is_dataclass(option.type):
                self.add(option.type, value)
                continue
            if option.required and value is tyro.MISSING:
                self.required.append(option)
            if tyro.conf.Positional in option.markers:
                self.arguments.append(option)
                continue
            for flag in (option.flag, *option.aliases):
                self.flags[flag] = option
            if is_negatable(option, item.default, value):
                self.flags[_negative(option)] = option


def usage_problems(
    command: Any,  # noqa: ANN401 (a dataclass or a union)
    prog: str,
    words: Sequence[str],
    default: object = None,
    *,
    accepted: bool = False,
) -> list[str]:
    """Return a line for each problem in the words after a command; none if they look right.

    Args:
        command: a dataclass, or a union of them for subcommands.
        prog: the words before.
        words: what was typed.
        default: an instance that has the values of flags that are not typed.
        accepted: whether tyro accepted the words. Only what it takes for something else is then a problem: a
            value of a switch, and no value where there may be several.
    """
    # Of a union; a dataclass has no arms.
    subcommands = {arm.name: cls for cls, arm in map(get_args, get_args(command))}
    if subcommands:
        names = ", ".join(subcommands)
        if not words or words[0].startswith("-"):
            return [f"{prog}: error: no command; use one of {names}, as in {prog} {next(iter(subcommands))}"]
        if words[0] not in subcommands:
            close = meant_commands(words[0], subcommands)
            hint = f"did you mean {close[0]}?" if close else f"use one of {names}"
            return [f"{prog}: error: unknown command {words[0]!r}; {hint}"]
        prog, command, words = f"{prog} {words[0]}", subcommands[words[0]], words[1:]
    grammar = _Grammar()
    grammar.add(command, default)
    walk = _Words(grammar, prog, words)
    problems = walk.problems()
    return [f"{prog}: error: {problem}" for problem in (walk.unnoticed if accepted else problems)]


class _Words:
    """A walk over the words of a command line."""

    def __init__(self, grammar: _Grammar, prog: str, words: Sequence[str]) -> None:
        self._grammar, self._prog = grammar, prog
        self._left = list(words)
        self._found: list[str] = []
        self.unnoticed: list[str] = []
        """The problems that tyro does not notice."""
        self._seen: set[str] = set()
        self._arguments: list[str] = []
        self._switch: str | None = None
        """The switch before the current word."""

    def problems(self) -> list[str]:
        grammar = self._grammar
        while self._left:
            word = self._left.pop(0)
            switch, self._switch = self._switch, None
            if word == "--":
                self._arguments += self._left
                break
            if _is_flag(word):
                self._flag(word)
            elif switch is not None and word.lower() in _SWITCH_VALUES:
                self._found.append(self._about_switch(switch, word))
            else:
                self._arguments.append(word)
        many = any(get_origin(option.type) is tuple for option in grammar.arguments)
        for option, value in zip(grammar.arguments, self._arguments, strict=False):
            self._check(_name(option), option, value)
        if not many:
            extra = self._arguments[len(grammar.arguments) :]
            self._found += [f"unexpected argument {word!r}; see {self._prog} --help" for word in extra]
        given = self._seen | {option.name for option in grammar.arguments[: len(self._arguments)]}
        missing = [option for option in grammar.required if option.name not in given]
        # A flag that is missing is often the one that is misspelled.
        if missing and not self._found:
            *names, last = map(_name, missing)
            listed = f"{', '.join(names)} and {last}" if names else last
            self._unnoticed(f"{listed} must be given; see {self._prog} --help")
        return self._found

    def _unnoticed(self, problem: str) -> None:
        self._found.append(problem)
        self.unnoticed.append(problem)

    def _flag(self, word: str) -> None:
        """Check a flag and take its values."""
        typed, equals, attached = word.partition("=")
        flag = typed.replace("_", "-")
        option = self._grammar.flags.get(flag)
        if option is None:
            self._unknown(typed)
            # What follows is the value of a flag that nobody knows.
            while not equals and self._left and not _is_flag(self._left[0]):
                self._left.pop(0)
            return
        self._seen.add(option.name)
        if option.type is bool:
            self._switch = flag
            if equals:
                self._unnoticed(self._about_switch(flag, attached))
            return
        values = [attached] if equals else []
        many = get_origin(option.type) is tuple
        while not equals and self._left and (many or not values) and not _is_flag(self._left[0]):
            values.append(self._left.pop(0))
        if not values:
            what = _what(option)
            dashed = self._left[0] if self._left else ""
            hint = ""
            if dashed and dashed.partition("=")[0].replace("_", "-") not in self._grammar.flags:
                hint = f"; to pass one that starts with a dash, write {flag}={dashed}"
                self._left.pop(0)
            self._unnoticed(f"{flag}: the value is missing ({what}){hint}")
        for value in values:
            self._check(flag, option, value)

    def _unknown(self, typed: str) -> None:
        grammar = self._grammar
        arguments = [_name(option) for option in grammar.arguments]
        meant = meant_flags(typed, ["--help", *grammar.flags], arguments)
        # Two spellings of one option are one suggestion.
        by_option = {getattr(grammar.flags.get(flag), "name", flag): flag for flag in reversed(meant)}
        shown = [
            f"{flag} without a flag" if flag in arguments else flag for flag in reversed(by_option.values())
        ]
        notes = [note for flag in by_option.values() if (note := flag_note(typed, flag))]
        hint = f"did you mean {' or '.join(shown)}?" if shown else f"see {self._prog} --help"
        self._found.append(f"unknown option {typed}; {hint}{''.join(f' ({note})' for note in notes[:1])}")

    def _about_switch(self, flag: str, value: str) -> str:
        negative = _negative(self._grammar.flags[flag])
        hint = f"pass {flag} alone"
        if value.lower() in {"false", "no", "off", "0"}:
            hint = f"use {negative}" if negative in self._grammar.flags else "leave it out"
        return f"{flag} {value}: a switch takes no value; {hint}"

    def _check(self, name: str, option: Option, value: str) -> None:
        kind = _kind(option)
        # tyro reads None as the option's own None.
        if (value == "None" and option.optional) or value in option.words:
            return
        if isinstance(kind, tuple):
            if value not in kind:
                close = get_close_matches(value, kind, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self._found.append(f"{name} {value}: not one of {', '.join(kind)}{hint}")
        elif kind in _NUMBERS:
            parse, what = _NUMBERS[kind]
            try:
                parse(value)
            except ValueError:
                what = " or ".join([what, *option.words])
                self._found.append(f"{name} {value}: not {what}{_whole(value) if kind is int else ''}")


# How tyro reads a number, and what it must be.
_NUMBERS: dict[object, tuple[Callable[[str], object], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
}


def _whole(value: str) -> str:
    """Return how to write a whole number that was written as another one, such as 1e3."""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f"; write {int(number)}" if number.is_integer() else ""


def _kind(option: Option) -> Any:  # noqa: ANN401 (a type, or the choices)
    """Return the type of an option's values, or the values that it may have."""
    kind = option.type
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else kind


def _what(option: Option) -> str:
    """Return in words what an option's value is."""
    metavar = option.marker(Metavar)
    if metavar is not None:
        return metavar.word
    kind = _kind(option)
    if isinstance(kind, tuple):
        return f"one of {', '.join(kind)}"
    if kind in _NUMBERS:
        return _NUMBERS[kind][1]
    return "a path" if kind is Path else "text"


def _name(option: Option) -> str:
    """Return a flag, or the word that help shows for an argument without a flag."""
    if tyro.conf.Positional not in option.markers:
        return option.flag
    metavar = option.marker(Metavar)
    return option.name.upper() if metavar is None else metavar.word.partition(" ")[0]


def _negative(option: Option) -> str:
    return option.flag.replace("--", "--no-")


def _is_flag(word: str) -> bool:
    """Whether a word is a flag and not a value, which may be a negative number."""
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False
