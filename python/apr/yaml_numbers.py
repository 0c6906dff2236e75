"""YAML in which `1e4` is a number."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from yaml import SafeLoader, ScalarNode

_FLOAT = "tag:yaml.org,2002:float"
# YAML 1.2's floats with an exponent. YAML 1.1, which PyYAML follows, needs a dot and a sign in the exponent,
# and takes `1e4` and `5e-5` for text.
_WITH_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")
_INT_LIMIT = 2**63


def parse_yaml(text: str) -> Any:  # noqa: ANN401 (whatever the text has)
    """Return the value of a YAML text. A whole number with an exponent is an int: it may be a size.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
        ValueError: a date is impossible.
        RecursionError: the YAML is nested too deeply.
    """
    return yaml.load(text, _loader())  # noqa: S506 (a SafeLoader)


@cache
def _loader() -> type[SafeLoader]:
    class Loader(yaml.SafeLoader):
        """PyYAML's safe loader with the floats of YAML 1.2."""

    def number(loader: SafeLoader, node: ScalarNode) -> float:
        value = float(loader.construct_yaml_float(node))
        is_whole = _WITH_EXPONENT.fullmatch(node.value) and value.is_integer() and abs(value) < _INT_LIMIT
        return int(value) if is_whole else value

    # `$`, because PyYAML matches only the start.
    pattern = re.compile(f"(?:{_WITH_EXPONENT.pattern})$")
    Loader.add_implicit_resolver(_FLOAT, pattern, list("-+.0123456789"))
    Loader.add_constructor(_FLOAT, number)
    return Loader
