"""The trainer: `pretrain(PretrainConfig(...)) -> Result`."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from apr.train.config import PretrainConfig
    from apr.train.evaluation import Evaluation, evaluate
    from apr.train.record.callbacks import Callbacks, CheckpointRecord, EvaluationRecord, StepRecord
    from apr.train.record.result import Result
    from apr.train.run import pretrain
    from apr.train.start.planning import Plan, plan

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
    "Callbacks": "apr.train.record.callbacks",
    "CheckpointRecord": "apr.train.record.callbacks",
    "Evaluation": "apr.train.evaluation",
    "EvaluationRecord": "apr.train.record.callbacks",
    "Plan": "apr.train.start.planning",
    "PretrainConfig": "apr.train.config",
    "Result": "apr.train.record.result",
    "StepRecord": "apr.train.record.callbacks",
    "evaluate": "apr.train.evaluation",
    "plan": "apr.train.start.planning",
    "pretrain": "apr.train.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apr.train' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
