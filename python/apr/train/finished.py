"""A run that is finished: resuming it has nothing to do, and changes nothing."""

from __future__ import annotations

import json

from apr.train import gates, rundir
from apr.train.checkpoint.resume import find_resume_point
from apr.train.config import PretrainConfig
from apr.train.record.metrics import read_metrics
from apr.train.record.result import Result

# How a run ends that would end in the same way if it were resumed with the same options.
_FINISHED = {"TARGET_MET", "BUDGET_SPENT", "EARLY_STOP", "DIVERGENCE", "STREAM_EXHAUSTED"}
# How a gate ended a run, and the options that let it train on. More steps alone would end it again at once.
_GATES = {
    "TARGET_MET": "--no-stop-at-target or another --target-val-loss",
    "EARLY_STOP": "a higher --patience",
    "DIVERGENCE": "other options in a new run",
}
# Options that change nothing once all steps are done. With another value of any other option, a resumed run
# has something to do or to check.
_IRRELEVANT = {
    "run_dir",
    "device",
    "batch_size",
    "grad_accum",
    "global_batch",
    "keep",
    "save_every",
    "max_minutes",
    "sample_prompt",
    "force_under_provisioned",
}


def finished_result(config: PretrainConfig, ranks: int = 1) -> tuple[Result, str] | None:
    """Return the result of the run that --resume names, and what would train it for longer.

    None if there is something left to do.

    Every byte of its last and its best checkpoint is verified. Nothing is written.

    Raises:
        FileNotFoundError: config.yaml or train.jsonl is missing.
        RefusedError: the options differ from the run's where they must not, or no checkpoint is usable, or
            train.jsonl is damaged.
    """
    try:
        values = json.loads((config.run_dir / rundir.RESULT).read_text(encoding="utf-8"))
        result = Result.from_dict(values)
    except (OSError, ValueError, TypeError):
        return None  # its process was killed, or the file was edited: the end is written again
    if result.status not in _FINISHED:
        return None
    now = rundir.resumed_config(config, ranks).to_yaml()
    before = PretrainConfig(**rundir.saved_options(config.run_dir)).to_yaml()
    stops_at_target = now["stop_at_target"] and now["contract"] is None
    by_gate = result.status in _GATES and (result.status != "TARGET_MET" or stops_at_target)
    irrelevant = _IRRELEVANT
    if by_gate and now["num_steps"] >= result.steps_completed:
        irrelevant = irrelevant | {"num_steps"}
    if any(now[name] != before[name] for name in now.keys() - irrelevant):
        return None
    if result.steps_completed < before["num_steps"] and rundir.former_target(config.run_dir) is not None:
        return None  # it stopped at a target that nobody had asked for
    point = find_resume_point(config.run_dir)
    if point.last is None or point.damaged or point.last.step != result.steps_completed:
        return None
    records = read_metrics(config.run_dir / rundir.METRICS)
    whole = (
        gates.metrics(records, result.steps_completed),
        gates.artifacts(config.run_dir, result.epochs_completed),
    )
    if not all(gate.passed for gate in whole):
        return None
    needed = [_GATES[result.status]] if by_gate else []
    if result.status != "DIVERGENCE" and result.steps_completed == before["num_steps"]:
        needed.append(f"--extend with more than --num-steps {before['num_steps']}")
    return result, " and ".join(needed) or "more text in a new run"
