"""Options declared as dataclass fields, with every fact about an option on its field.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        num_steps: Annotated[int, Ge(1), Alias("--steps")] = 1000
        "Number of optimizer steps."
        precision: Annotated[Literal["bf16", "fp32"] | None, Unset("bf16 on CUDA")] = None
        "Number format of the computation."

The annotation holds the type, the bounds (`Ge`, `Gt`, `Le` and `Lt` of annotated-types), other names and the
meaning of None; the text below the field is its help. `check_options` checks the values of all fields in one
loop, `options_from_yaml` reads them from a file, and `apr.cli._flags` turns the same fields into flags.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache, wraps
from numbers import Real
from operator import ge, gt, index, le, lt
from os import PathLike, fspath
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    SupportsIndex,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Lt

from apr.errors import OptionsError, UsageError
from apr.files import read_options
from apr.meant import meant_flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import DataclassInstance

M = TypeVar("M")
T = TypeVar("T", bound="DataclassInstance")

# The bound's class: its attribute, the comparison that must hold, the words of an error.
_BOUNDS: dict[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", ge, "at least"),
    Gt: ("gt", gt, "greater than"),
    Le: ("le", le, "at most"),
    Lt: ("lt", lt, "less than"),
}


class Alias:
    """Other names of an option: flags as they are typed; a long one is also a key in YAML files."""

    def __init__(self, *flags: str) -> None:
        self.flags = flags


@dataclass(frozen=True)
class Unset:
    """What an option stands for while it is None; help shows it as the default."""

    meaning: str


@dataclass(frozen=True)
class Metavar:
    """The word that stands for the value in help, instead of the type's name."""

    word: str


class Negatable:
    """A switch that is off by default and has a `--no-` form all the same."""


@dataclass(frozen=True)
class Option:
    """One option: a field of a dataclass, with what its annotation says about it."""

    name: str
    type: Any
    """The type without `Annotated`, without None, and without the words that may stand for a value."""
    optional: bool
    """Whether None is allowed."""
    required: bool
    """Whether the field has no default."""
    markers: tuple[object, ...]
    words: tuple[str, ...] = ()
    """Words that may stand for a value, such as `auto` for a number."""

    @property
    def flag(self) -> str:
        """The flag as it is typed, such as `--num-steps`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def aliases(self) -> tuple[str, ...]:
        """The other flags of the option."""
        alias = self.marker(Alias)
        return () if alias is None else alias.flags

    def marker(self, kind: type[M]) -> M | None:
        """Return the marker of this class in the field's annotation, or None."""
        return next((marker for marker in self.markers if isinstance(marker, kind)), None)

    def checked(self, value: object) -> object:
        """Return a value in the option's own type: NumPy's numbers become Python's, text becomes a path.

        Raises:
            UsageError: the value has another type or is out of bounds.
        """
        if value is None:
            if self.optional:
                return None
            raise UsageError(f"{self.flag} is required")
        if isinstance(value, str) and value in self.words:
            return value
        value = self._converted(value)
        for marker in self.markers:
            if type(marker) in _BOUNDS:
                attribute, holds, words = _BOUNDS[type(marker)]
                bound = getattr(marker, attribute)
                if not holds(value, bound):
                    raise self._error(f"{words} {bound:g}" if bound < 2**53 else f"{words} {bound}", value)
        return value

    def _converted(self, value: object) -> object:
        if get_origin(self.type) is Literal:
            choices = get_args(self.type)
            if value not in choices:
                raise self._error(f"one of {', '.join(map(str, choices))}", value)
        elif get_origin(self.type) is tuple:
            # One path is meant as such, and not as its letters.
            several = (value,) if isinstance(value, (str, PathLike)) else value
            if not isinstance(several, (list, tuple)):
                raise self._error("a list", value)
            item = replace(self, type=get_args(self.type)[0], optional=False, markers=())
            return tuple(item.checked(one) for one in several)
        elif self.type is bool:
            if not isinstance(value, bool):
                raise self._error("true or false", value)
        elif self.type is int:
            # bool is a subclass of int; `seed=True` is a mistake all the same.
            if isinstance(value, bool) or not isinstance(value, SupportsIndex):
                raise self._error("a whole number", value)
            return index(value)
        elif self.type is float:
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise self._error("a finite number", value)
            return float(value)
        elif self.type is Path:
            if not isinstance(value, (str, PathLike)):
                raise self._error("a path", value)
            return Path(value)
        elif self.type is str:
            if isinstance(value, (bool, Real, list, dict)):
                raise self._error("text", value)
            # Anything else may have a text form of its own, such as a torch.device.
            return fspath(value) if isinstance(value, PathLike) else str(value)
        return value

    def _error(self, rule: str, value: object) -> UsageError:
        return UsageError(f"{self.flag} must be {' or '.join([rule, *self.words])}, not {value!r}")


