"""One optimizer step: gradients of its micro-batches, then the update, or none if the numbers are bad."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import get_total_norm

from apr.train.loss import add_gradients, softmax
from apr.train.machine.device import computing
from apr.train.optimizer import set_learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from torch.optim import AdamW

    from apr.model.decoder import Decoder
    from apr.train.config import Precision

# Runs before a graph is captured: kernels are chosen and libraries take their memory in them.
_WARM_UP_RUNS = 2
# As torch's clip_grad_norm_ has it: a norm of 0 is divided by, too.
_CLIP_EPS = 1e-6


@dataclass(frozen=True)
class StepOutcome:
    """What a step measured and did."""

    train_loss: float
    """Mean over all its tokens, nats."""
    grad_norm: float
    """Of all gradients, before clipping."""
    updated: bool
    """False if loss or norm is not finite, or the loss above the limit: weights and moments are as before."""

    @property
    def finite(self) -> bool:
        """Whether loss and norm are numbers."""
        return math.isfinite(self.train_loss) and math.isfinite(self.grad_norm)


class Step:
    """Steps of one model, on batches of one shape.

    Args:
        model: on the device to train on.
        optimizer: over its parameters, as `make_optimizer` makes it.
        precision: bf16 computes in bfloat16 over the model's own weights.
        grad_clip: largest norm of the gradient.
        compiled: compile each layer by itself; on a GPU also capture the step in CUDA graphs, so that the
            host launches a handful of things instead of thousands.
    """

    def __init__(
        self,
        model: Decoder,
        optimizer: AdamW,
        *,
        precision: Precision,
        grad_clip: float,
        compiled: bool = False,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._precision, self._grad_clip = precision, grad_clip
        self._device = device = model.head_weight.device
        self._parameters = list(model.parameters())
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._norm = torch.zeros((), device=device)
        self._limit = torch.zeros((), dtype=torch.float64, device=device)
        # The fused kernel leaves all as it is where the one is 1, and divides gradients by the other.
        self._skip = optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]
        self._scale = optimizer.grad_scale = torch.ones((), device=device)  # type: ignore[attr-defined]
        self._softmax = softmax
        self._ids: Tensor | None = None
        self._graphs = _Graphs() if compiled and device.type == "cuda" else None
        if compiled:
            self._softmax = torch.compile(softmax, fullgraph=True, dynamic=False)
            for layer in model.model.layers:
                layer.compile(fullgraph=True, dynamic=False)

    def accumulate(self, batches: Sequence[Tensor], tokens: int) -> None:
        """Gradients of the micro-batches of a step; the host does not wait for them.

        Args:
            batches: int64 [B, T + 1] each, on the CPU or the device.
            tokens: predicted tokens of all of them.
        """
        self._loss.zero_()
        for i, batch in enumerate(batches):
            ids = batch.to(self._device, non_blocking=True)
            if self._graphs is None:
                self._add(ids, tokens)
            else:
                self._replay(self._graphs, ids, tokens, first=i == 0)

    def loss(self) -> float:
        """Wait for the mean loss of the tokens that were accumulated, nats."""
        return self._loss.item()

    def update(self, lr: float, loss_limit: float = math.inf) -> StepOutcome:
        """Update the weights from the gradients, and forget these.

        Args:
            lr: the learning rate.
            loss_limit: nats; with a loss above it, nothing is updated.
        """
        set_learning_rate(self._optimizer, lr)
        self._limit.fill_(loss_limit)
        if self._graphs is None:
            self._update()
            self._forget()
        else:
            self._graphs.run("update", self._update, warm_up=self._update_nothing)
        loss, norm, skipped = torch.stack([self._loss, self._norm.double(), self._skip.double()]).tolist()
        return StepOutcome(loss, norm, updated=not skipped)

    def _add(self, ids: Tensor, tokens: int) -> None:
        with computing(self._device, self._precision):
            self._loss += add_gradients(self._model, ids, tokens, softmax=self._softmax)

    def _update(self) -> None:
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        self._norm.copy_(norm)
        sound = self._loss.isfinite() & norm.isfinite() & (self._loss <= self._limit)
        self._skip.copy_(~sound)
        self._scale.copy_(((norm + _CLIP_EPS) / self._grad_clip).clamp(min=1))
        self._optimizer.step()

    def _update_nothing(self) -> None:
        """Run through an update that no loss is low enough for."""
        limit = self._limit.clone()
        self._limit.fill_(-math.inf)
        self._update()
        self._limit.copy_(limit)

    def _replay(self, graphs: _Graphs, ids: Tensor, tokens: int, *, first: bool) -> None:
        """`_add` as a graph: the first micro-batch writes the gradients, those after it add to them."""
        if self._ids is None:
            self._ids = ids.clone()
        static = self._ids.copy_(ids)

        def warm_up() -> None:
            for _ in range(_WARM_UP_RUNS):
                self._add(static, tokens)
                self._forget()
            self._loss.zero_()

        if first:
            graphs.run("first", lambda: self._add(static, tokens), warm_up)
        else:
            graphs.run("further", lambda: self._add(static, tokens))

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class _Graphs:
    """Functions captured once as CUDA graphs that share their memory, and replayed."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def run(self, name: str, function: Callable[[], None], warm_up: Callable[[], None] | None = None) -> None:
        """Capture `function` where that has not been done, after running `warm_up`; replay it."""
        if name not in self._graphs:
            if warm_up is not None:
                stream, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
                stream.wait_stream(here)
                with torch.cuda.stream(stream):
                    warm_up()
                here.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on meanwhile, with pinned memory of their own.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
            self._graphs[name] = graph
        self._graphs[name].replay()
