"""Which token comes next: pure functions of logits and of uniform random numbers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le

from apr.errors import OptionsError, UsageError
from apr.options import Unset, check_options

if TYPE_CHECKING:
    from torch import Tensor

_NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How many tokens are generated, and how each is chosen.

    Raises:
        OptionsError: values are out of range or contradict each other.
    """

    max_tokens: Annotated[int, Ge(1)] = 128
    """Maximum number of tokens to generate."""
    temperature: Annotated[
        float | None,
        Ge(0),
        Unset("0, the most likely token each time; 1 if another sampling option is given"),
    ] = None
    """Divisor of the logits. Below 1, likely tokens become likelier."""
    top_k: Annotated[int | None, Ge(1), Unset("all")] = None
    """Sample from this many of the likeliest tokens."""
    top_p: Annotated[float | None, Gt(0), Le(1), Unset("all")] = None
    """Sample from the fewest of the likeliest tokens that together have this probability."""
    min_p: Annotated[float | None, Ge(0), Le(1), Unset("all")] = None
    """Sample from the tokens that have at least this fraction of the likeliest one's probability."""
    seed: Annotated[int | None, Ge(0), Le(2**63 - 1), Unset("a random one, which is printed")] = None
    """Seed of sampling. The same seed gives the same text on the same device."""
    n: Annotated[int, Ge(1)] = 1
    """Number of texts to sample for the prompt."""

    def __post_init__(self) -> None:
        problems = check_options(self)
        if problems:
            raise OptionsError(problems)
        given = [f"--{name.replace('_', '-')}" for name in ("top_k", "top_p", "min_p") if self._has(name)]
        if self.n > 1:
            given.append("--n")
        if self.temperature == 0 and given:
            raise UsageError(
                f"{given[0]} has no effect with --temperature 0, which takes the most likely token each "
                "time; raise --temperature"
            )
        if self.temperature is None:
            object.__setattr__(self, "temperature", 1.0 if given else 0.0)
        if self.temperature and self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**32))

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return not self.temperature


def filtered(logits: Tensor, options: GenerateOptions) -> Tensor:
    """Return logits over the temperature, with -inf for the tokens that must not be sampled.

    The filters apply in transformers' order: top-k, top-p of what is left, min-p of what is left.

    Args:
        logits: float32 [B, V].
        options: with a temperature above 0.
    """
    import torch

    assert options.temperature
    logits = logits / options.temperature
    if options.top_k is not None:
        least = logits.topk(min(options.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, _NEVER)
    if options.top_p is not None and options.top_p < 1:
        ordered, order = logits.sort()
        # From the unlikely end: what is dropped has at most 1 - top_p together. The likeliest one stays.
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - options.top_p
        drop[:, -1] = False
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), _NEVER)
    if options.min_p is not None:
        probabilities = logits.softmax(-1)
        drop = probabilities < options.min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(drop, _NEVER)
    return logits


def choose(logits: Tensor, options: GenerateOptions, uniform: Tensor) -> Tensor:
    """Return the next token of each sequence: int64 [B].

    Args:
        logits: [B, V].
        options: how to choose.
        uniform: float64 [B], each in [0, 1). Each picks the token whose interval of the cumulative
            distribution it is in. Not read if `options.greedy`.
    """
    import torch

    if options.greedy:
        return logits.argmax(-1)
    # float64: over 200,000 tokens, a float32 sum is off by more than many of the probabilities.
    cumulative = filtered(logits.float(), options).double().softmax(-1).cumsum(-1)
    target = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
    # right=True skips tokens of probability 0, whose interval is empty.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the natural logarithm of the probability that the model gives each token: float32 [B].

    It is that of the model itself, before temperature and filters.

    Args:
        logits: [B, V].
        ids: int64 [B].
    """
    logits = logits.float()
    return logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def uniforms(options: GenerateOptions) -> Tensor:
    """Return the random numbers of a generation: float64 [n, max_tokens], on the CPU.

    Sequence i has a generator of its own, so that it does not depend on how many are sampled beside it, and
    the numbers do not depend on the device.
    """
    import torch

    if options.greedy:
        return torch.zeros(options.n, options.max_tokens, dtype=torch.float64)
    assert options.seed is not None
    rows = [
        torch.rand(
            options.max_tokens,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed((options.seed + i) % 2**63),
        )
        for i in range(options.n)
    ]
    return torch.stack(rows)
