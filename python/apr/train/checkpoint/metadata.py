"""The metadata of a checkpoint. They name no path, time or host: two equal runs write the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from apr.model.config import ModelConfig
    from apr.train.checkpoint.state import RunState
    from apr.train.config import Mode


class BaseModel(TypedDict):
    """The file that a run was started from."""

    name: str
    size: int
    """Bytes."""
    crc32: str
    """CRC-32 of all bytes, in hexadecimal."""
    untrained: NotRequired[bool]
    """True if its weights were random, as `apr init` writes them; missing otherwise."""


class CorpusFacts(TypedDict):
    """The shards that a run trains on."""

    total_tokens: int
    corpus_sha256: str | None
    manifest_sha256: str | None


class HeldOutFacts(TypedDict):
    """The token ids that a run holds out."""

    corpus_sha256: str | None
    start: int
    stop: int


class TrainingFacts(TypedDict):
    """What is fixed for a run; `training` in the metadata also contains `state`."""

    mode: Mode
    seed: int
    seq_length: int
    batch_size: int
    grad_accum: int
    val_tokens: int
    base_model: BaseModel | None
    data: CorpusFacts
    held_out: HeldOutFacts


@dataclass(frozen=True)
class CheckpointMetadata:
    """What all checkpoints of a run have in their metadata."""

    model: ModelConfig
    parameters: int
    """Number of the model's parameters; a tied head counts once."""
    carried: dict[str, Any]
    """Keys carried over from the base model or the tokenizer: name, license, data_source, data_license,
    hf_config, hf_generation_config, chat_template, special_tokens, and those that begin with `tokenizer.` or
    `hf_tokenizer`."""
    training: TrainingFacts

    def to_dict(self, state: RunState | None = None) -> dict[str, Any]:
        """Return the metadata of one file: of a checkpoint with its state, or of an export without."""
        training: dict[str, Any] = {**self.training}
        if state is not None:
            training["state"] = state.to_dict()
        return {
            # The sizes in every file: a checkpoint without them could not be the --init of another run.
            # The order of the keys is their order in the file: if it changed, equal runs would differ in
            # bytes.
            "model_type": self.model.family,
            "param_count": self.parameters,
            **self.model.to_metadata(),
            **self.carried,
            "training": training,
        }
