"""Continuing token ids with a decoder: a prompt once, then one token at a time over a key/value cache."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from apr.errors import RefusedError
from apr.model.cache import KvCache
from apr.model.captured import CapturedStep
from apr.model.host_step import HostStep
from apr.model.sampling import GenerateOptions, choose, log_probabilities, uniforms

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from torch import Tensor

    from apr.model.config import ModelConfig
    from apr.model.decoder import Decoder

Finish: TypeAlias = Literal["stop", "length", "context"]
"""Why a sequence ended: one of the stop ids, `max_tokens`, or the model has no more positions."""

# Capturing takes as long as about ten steps that are launched from Python.
_STEPS_WORTH_CAPTURING = 16


@dataclass
class Generated:
    """A continuation of a prompt."""

    ids: list[int] = field(default_factory=list)
    """The generated ids; the last one may be a stop id."""
    logprobs: list[float] = field(default_factory=list)
    """The natural logarithm of each id's probability, before temperature and filters."""
    finish: Finish | None = None
    """Why it ended; None if the caller stopped."""


def generate(
    model: Decoder,
    ids: Sequence[int] | Tensor,
    *,
    max_tokens: int = 128,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    n: int = 1,
    stop_ids: Collection[int] = (),
) -> list[Generated]:
    """Continue a prompt with a model, which may be in training: nothing of it changes.

    The most likely token is taken each time, unless `temperature` or another option of sampling is given.

    Args:
        model: the model, on any device. It computes in the dtype of its weights, or in that of autocast.
        ids: ids of the prompt, at least one.
        max_tokens: the largest number of tokens to generate.
        temperature: divisor of the logits; 0 takes the most likely token. 1 if it is None and another option
            of sampling is given.
        top_k: sample from this many of the likeliest tokens.
        top_p: sample from the fewest of the likeliest tokens that together have this probability.
        min_p: sample from the tokens with at least this fraction of the likeliest one's probability.
        seed: seed of sampling; None for a random one. torch's global generators are not used.
        n: number of continuations.
        stop_ids: a continuation ends with the first of these.

    Returns:
        `n` continuations.

    Raises:
        OptionsError: an option is out of range.
        RefusedError: the prompt is empty, too long, or has ids that the model does not.
    """
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        n=n,
    )
    prompt = ids.flatten().tolist() if isinstance(ids, torch.Tensor) else list(ids)
    results = [Generated() for _ in range(n)]
    for _ in stream(model, prompt, options, results, stop_ids=stop_ids):
        pass
    return results


def check_prompt(config: ModelConfig, prompt: Sequence[int]) -> None:
    """Check that a model can continue a prompt.

    Raises:
        RefusedError: the prompt is empty, too long, or has ids that the model does not.
    """
    if not prompt:
        raise RefusedError("the prompt is empty; pass at least one token")
    if len(prompt) >= config.max_position_embeddings:
        raise RefusedError(
            f"the prompt has {len(prompt):,} tokens, but the model only has "
            f"{config.max_position_embeddings:,} positions; shorten the prompt"
        )
    for index, id_ in enumerate(prompt):
        if not 0 <= id_ < config.vocab_size:
            raise RefusedError(
                f"token {index} of the prompt is {id_}, but the model's vocabulary has "
                f"{config.vocab_size:,} ids; encode the prompt with the model's tokenizer"
            )


def stream(
    model: Decoder,
    prompt: Sequence[int],
    options: GenerateOptions,
    results: Sequence[Generated],
    *,
    stop_ids: Collection[int] = (),
    ended: Callable[[int], bool] = lambda _: False,
) -> Iterator[int]:
    """Generate one token after the other for all sequences, and yield how many there are.

    Args:
        model: the model.
        prompt: ids of the prompt.
        options: how many tokens, and how each is chosen.
        results: one empty continuation for each of `options.n`; they are filled on the way, so that what was
            generated is there however the iteration ends.
        stop_ids: a sequence ends with the first of these.
        ended: asked after each token whether the caller is done with the sequence of that index.
    """
    check_prompt(model.config, prompt)
    room = model.config.max_position_embeddings - len(prompt)
    count = min(options.max_tokens, room)
    stops = frozenset(stop_ids)
    draws = uniforms(options)
    decoding = _Decoding(model, prompt, options.n, count)
    open_ = set(range(options.n))
    for step in range(count):
        ids, logprobs = decoding.next(options, draws[:, step])
        for index in sorted(open_):
            result = results[index]
            result.ids.append(ids[index])
            result.logprobs.append(logprobs[index])
            if ids[index] in stops or ended(index):
                result.finish = "stop"
                open_.remove(index)
        if step + 1 == count:
            for index in open_:
                results[index].finish = "length" if count == options.max_tokens else "context"
            open_.clear()
        yield step + 1
        if not open_:
            return


