"""The trainer: `pretrain(PretrainConfig(...)) -> Result`."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apr.train.config import PretrainConfig
    from apr.train.evaluate import Evaluation, evaluate
    from apr.train.plan import Plan, plan
    from apr.train.pretrain import pretrain
    from apr.train.result import Result

__all__ = ["Evaluation", "Plan", "PretrainConfig", "Result", "evaluate", "plan", "pretrain"]

_HOME = {
    "Evaluation": "apr.train.evaluate",
    "Plan": "apr.train.plan",
    "PretrainConfig": "apr.train.config",
    "Result": "apr.train.result",
    "evaluate": "apr.train.evaluate",
    "plan": "apr.train.plan",
    "pretrain": "apr.train.pretrain",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apr.train' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # importing apr.train.pretrain would otherwise leave the module under the name
    return value
