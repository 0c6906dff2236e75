"""What happened in a run, in plain sentences and tables of text."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from apr.duration import format_duration
from apr.files import as_utf8
from apr.options import options_of
from apr.plurals import counted
from apr.report.curves import shown, thinned
from apr.report.recorded import number
from apr.train.config import PretrainConfig, ResolvedConfig, Resume
from apr.train.record.metrics import perplexity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apr.report.recorded import RecordedRun
    from apr.train.record.result import Result

_ENDINGS = {
    "TARGET_MET": "The run met its target",
    "BUDGET_SPENT": "The run did all its steps",
    "EARLY_STOP": "The run stopped early",
    "DIVERGENCE": "The run ended because it diverged",
    "NUMERICAL_INSTABILITY": "The run ended because its numbers were no longer finite",
    "STREAM_EXHAUSTED": "The run ended because its data were used up",
    "REFUSED": "The run was refused",
    "INTERRUPTED": "The run was interrupted",
    "FAILED": "The run failed",
}


@dataclass(frozen=True)
class Section:
    """A heading with a table. Cells are texts; the page escapes them."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    folded: bool = False
    numeric: bool = False
    """Whether all columns but the first hold numbers."""


def status(run: RecordedRun) -> tuple[str, str]:
    """Return the status of a run, and `good`, `bad` or `open`, by which the page colors it."""
    if run.result is not None:
        kinds = {"INTERRUPTED": "open"}
        return run.result.status, kinds.get(run.result.status, "good" if run.result.exit_code == 0 else "bad")
    return ("RUNNING", "open") if run.running else ("NO RESULT", "bad")


def sentences(run: RecordedRun) -> list[str]:
    """Return what happened."""
    result, lines = run.result, []
    done = _steps_done(run)
    if result is not None:
        ending = _ENDINGS.get(result.status, f"The run ended as {result.status}")
        lines.append(f"{ending}: {result.detail}.")
    elif run.running:
        lines.append(
            f"The run has not ended: a process is writing to its directory, so far {counted(done, 'step')}."
        )
    else:
        lines.append(
            "The run left no result: its process was killed, or the machine stopped. It recorded "
            f"{counted(done, 'step')}."
        )
    if run.config is not None and done:
        model = run.checkpoint.get("model_type")
        size = number(run.checkpoint.get("param_count"))
        what = f" ({model}, {size / 1e6:,.1f} M parameters)" if model and size else ""
        ranks = f" with {result.ranks} ranks" if result is not None and result.ranks > 1 else ""
        tokens = max((int(number(r.get("tokens_seen")) or 0) for r in run.records), default=0)
        device = run.steps[-1].get("device") if run.steps else "an unknown device"
        lines.append(
            f"{started_from(run.config)}{what} was trained on {run.config.dataset.name} for "
            f"{done:,} of {counted(run.config.num_steps, 'step')}: {counted(tokens, 'token')} in "
            f"{format_duration(run.seconds)} on {device}{ranks}."
        )
    losses = held_out(run)
    if losses and (result is None or "held-out loss" not in result.detail):
        best = min(losses)
        lines.append(
            f"The held-out loss was {losses[0]:.4f} first, {losses[-1]:.4f} last and {best:.4f} at its best."
        )
    if result is not None:
        lines += _about_result(result)
    stopped = not run.running if result is None else result.status == "INTERRUPTED"
    if stopped:
        path = quote(as_utf8(str(run.path.absolute())))
        lines.append(f"To continue it: apr pretrain --run-dir {path} --resume")
    return lines


def _about_result(result: Result) -> list[str]:
    lines = []
    if result.resumed_from is not None:
        lines.append(f"Its last part was resumed from {result.resumed_from}.")
    if result.spikes:
        skipped = f", {result.skipped_steps:,} of which updated nothing" if result.skipped_steps else ""
        lines.append(f"The loss had {counted(result.spikes, 'spike')}{skipped}.")
    failed = [gate.name for gate in result.gates if gate.passed is False]
    if failed:
        lines.append(f"Gates that did not pass: {', '.join(failed)}.")
    if result.contract is not None:
        lines.append(f"The contract {result.contract.get('contract')} {_holds(result.contract)}.")
    if result.best_checkpoint is not None:
        lines.append(f"The best model is {result.best_checkpoint}.")
    return lines


def _holds(contract: dict[str, object]) -> str:
    if "error" in contract:
        return "was not checked"
    return "holds" if contract.get("ok") is True else "does not hold"


def _steps_done(run: RecordedRun) -> int:
    if run.result is not None:
        return run.result.steps_completed
    return max((step["step"] + 1 for step in run.steps), default=0)


def started_from(config: PretrainConfig) -> str:
    """Return the name of the model that a run starts from."""
    return config.init.name if config.init is not None else Path(str(config.arch)).name


def held_out(run: RecordedRun) -> list[float]:
    """Return the held-out losses that are numbers, in their order."""
    return [loss for record in run.evaluations if (loss := number(record.get("val_loss"))) is not None]


