"""`--sample-prompt`: what the model in training makes of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_TOKENIZER
from apr.data.prompt import PromptTokenizer
from apr.errors import UnsupportedError
from apr.model.generate import check_prompt, generate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from apr.model.config import ModelConfig
    from apr.model.decoder import Decoder

# About a paragraph: enough to hear a difference, and a few seconds on a CPU.
_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A continuation, with the fields that its line in `samples.jsonl` has."""

    step: int
    """Number of steps done before it."""
    prompt: str
    text: str
    """The likeliest continuation, without special tokens."""
    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Sampler:
    """A prompt and its tokenizer."""

    prompt: str
    ids: list[int]
    tokenizer: PromptTokenizer

    def sample(self, model: Decoder, step: int) -> Sample:
        """Continue the prompt. Nothing of the model or of torch's generators changes."""
        (result,) = generate(model, self.ids, max_tokens=_MAX_TOKENS, stop_ids=self.tokenizer.stop_ids())
        # After the prompt: some decoders write the first space only there.
        before, whole = (self.tokenizer.decode(ids) for ids in (self.ids, self.ids + result.ids))
        return Sample(
            step=step,
            prompt=self.prompt,
            text=whole[len(before) :],
            ids=result.ids,
            logprobs=result.logprobs,
        )


def make_sampler(
    prompt: str, model: ModelConfig, metadata: Mapping[str, Any], tokenizer: Path | None
) -> Sampler:
    """Return the sampler of a run.

    Args:
        prompt: the text.
        model: the model's configuration.
        metadata: what checkpoints carry, the tokenizer included.
        tokenizer: the tokenizer of --tokenizer, which is used instead if it exists.

    Raises:
        AprError: there is no tokenizer, or it cannot be rebuilt.
        RefusedError: the prompt does not fit the model.
    """
    found = tokenizer if tokenizer is not None and tokenizer.exists() else None
    if found is None and not {HF_TOKENIZER, "tokenizer.vocabulary"} & metadata.keys():
        raise UnsupportedError(
            "--sample-prompt: the model has no tokenizer; pass --tokenizer, a directory or a tokenizer.json"
        )
    encoder = PromptTokenizer("--sample-prompt", metadata, found)
    ids = encoder.encode(prompt)
    check_prompt(model, ids)
    return Sampler(prompt, ids, encoder)
