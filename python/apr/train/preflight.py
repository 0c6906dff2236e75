"""Everything that is checked before the first step; each refusal is one line."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apr.container.file import load
from apr.container.metadata import HF_TOKENIZER, VOCABULARY
from apr.contracts.schema import load_contract
from apr.data.corpus_check import problems
from apr.data.scan import Scan, common_shards
from apr.data.shards import ShardDir
from apr.data.split import Split, evaluation_windows, split
from apr.errors import RefusedError
from apr.model.config import ModelConfig
from apr.model.decoder import Decoder
from apr.model.fill import fill, has_head
from apr.model.init import init_weights, load_arch
from apr.train.device import choose_device, default_precision, describe, free_memory_bytes
from apr.train.loss import rows_at_a_time

if TYPE_CHECKING:
    from apr.container.file import AprFile
    from apr.data.tokenizers import LoadedTokenizer
    from apr.train.config import Precision, PretrainConfig

# Kaplan-style rule of thumb: fewer training tokens a parameter leave a model from scratch mostly untrained.
_ENOUGH_TOKENS_A_PARAMETER = 10
_TOKENIZER_KEYS = ("tokenizer.", "chat_template", "special_tokens", HF_TOKENIZER)
_CARRIED_KEYS = ("name", "license", "data_source", "data_license")


@dataclass(frozen=True)
class Prepared:
    """A run that may start: what it trains, on what, where."""

    config: PretrainConfig
    """With the mode's row filled in."""
    model_config: ModelConfig
    split: Split
    device: torch.device
    precision: Precision
    parameters: int
    facts: dict[str, Any]
    """Metadata of its checkpoints, but for the run's state."""
    notes: tuple[str, ...]
    """What a user should know, and warnings."""
    checkpoint_bytes: int
    memory_bytes: int
    """Estimate."""

    @property
    def val_tokens(self) -> int:
        """Tokens that each evaluation takes."""
        return evaluation_windows(self.split.held_out, self.config.val_tokens) * self.config.seq_length

    def build_model(self) -> Decoder:
        """The model that the run starts from, on its device.

        Raises:
            WeightsError: the tensors of the init file do not fit.
        """
        model = Decoder.empty(self.model_config, self.device, torch.float32)
        if self.config.init is None:
            init_weights(model, self.config.seed)
        else:
            with load(self.config.init) as file:
                fill(model, file)
        return model


def prepare(config: PretrainConfig) -> Prepared:
    """Check a run's options against files and machine.

    Raises:
        AprError: the init file is not valid.
        FileNotFoundError: something that is named is not there.
        RefusedError: it cannot run, or should not; the message says what to do.
    """
    config = config.resolved()
    device = choose_device(config.device)
    precision = config.precision or default_precision(device)
    dataset = ShardDir(config.dataset)
    val_dataset = None if config.val_dataset is None else ShardDir(config.val_dataset)
    tokenizer = _tokenizer(config)
    scan = dataset.scan()
    val_scan = scan if val_dataset is None else val_dataset.scan()
    model_config, carried, base = _model(config, tokenizer, dataset, scan)
    scans = {dataset: scan} if val_dataset is None else {dataset: scan, val_dataset: val_scan}
    _check_vocabulary(model_config, tokenizer, scans)
    for shards, found in scans.items():
        _check_corpus(shards, found, tokenizer, carried)
    if config.contract is not None:
        load_contract(config.contract)
    if config.val_dataset is not None:
        _check_overlap(config, scan, val_scan)
    positions = model_config.max_position_embeddings
    if config.seq_length > positions:
        raise RefusedError(f"--seq-length {config.seq_length} is beyond the model's {positions} positions")
    parts = split(dataset, val_dataset, config.seq_length, config.val_tokens)
    notes = [
        f"device: {describe(device)}, {precision}" + (" (chosen by auto)" if config.device == "auto" else "")
    ]
    if tokenizer is not None and tokenizer.note:
        notes.append(f"tokenizer: {tokenizer.note}")
    notes += _check_length(config, len(parts.train))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Decoder(model_config).parameters())
    notes += _provision(config, parameters)
    checkpoint_bytes = 12 * parameters  # weights and two moments, float32
    _check_disk(config, checkpoint_bytes)
    memory = _memory_bytes(config, model_config, parameters, precision, device)
    free = free_memory_bytes(device)
    if free is not None and memory > free:
        raise RefusedError(
            f"about {memory / 2**30:.1f} GiB of memory are needed, {device} has {free / 2**30:.1f} free: "
            "lower --batch-size and raise --grad-accum, or lower --seq-length"
        )
    return Prepared(
        config=config,
        model_config=model_config,
        split=parts,
        device=device,
        precision=precision,
        parameters=parameters,
        facts=_facts(config, model_config, parameters, carried, base, parts, scan, val_scan),
        notes=tuple(notes),
        checkpoint_bytes=checkpoint_bytes,
        memory_bytes=memory,
    )


