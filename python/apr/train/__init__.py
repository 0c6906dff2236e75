"""The trainer: `pretrain(PretrainConfig(...)) -> Result`."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apr.train.callbacks import Callbacks, CheckpointRecord, EvaluationRecord, StepRecord
    from apr.train.config import PretrainConfig
    from apr.train.evaluation import Evaluation, evaluate
    from apr.train.planning import Plan, plan
    from apr.train.result import Result
    from apr.train.run import pretrain

__all__ = [
    "Callbacks",
    "CheckpointRecord",
    "Evaluation",
    "EvaluationRecord",
    "Plan",
    "PretrainConfig",
    "Result",
    "StepRecord",
    "evaluate",
    "plan",
    "pretrain",
]

_HOME = {
    "Callbacks": "apr.train.callbacks",
    "CheckpointRecord": "apr.train.callbacks",
    "Evaluation": "apr.train.evaluation",
    "EvaluationRecord": "apr.train.callbacks",
    "Plan": "apr.train.planning",
    "PretrainConfig": "apr.train.config",
    "Result": "apr.train.result",
    "StepRecord": "apr.train.callbacks",
    "evaluate": "apr.train.evaluation",
    "plan": "apr.train.planning",
    "pretrain": "apr.train.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apr.train' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
