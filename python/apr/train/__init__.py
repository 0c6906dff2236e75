"""The trainer: `pretrain(PretrainConfig(...)) -> Result`."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apr.train.config import PretrainConfig
    from apr.train.evaluation import Evaluation, evaluate
    from apr.train.planning import Plan, plan
    from apr.train.result import Result
    from apr.train.run import pretrain

__all__ = ["Evaluation", "Plan", "PretrainConfig", "Result", "evaluate", "plan", "pretrain"]

_HOME = {
    "Evaluation": "apr.train.evaluation",
    "Plan": "apr.train.planning",
    "PretrainConfig": "apr.train.config",
    "Result": "apr.train.result",
    "evaluate": "apr.train.evaluation",
    "plan": "apr.train.planning",
    "pretrain": "apr.train.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apr.train' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