def _tokenizer(config: PretrainConfig) -> LoadedTokenizer | None:
    if config.tokenizer is None:
        return None
    from apr.data.tokenizers import load_tokenizer

    return load_tokenizer(config.tokenizer)


def _model(
    config: PretrainConfig, tokenizer: LoadedTokenizer | None, dataset: ShardDir, scan: Scan
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any] | None]:
    """The model's configuration, what its checkpoints carry on, and which file it starts from."""
    carried = dict.fromkeys(_CARRIED_KEYS[1:])
    if config.init is None:
        assert config.arch is not None
        sizes = (tokenizer.vocab_size if tokenizer else None, dataset.vocab_size, scan.max_id + 1)
        vocab_size = next(size for size in sizes if size is not None)
        if tokenizer is not None:
            carried |= tokenizer.metadata()
        return load_arch(config.arch, vocab_size), carried, None
    with load(config.init, verify="full") as file:
        try:
            model_config = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
        except RefusedError as error:
            raise type(error)(f"{config.init}: {error}") from None
        inside = {key: value for key, value in file.metadata.items() if key.startswith(_TOKENIZER_KEYS)}
        carried |= {key: file.metadata[key] for key in _CARRIED_KEYS if key in file.metadata}
        if tokenizer is not None and not {VOCABULARY, HF_TOKENIZER} & inside.keys():
            inside = tokenizer.metadata()
        base = {"name": config.init.name, "size": file.nbytes, "crc32": _crc32(file)}
        return model_config, carried | inside, base


def _crc32(file: AprFile) -> str:
    crc = file.footer
    if crc is None:
        with Path(file.path).open("rb") as raw:
            crc = 0
            while chunk := raw.read(1 << 22):
                crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def _check_vocabulary(
    model: ModelConfig, tokenizer: LoadedTokenizer | None, scans: dict[ShardDir, Scan]
) -> None:
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise RefusedError(
            f"{tokenizer.source}: the tokenizer's vocabulary has {tokenizer.vocab_size} ids, "
            f"the model's {model.vocab_size}: they do not belong together"
        )
    for shards, scan in scans.items():
        said = shards.vocab_size
        if said is not None and said > model.vocab_size:
            raise RefusedError(
                f"{shards.path}: encoded with a vocabulary of {said} ids, the model has {model.vocab_size}: "
                "encode with the model's tokenizer"
            )
        if said is not None and tokenizer is not None and said != tokenizer.vocab_size:
            raise RefusedError(
                f"{shards.path}: encoded with a vocabulary of {said} ids, {tokenizer.source} has "
                f"{tokenizer.vocab_size}: give the tokenizer that encoded it"
            )
        highest = max(scan.shards, key=lambda shard: shard.max_id)
        if highest.max_id >= model.vocab_size:
            raise RefusedError(
                f"{shards.path / highest.name}: id {highest.max_id} is beyond the model's vocabulary of "
                f"{model.vocab_size}: encode with the model's tokenizer"
            )


