"""The options of a run: one dataclass, the only source of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from operator import index
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, SupportsIndex, get_args

import tyro

from apr.errors import UsageError
from apr.files import read_options

Mode = Literal["finetune", "from-scratch", "from-init"]
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class ModeDefaults:
    """What a mode sets where no flag does."""

    lr: float
    warmup_steps: int
    target_val_loss: float
    first_val_loss_cap: float | None
    """Cap on the held-out loss of the first epoch, nats; None: twice ln V."""


MODES: dict[Mode, ModeDefaults] = {
    "finetune": ModeDefaults(5e-5, 100, 2.2, 10.0),
    "from-init": ModeDefaults(5e-5, 100, 2.2, 10.0),
    "from-scratch": ModeDefaults(3e-4, 1000, 3.0, None),
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Options of `pretrain`; the flags of `apr pretrain` have the same names.

    Raises:
        UsageError: values that contradict each other or lie out of range.
    """

    dataset: Annotated[Path, tyro.conf.arg(aliases=("--shards-dir",))]
    """Shard directory to train on."""
    run_dir: Annotated[Path, tyro.conf.arg(aliases=("--output-dir",))]
    """Where everything the run writes goes."""
    init: Path | None = None
    """The .apr file to start from (finetune, from-init)."""
    val_dataset: Annotated[Path | None, tyro.conf.arg(aliases=("--val-shard",))] = None
    """Shard directory to hold out; default: the end of --dataset, which training then leaves out."""
    tokenizer: Path | None = None
    """Tokenizer directory, tokenizer.json or model file: its vocabulary is checked, checkpoints carry it."""
    mode: Mode = "finetune"
    """Sets --lr, --warmup-steps and --target-val-loss together; an explicit flag wins."""
    arch: str | None = None
    """From scratch: a preset (qwen2.5-0.5b, smollm2-135m, qwen2-4m) or a YAML file of sizes."""
    num_steps: Annotated[int, tyro.conf.arg(aliases=("--steps",))] = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Windows in a micro-batch."""
    grad_accum: int = 1
    """Micro-batches in a step."""
    seq_length: int = 1024
    """Tokens in a window."""
    steps_per_epoch: int = 100
    """Steps from one evaluation and checkpoint to the next."""
    lr: float | None = None
    """Peak learning rate (finetune, from-init 5e-5; from-scratch 3e-4)."""
    warmup_steps: int | None = None
    """Steps of linear warm-up (finetune, from-init 100; from-scratch 1000; at most --num-steps / 10)."""
    min_lr_ratio: float = 0.01
    """The cosine ends at this share of the peak."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only: not on norms, biases and embeddings."""
    beta1: float = 0.9
    """AdamW's."""
    beta2: float = 0.95
    """AdamW's."""
    eps: float = 1e-8
    """AdamW's."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    target_val_loss: float | None = None
    """Held-out loss to reach, nats a token (finetune, from-init 2.2; from-scratch 3.0)."""
    stop_at_target: bool = True
    """Stop at the evaluation that meets the target (never with --contract)."""
    patience: int = 5
    """Epochs without a new best before the run stops early."""
    min_epochs: int = 3
    """Epochs before which patience stops nothing."""
    val_tokens: int = 262_144
    """Held-out tokens an evaluation takes, and holds out where there is no --val-dataset."""
    seed: int = 42
    """Of the initial weights and of the order of windows."""
    shuffle: bool = True
    """Visit windows in a pseudo-random order that the seed fixes, or in stream order."""
    allow_shard_cycle: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the first window when the stream ends."""
    force_under_provisioned: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """No warning for fewer than ten training tokens a parameter."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; only auto chooses."""
    precision: Precision | None = None
    """bf16: float32 weights, bfloat16 compute (default on CUDA); fp32 (default on the CPU)."""
    compile: bool = False
    """Compile each layer with torch.compile; on a GPU also capture the step in CUDA graphs."""
    skip_spikes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Update nothing from a step whose loss is 6 standard deviations above the mean of the last 100."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write TensorBoard event files to RUN_DIR/tensorboard."""
    deterministic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """On CUDA, sum in a fixed order, so that the same run gives the same bytes; on the CPU it always does."""
    keep: int = 2
    """Checkpoints to keep beside the best one: of epochs, and as many of those that --save-every asks for."""
    save_every: int | None = None
    """Steps from one checkpoint to the next, besides those of epochs."""
    save_dtype: Precision = "fp32"
    """bf16: write the weights alone at the end, in bfloat16, to final.apr; checkpoints stay float32."""
    contract: Path | None = None
    """Contract to decide at the end; never changes the exit code."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the run directory's last checkpoint, with its config.yaml for every flag not given."""
    extend: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let --resume raise --num-steps."""
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Move a run that is already there to RUN_DIR.bak-N."""

    def __post_init__(self) -> None:
        for field in fields(PretrainConfig):
            object.__setattr__(self, field.name, _plain(field.name, getattr(self, field.name)))
        _check_types(self)
        _check_ranges(self)

    @property
    def mode_defaults(self) -> ModeDefaults:
        """What the mode sets."""
        return MODES[self.mode]

    @property
    def windows_per_step(self) -> int:
        """Windows that one optimizer step takes."""
        return self.batch_size * self.grad_accum

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step trains on."""
        return self.windows_per_step * self.seq_length

    @property
    def epochs(self) -> int:
        """Evaluations after the first; a partial last epoch counts as one."""
        return -(-self.num_steps // self.steps_per_epoch)

    def saves_on_the_way(self, step: int) -> bool:
        """Whether --save-every asks for a checkpoint after `step` steps; the end of an epoch has its own."""
        if self.save_every is None or step % self.save_every:
            return False
        return step % self.steps_per_epoch != 0 and step != self.num_steps

    def resolved(self) -> PretrainConfig:
        """The same options with the mode's row filled in.

        Raises:
            UsageError: a warm-up that leaves no step for the cosine.
        """
        row = self.mode_defaults
        warmup = (
            min(row.warmup_steps, self.num_steps // 10) if self.warmup_steps is None else self.warmup_steps
        )
        if warmup >= self.num_steps:
            raise UsageError(
                f"--warmup-steps {warmup} leaves none of --num-steps {self.num_steps} for the cosine"
            )
        target = row.target_val_loss if self.target_val_loss is None else self.target_val_loss
        return replace(
            self, lr=row.lr if self.lr is None else self.lr, warmup_steps=warmup, target_val_loss=target
        )

    def to_yaml(self) -> dict[str, Any]:
        """Everything needed to run it again: paths made absolute; not how an earlier run was met."""
        from apr.model.init import PRESETS

        values = {key: value for key, value in asdict(self).items() if key not in _ABOUT_EARLIER_RUNS}
        if self.arch is not None and self.arch not in PRESETS:
            values["arch"] = Path(self.arch)
        return {
            key: str(value.absolute()) if isinstance(value, Path) else value for key, value in values.items()
        }

    @classmethod
    def from_yaml(cls, path: Path) -> dict[str, Any]:
        """The options that a file gives.

        Raises:
            FileNotFoundError: no such file.
            UsageError: it is no mapping of option names; names the unknown ones.
        """
        names = {field.name for field in fields(cls)}
        options = {str(key).replace("-", "_"): value for key, value in read_options(path).items()}
        options = {_ALIASES.get(key, key): value for key, value in options.items()}
        unknown = sorted(options.keys() - names)
        if unknown:
            raise UsageError(f"{path}: no such option: {', '.join(unknown)}")
        try:
            return {key: _plain(key, value) for key, value in options.items()}
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None


_SWITCHES = ("stop_at_target", "shuffle", "allow_shard_cycle", "force_under_provisioned", "compile",
             "skip_spikes", "tensorboard", "deterministic", "resume", "extend", "force")  # fmt: skip
_PATHS = ("dataset", "run_dir", "init", "val_dataset", "tokenizer", "contract")
_ABOUT_EARLIER_RUNS = {"resume", "extend", "force"}
_AT_LEAST_ONE = ("num_steps", "batch_size", "grad_accum", "seq_length", "steps_per_epoch", "patience", "keep",
                 "val_tokens", "save_every")  # fmt: skip
_POSITIVE = ("lr", "eps", "grad_clip", "target_val_loss")
_NOT_NEGATIVE = ("warmup_steps", "weight_decay", "min_epochs", "seed")


_INTEGERS = (*_AT_LEAST_ONE, "seed", "min_epochs", "warmup_steps")
_NUMBERS = ("lr", "min_lr_ratio", "weight_decay", "beta1", "beta2", "eps", "grad_clip", "target_val_loss")
_CHOICES = {
    "mode": tuple(MODES),
    "precision": (None, *get_args(Precision)),
    "save_dtype": get_args(Precision),
}
_ALIASES = {
    "shards_dir": "dataset",
    "output_dir": "run_dir",
    "val_shard": "val_dataset",
    "steps": "num_steps",
}
_MAX_SEED = 2**63 - 1  # torch's generators take no more


def _plain(name: str, value: object) -> object:
    """A value in the option's own type, where it is one: NumPy's numbers, torch's devices, paths as text.

    Raises:
        UsageError: it is no path, or neither true nor false.
    """
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return None
    if name in _PATHS:
        if not isinstance(value, (str, PathLike)):
            raise UsageError(f"{flag} is {value!r}: it must be a path")
        return Path(value)
    if name in _SWITCHES and not isinstance(value, bool):
        raise UsageError(f"{flag} is {value!r}: it must be true or false")
    if name == "arch" and not isinstance(value, (str, PathLike)):
        raise UsageError(f"{flag} is {value!r}: it must be a preset or a path")
    if name in {"device", "arch"}:
        return str(value)
    if isinstance(value, SupportsIndex) and not isinstance(value, (bool, str)) and name in _INTEGERS:
        return index(value)
    return (
        float(value) if name in _NUMBERS and isinstance(value, Real) and not isinstance(value, int) else value
    )


def _check_types(config: PretrainConfig) -> None:
    for name in ("dataset", "run_dir"):
        if getattr(config, name) is None:
            raise UsageError(f"--{name.replace('_', '-')} is missing: it must be a path")
    for names, kinds, what in ((_INTEGERS, (int,), "a whole number"), (_NUMBERS, (int, float), "a number")):
        for name in names:
            value = getattr(config, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                raise UsageError(f"--{name.replace('_', '-')} is {value!r}: it must be {what}")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            known = ", ".join(str(choice) for choice in choices if choice is not None)
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is {getattr(config, name)!r}: it must be one of {known}")
    if config.seed > _MAX_SEED:
        raise UsageError(f"--seed is {config.seed}: it must be below 2^63")


def _check_ranges(config: PretrainConfig) -> None:
    def check(names: tuple[str, ...], rule: str, *, least: float, above: bool = False) -> None:
        for name in names:
            value = getattr(config, name)
            if value is None:
                continue
            if not math.isfinite(value) or value < least or (above and value == least):
                raise UsageError(f"--{name.replace('_', '-')} is {value}: it must be {rule}")

    check(_AT_LEAST_ONE, "at least 1", least=1)
    check(_POSITIVE, "positive", least=0, above=True)
    check(_NOT_NEGATIVE, "0 or more", least=0)
    for name in ("beta1", "beta2", "min_lr_ratio"):
        value = getattr(config, name)
        if not 0 <= value <= 1 or (name != "min_lr_ratio" and value == 1):
            raise UsageError(f"--{name.replace('_', '-')} is {value}: it must be a share of 1")
    if config.mode == "from-scratch":
        if config.init is not None:
            raise UsageError("--init and --mode from-scratch contradict each other: leave one out")
        if config.arch is None:
            raise UsageError("--mode from-scratch needs --arch: a preset or a YAML file of sizes")
    else:
        if config.init is None:
            raise UsageError(f"--mode {config.mode} needs --init FILE.apr (--mode from-scratch needs none)")
        if config.arch is not None:
            raise UsageError(
                f"--arch belongs to --mode from-scratch: --mode {config.mode} takes it from --init"
            )
    if config.extend and not config.resume:
        raise UsageError("--extend belongs to --resume")
    if config.resume and config.force:
        raise UsageError("--resume and --force contradict each other: go on with the run, or move it away")