def figures(run: RecordedRun) -> list[tuple[str, str]]:
    """Return the names and values of the figures that matter most; those that a run lacks are left out."""
    result, losses = run.result, held_out(run)
    rows = [("Steps", f"{_steps_done(run):,}")]
    if losses:
        rows += [
            ("Held-out loss, first", f"{losses[0]:.4f}"),
            ("Held-out loss, last", f"{losses[-1]:.4f}"),
            ("Held-out loss, best", f"{min(losses):.4f}"),
            ("Perplexity, last", shown(perplexity(losses[-1]))),
        ]
    rows.append(("Time", format_duration(run.seconds)))
    if result is not None:
        if result.tokens_per_second is not None:
            rows.append(("Tokens per second, median", f"{result.tokens_per_second:,.0f}"))
        if result.mfu is not None:
            rows.append(("MFU", f"{result.mfu:.1%}"))
        if result.peak_memory_bytes is not None:
            rows.append(("Peak memory", _size(result.peak_memory_bytes)))
    utilization = [u for step in run.steps if (u := number(step.get("gpu_util_pct"))) is not None]
    if utilization:
        rows.append(("GPU utilization, mean", f"{sum(utilization) / len(utilization):.0f} %"))
    return rows


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.0f} MiB"


def sections(run: RecordedRun) -> list[Section]:
    """Return everything else about one run, those without rows left out."""
    made = []
    if run.result is not None:
        rows = [
            (gate.name, _verdict(gate.passed), _text(gate.value), _text(gate.threshold))
            for gate in run.result.gates
        ]
        made += [
            Section("Gates", ("gate", "verdict", "measured", "allowed"), rows),
            _contract(run.result.contract),
        ]
    prompts = dict.fromkeys(str(sample.get("prompt")) for sample in run.samples)
    samples = [(f"{sample['step']:,}", _text(sample.get("text"))) for sample in run.samples]
    made.append(
        Section("Samples", ("after step", "continuation"), samples, note="Prompt: " + " | ".join(prompts))
    )
    changed, rest = _options(run)
    heads = ("option", "value", "default")
    made += [
        Section("Configuration: what differs from the defaults", heads, changed),
        Section("Configuration: the rest", ("option", "value"), rest, folded=True),
        Section("Data and base model", ("", ""), list(origin(run).items())),
        Section("Environment", ("", ""), list(environment(run).items())),
        *numbers(run),
    ]
    return [section for section in made if section.rows]


def _contract(contract: dict[str, Any] | None) -> Section:
    """Return the verdict on a contract with its evidence."""
    if contract is None:
        return Section("Contract", (), [])
    heads = ("promise", "verdict", "measured", "allowed", "evidence")
    rows = [
        (
            f"{falsifier.get('rule')}{'' if falsifier.get('blocking') else ' (advisory)'}",
            _verdict(falsifier.get("passed")),
            _text(falsifier.get("measured")),
            _text(falsifier.get("threshold")),
            ": ".join(str(falsifier[key]) for key in ("artifact", "detail") if falsifier.get(key)),
        )
        for falsifier in contract.get("falsifiers", ())
    ]
    conditions = ", ".join(f"{key} {value}" for key, value in contract.get("conditions", {}).items())
    note = str(contract.get("error") or f"{_holds(contract).capitalize()}. The run: {conditions}.")
    return Section(f"Contract {contract.get('contract')}", heads, rows or [(note, "", "", "", "")], note=note)


def options(config: PretrainConfig) -> dict[str, str]:
    """Return the options of a run as text, by flag."""
    return {
        option.flag: _text(getattr(config, name))
        for name, option in options_of(PretrainConfig).items()
        if option.marker(Resume) is not Resume.NOT_SAVED
    }


def _options(run: RecordedRun) -> tuple[Sequence[tuple[str, ...]], Sequence[tuple[str, ...]]]:
    """Return the options that differ from their defaults, and the others."""
    if run.config is None:
        return [], []
    config, values = run.config, options(run.config)
    plain: dict[str, Any] = {
        field.name: field.default for field in fields(PretrainConfig) if field.default is not MISSING
    }
    # Defaults that follow from the mode or from other options are those of a run with only these.
    given = (
        "dataset",
        "run_dir",
        "mode",
        "init",
        "arch",
        "num_steps",
        "batch_size",
        "seq_length",
        "grad_accum",
    )
    base = PretrainConfig(**plain | {name: getattr(config, name) for name in given})
    resolved = base.resolved(config.precision or "fp32", compiled=bool(config.compile))
    defaults = {
        option.flag: _text(getattr(resolved if name in ResolvedConfig.__annotations__ else base, name))
        if name in plain and name not in {"init", "arch"}
        else "—"
        for name, option in options_of(PretrainConfig).items()
    }
    for name in ("mode", "num_steps", "batch_size", "seq_length"):
        defaults[options_of(PretrainConfig)[name].flag] = _text(plain[name])
    changed = [(flag, value, defaults[flag]) for flag, value in values.items() if value != defaults[flag]]
    return changed, [(flag, value) for flag, value in values.items() if value == defaults[flag]]