def _check_corpus(
    shards: ShardDir, scan: Scan, tokenizer: LoadedTokenizer | None, carried: dict[str, Any]
) -> None:
    """Whether the ids can be text; what ends one is known to the tokenizer, the init file or the manifest."""
    if tokenizer is not None:
        eos, unk = tokenizer.eos_id, tokenizer.unk_id
    else:
        eos = shards.manifest.get("eos_token_id", carried.get("tokenizer.eos_token_id"))
        unk = carried.get("tokenizer.unknown_token_id")
        unk = None if unk == eos else unk
    found = problems(scan, eos, unk)
    if found:
        raise RefusedError(f"{shards.path}: this is no text: {'; '.join(found)}")


def _check_overlap(config: PretrainConfig, scan: Scan, val_scan: Scan) -> None:
    for train, held_out in common_shards(scan.shards, val_scan.shards):
        raise RefusedError(
            f"{config.val_dataset}/{held_out} is {config.dataset}/{train}, byte for byte: "
            "held-out shards must not be trained on"
        )


def _check_length(config: PretrainConfig, windows: int) -> list[str]:
    needed = config.num_steps * config.windows_per_step
    if needed <= windows:
        return []
    if not config.allow_shard_cycle:
        raise RefusedError(
            f"{config.dataset}: {needed:,} windows of {config.seq_length} tokens planned, {windows:,} there: "
            f"take --num-steps {windows // config.windows_per_step}, encode more, or --allow-shard-cycle"
        )
    return [f"the {windows:,} training windows are visited {needed / windows:.1f} times"]


def _provision(config: PretrainConfig, parameters: int) -> list[str]:
    tokens = config.num_steps * config.tokens_per_step
    enough = tokens >= _ENOUGH_TOKENS_A_PARAMETER * parameters
    if config.init is not None or config.force_under_provisioned or enough:
        return []
    return [
        f"warning: {tokens:,} training tokens are {tokens / parameters:.2g} a parameter; "
        f"from scratch {_ENOUGH_TOKENS_A_PARAMETER} are the least (--force-under-provisioned silences this)"
    ]


def _check_disk(config: PretrainConfig, checkpoint_bytes: int) -> None:
    # The best one, the ones to keep, and the one being written.
    needed = min(config.keep + 2, config.epochs + 1) * checkpoint_bytes
    free = shutil.disk_usage(_existing(config.run_dir)).free
    if needed > free:
        raise RefusedError(
            f"{config.run_dir}: checkpoints need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "lower --keep or choose another --run-dir"
        )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _memory_bytes(
    config: PretrainConfig,
    model: ModelConfig,
    parameters: int,
    precision: Precision,
    device: torch.device,
) -> int:
    """Weights, gradients and moments in float32; activations that the backward pass needs; logits."""
    width = 2 if precision == "bf16" else 4
    tokens = config.batch_size * config.seq_length
    attention = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    # Kept by a layer for each token: two residuals and norms, q, k, v before and after rotation and the
    # attention's output, gate, up, their product and silu.
    layer = 4 * model.hidden_size + 3 * attention + 4 * model.intermediate_size
    logits = min(tokens, rows_at_a_time(model.vocab_size, device)) * model.vocab_size * (width + 8)
    copies = 2 * parameters if precision == "bf16" else 0
    return 16 * parameters + copies + tokens * model.num_layers * layer * width + logits


def _facts(
    config: PretrainConfig,
    model: ModelConfig,
    parameters: int,
    carried: dict[str, Any],
    base: dict[str, Any] | None,
    parts: Split,
    scan: Scan,
    val_scan: Scan,
) -> dict[str, Any]:
    training = {
        "mode": config.mode,
        "seed": config.seed,
        "seq_length": config.seq_length,
        "batch_size": config.batch_size,
        "grad_accum": config.grad_accum,
        "val_tokens": config.val_tokens,
        "base_model": base,
        "data": {
            "total_tokens": scan.total_tokens,
            "corpus_sha256": scan.corpus_sha256,
            "manifest_sha256": parts.train.shards.manifest_sha256,
        },
        "held_out": {
            "corpus_sha256": val_scan.corpus_sha256,
            "start": parts.held_out.start,
            "stop": parts.held_out.stop,
        },
    }
    facts = {"model_type": model.family, "param_count": parameters, **model.to_metadata(), **carried}
    plain: dict[str, Any] = json.loads(json.dumps({**facts, "training": training}))  # as a checkpoint has it
    return plain