def accepts_aliases(cls: type[T]) -> type[T]:
    """Let a dataclass's constructor take the long aliases of its options, as flags and YAML keys do."""
    create = cls.__init__
    names = alias_names(cls)

    @wraps(create)
    def init(self: T, **options: object) -> None:
        known = {name: name for name in options_of(cls)} | names
        for key in options:
            if key not in known:
                # Python's own error for it has no suggestion.
                raise TypeError(f"{cls.__name__} has no option {key!r}{_suggestion(key, known)}")
        values: dict[str, object] = {}
        for key, value in options.items():
            name = names.get(key, key)
            if name in values:
                # One of them would be dropped without a word.
                raise TypeError(f"{cls.__name__} has {name!r} twice, once by another name; leave one out")
            values[name] = value
        create(self, **values)

    cls.__init__ = init  # type: ignore[method-assign, assignment]
    return cls


def alias_names(cls: type[DataclassInstance]) -> dict[str, str]:
    """Return the field names of a dataclass's options by their long aliases, with `_` instead of `-`."""
    return {
        flag.removeprefix("--").replace("-", "_"): name
        for name, option in options_of(cls).items()
        for flag in option.aliases
        if flag.startswith("--")
    }


@cache
def options_of(cls: type[DataclassInstance]) -> dict[str, Option]:
    """Return the options that a dataclass declares, by field name, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    options = {}
    for field in fields(cls):
        hint = hints[field.name]
        markers: tuple[object, ...] = ()
        if get_origin(hint) is Annotated:
            markers, hint = hint.__metadata__, hint.__origin__
        arms = get_args(hint) if NoneType in get_args(hint) else (hint,)
        types = [arm for arm in arms if arm is not NoneType]
        words: tuple[str, ...] = ()
        if len(types) > 1 and get_origin(types[-1]) is Literal:
            words = get_args(types.pop())
        options[field.name] = Option(
            field.name,
            types[0] if len(types) == 1 else hint,
            optional=len(arms) > len(types),
            required=field.default is MISSING and field.default_factory is MISSING,
            markers=markers,
            words=words,
        )
    return options


def check_options(instance: DataclassInstance) -> list[UsageError]:
    """Check all fields of a dataclass, and store each valid value in the option's own type.

    Returns:
        What is wrong, in the order of the fields.
    """
    problems = []
    for name, option in options_of(type(instance)).items():
        try:
            value = option.checked(getattr(instance, name))
        except UsageError as error:
            problems.append(error)
        else:
            object.__setattr__(instance, name, value)  # the dataclass may be frozen
    return problems


def options_from_yaml(cls: type[DataclassInstance], path: Path) -> dict[str, Any]:
    """Read options from a YAML file; a key may be a field's name or an alias, with `_` or `-`.

    Returns:
        Values by field name. An option that is null in the file is left out, so that its default applies.

    Raises:
        FileNotFoundError: there is no such file.
        OptionsError: keys are unknown or values are not valid; names all of them.
        UsageError: the file is not a YAML mapping.
    """
    options = options_of(cls)
    names = {name: name for name in options} | alias_names(cls)
    values: dict[str, Any] = {}
    problems = []
    for key, value in read_options(path).items():
        written = str(key).replace("-", "_")
        if written not in names:
            hint = _suggestion(written, names)
            problems.append(UsageError(f"{path}: unknown option {str(key)!r}{hint}", path=path))
        elif value is not None:
            option = options[names[written]]
            if option.name in values:
                reason = f"{option.name!r} is set twice, once by another name; leave one out"
                problems.append(UsageError(f"{path}: {reason}", path=path))
                continue
            try:
                values[option.name] = option.checked(_number(value, option.type))
            except UsageError as error:
                problems.append(UsageError(f"{path}: {error}", path=path))
    if problems:
        raise OptionsError(problems)
    return values


def _suggestion(key: str, names: dict[str, str]) -> str:
    """Return a question for an unknown option, or an empty text.

    Args:
        key: the name, with `_`.
        names: the options' names by every spelling.
    """
    flags = [f"--{name.replace('_', '-')}" for name in names]
    close = [names[flag[2:].replace("-", "_")] for flag in meant_flags(key, flags)]
    return f"; did you mean {' or '.join(map(repr, dict.fromkeys(close)))}?" if close else ""


def _number(value: object, kind: type) -> object:
    """Return text that is written as a number as that number, where the option is one: people quote them."""
    if isinstance(value, str) and kind in {int, float}:
        for read in (kind, float):
            try:
                number = read(value)
            except ValueError:
                continue
            # "1e4" is a number of steps, as it is without the quotes.
            return int(number) if kind is int and number == int(number) else number
    return value