def origin(run: RecordedRun) -> dict[str, str]:
    """Return what a run was trained on and started from, with the hashes in its checkpoints."""
    if run.config is None:
        return {}
    training = run.checkpoint.get("training", {})
    facts = (training.get(key) for key in ("data", "held_out", "base_model"))
    data, held, base = (fact if isinstance(fact, dict) else {} for fact in facts)
    rows = {
        "training data": str(run.config.dataset),
        "tokens": data.get("total_tokens"),
        "SHA-256 of the corpus": data.get("corpus_sha256"),
        "SHA-256 of the manifest": data.get("manifest_sha256"),
        "held-out data": str(run.config.val_dataset or f"the end of {run.config.dataset.name}"),
        "held-out ids": f"{_text(held.get('start'))} to {_text(held.get('stop'))}" if held else None,
        "SHA-256 of the held-out corpus": held.get("corpus_sha256"),
        "base model": str(run.config.init or f"random weights of {run.config.arch}"),
        "size of the base model": base.get("size"),
        "CRC-32 of the base model": base.get("crc32"),
        "license": run.checkpoint.get("license"),
        "source of the data": run.checkpoint.get("data_source"),
        "license of the data": run.checkpoint.get("data_license"),
    }
    if not training:
        rows["hashes"] = "not recorded, because no checkpoint of the run opens"
    return {name: _text(value) for name, value in rows.items() if value is not None}


def environment(run: RecordedRun) -> dict[str, str]:
    """Return what a run was computed with."""
    devices = dict.fromkeys(str(step.get("device")) for step in run.steps)
    rows: dict[str, str] = {"device": ", ".join(devices)} if devices else {}
    if run.result is not None:
        if run.result.ranks > 1:
            rows["ranks"] = str(run.result.ranks)
            by_rank = [_size(number(used) or 0) for used in run.result.peak_memory_by_rank]
            rows["peak memory by rank"] = ", ".join(by_rank)
            rows["step of the slowest rank"] = f"{run.result.slowest_rank_seconds or 0:.3g} s, median"
        if run.result.micro_batch is not None:
            rows["micro-batch"] = f"{run.result.micro_batch} x {run.result.grad_accum}"
        rows |= {name: str(version) for name, version in sorted(run.result.versions.items())}
    return rows


def numbers(run: RecordedRun, of: str = "") -> list[Section]:
    """Return the numbers that the curves are drawn from, folded."""
    steps = thinned(run.steps, "train_loss", "tokens_per_sec")
    evaluations = thinned(run.evaluations, "val_loss")
    return [
        Section(
            f"Evaluations{of} ({len(run.evaluations):,})",
            ("steps done", "held-out loss", "perplexity", "tokens seen"),
            [_cells(record, "step", "val_loss", "val_ppl", "tokens_seen") for record in evaluations],
            folded=True,
            numeric=True,
        ),
        Section(
            f"Steps{of} ({len(steps):,} of {len(run.steps):,})",
            ("step", "train loss", "grad norm", "learning rate", "tokens/s"),
            [_cells(record, "step", "train_loss", "grad_norm", "lr", "tokens_per_sec") for record in steps],
            folded=True,
            numeric=True,
        ),
    ]


def _cells(record: dict[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(_text(record.get(name)) for name in names)


def compared(first: RecordedRun, second: RecordedRun) -> list[Section]:
    """Return the figures of two runs side by side, and what differs between them."""
    made = [_beside("Figures", dict(figures(first)), dict(figures(second)), equal=True)]
    for title, of in (
        ("Configuration", _flags),
        ("Data and base model", origin),
        ("Environment", environment),
    ):
        made.append(_beside(f"{title}: what differs", of(first), of(second)))
    made += [*numbers(first, of=" of A"), *numbers(second, of=" of B")]
    return [section for section in made if section.rows or section.note]


def _flags(run: RecordedRun) -> dict[str, str]:
    return {} if run.config is None else {k: v for k, v in options(run.config).items() if k != "--run-dir"}


def _beside(title: str, first: dict[str, str], second: dict[str, str], *, equal: bool = False) -> Section:
    names = dict.fromkeys((*first, *second))
    rows = [(name, first.get(name, "—"), second.get(name, "—")) for name in names]
    if not equal:
        rows = [row for row in rows if row[1] != row[2]]
    return Section(title, ("", "A", "B"), rows, note="" if rows else "Nothing differs.", numeric=equal)


def _verdict(passed: object) -> str:
    if not isinstance(passed, bool):
        return "not applicable"
    return "pass" if passed else "FAIL"


def _text(value: object) -> str:
    """Return a value from a file as a cell."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