class _Decoding:
    """A model that is reading a prompt and its own tokens.

    Gradients are off within each call, and never between them: a generator that holds `no_grad` open would
    turn them off for its caller.
    """

    def __init__(self, model: Decoder, prompt: Sequence[int], sequences: int, tokens: int) -> None:
        weight = model.head_weight
        device = weight.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        self._model = model
        self._cache = KvCache(model.config, 1, len(prompt) + tokens, device, dtype)
        self._sequences = sequences
        # All ids, as int64 [B, T] in the order they came; the last ones have not been read.
        self._ids = [torch.tensor([prompt], dtype=torch.int64, device=device)]
        self._length = 0
        self._rereads_at = rereads_at(model.config)
        # Only on CUDA, where launching a thousand kernels takes longer than running them. Not with autocast,
        # whose copies of the weights do not outlive its context.
        self._capture = device.type == "cuda" and tokens >= _STEPS_WORTH_CAPTURING and not autocast
        self._captured: CapturedStep | None = None
        on_host = sequences == 1 and not autocast and HostStep.fits(model)
        self._host_step = HostStep(model, self._cache) if on_host else None

    # Not inference_mode: the model keeps tables that training reads later.
    @torch.no_grad()
    def next(self, options: GenerateOptions, uniform: Tensor) -> tuple[list[int], list[float]]:
        """Return the next id of each sequence, and the logarithm of its probability."""
        # Layers that training has compiled would be compiled again for each length. Before anything was
        # compiled, torch would take 2 s to load the compiler, only to turn it off.
        compiled = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            logits = self._logits()
        ids = choose(logits, options, uniform)
        logprobs = log_probabilities(logits, ids)
        self._ids.append(ids[:, None])
        return ids.tolist(), logprobs.tolist()

    def _logits(self) -> Tensor:
        """Read the ids that have not been read, and return the logits [B, V] after them."""
        ids = self._ids[-1]
        start, self._length = self._length, self._length + ids.shape[1]
        if start == 0:
            hidden = self._model.hidden(ids, self._cache)[:, -1]
            self._cache.repeat(self._sequences)
            return self._model.logits(hidden).expand(self._sequences, -1)
        if start == self._rereads_at:
            self._cache.length, self._captured = 0, None
            ids = torch.cat([self._ids[0].expand(self._sequences, -1), *self._ids[1:]], 1)
            return self._model.logits(self._model.hidden(ids, self._cache)[:, -1])
        if self._capture:
            if self._captured is None:
                self._captured = CapturedStep(self._model, self._cache, self._sequences)
            return self._captured.logits(ids)
        if self._host_step is not None:
            return self._host_step.logits(ids)
        logits: Tensor = self._model(ids, self._cache)[:, -1]
        return logits


def rereads_at(config: ModelConfig) -> int | None:
    """Return the length at which a model reads everything again; None for most models.

    Phi-3's LongRoPE has other frequencies for inputs longer than its first context. Keys that were computed
    with the short ones do not fit (transformers' `Phi3ForCausalLM.prepare_inputs_for_generation`, which no
    other family with LongRoPE has).
    """
    scalings = (kind.rope.scaling for kind in config.layers if kind.rope is not None)
    if config.family != "phi3":
        return None
    return next(
        (s.original_max_position_embeddings for s in scalings if s and s.rope_type == "longrope"), None
    )
