"""Public names of a package that are imported on first use."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing takes 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Callable


def lazy_exports(package: str) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package that imports its public names on first use.

    The names stand once, in the package's `__init__.pyi`, where type checkers and editors look for them: one
    `from MODULE import NAME as NAME` a line. Subpackages are names too, but not of `__all__`: `import *` must
    not import torch, nor replace a name such as `numpy`.
    """
    module = sys.modules[package]
    with open(os.path.join(module.__path__[0], "__init__.pyi"), encoding="ascii") as stub:  # noqa: PTH118, PTH123 (importing pathlib takes 8 ms)
        lines = [line.split() for line in stub]
    homes = {words[3]: words[1] for words in lines if words[:1] == ["from"]}
    names = sorted(name for name, home in homes.items() if home != package)

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        from importlib import import_module  # `import apr` does without it, and a millisecond sooner

        from apr.errors import named_extras

        with named_extras():
            if homes[name] == package:
                return import_module(f"{package}.{name}")
            value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)  # the next access finds it without a call
        return value

    return names, load, lambda: sorted(homes)
