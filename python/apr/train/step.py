"""One optimizer step: the gradients of its micro-batches, then an update, unless the numbers are bad."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import get_total_norm

from apr.train.compiled_layers import compile_layers
from apr.train.loss import add_gradients, softmax
from apr.train.machine.device import computing, fastest_attention
from apr.train.optimizer import set_learning_rate
from apr.train.parallel.gradients import AllReduce, watch
from apr.train.parallel.shard import is_sharded, own, whole
from apr.train.parallel.tree import SubtreeSum, TreeSum, run_length
from apr.train.parallel.world import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.optim import AdamW

    from apr.model.decoder import Decoder
    from apr.train.bf16_copy import Bf16Copy
    from apr.train.config import Precision
    from apr.train.parallel.gradients import RankSum

# Runs before a graph is captured. In them kernels are chosen and libraries allocate their workspaces, neither
# of which may happen during a capture.
_WARM_UP_RUNS = 2
# The epsilon of torch's clip_grad_norm_, which keeps a norm of 0 from being divided by.
_CLIP_EPS = 1e-6


@dataclass(frozen=True)
class StepOutcome:
    """What a step measured, and whether it updated the weights."""

    train_loss: float
    """Mean over all tokens of the step, in nats."""
    grad_norm: float
    """Norm of all gradients together, before clipping."""
    updated: bool
    """False if the loss or the norm is not finite, or the loss is above the limit: nothing was changed."""

    @property
    def finite(self) -> bool:
        """Whether loss and norm are finite."""
        return math.isfinite(self.train_loss) and math.isfinite(self.grad_norm)


class Step:
    """Steps of one model, on batches of one shape.

    Args:
        model: the model, on the device to train on.
        optimizer: the optimizer over its parameters, from `make_optimizer`.
        precision: bf16 computes in bfloat16 over float32 weights.
        grad_clip: the largest norm of the gradient.
        compiled: compile each layer by itself; on a GPU also capture the step in CUDA graphs, so that the
            host launches a handful of things instead of thousands. With bf16 on a GPU the step is the fast
            one: a bfloat16 copy of the model computes the gradients (`Bf16Copy`).
        recomputes: keep only the inputs of layers for the backward pass (activation checkpointing).
        world: the ranks that each compute a part of every step's gradients, and all make the same update.
        fixed_order: add up micro-batches in an order that does not depend on the number of ranks, which is
            then a power of two.
    """

    def __init__(
        self,
        model: Decoder,
        optimizer: AdamW,
        *,
        precision: Precision,
        grad_clip: float,
        compiled: bool = False,
        recomputes: bool = False,
        world: World = ALONE,
        fixed_order: bool = False,
    ) -> None:
        model.model.recomputes = recomputes
        self._model, self._optimizer = model, optimizer
        self._precision, self._grad_clip = precision, grad_clip
        self._device = device = model.head_weight.device
        self._parameters = list(model.parameters())
        # Loss, norm and limit stay on the device: the host waits for it once a step, when it reads them all.
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._norm = torch.zeros((), device=device)
        self._limit = torch.zeros((), dtype=torch.float64, device=device)
        # torch's fused AdamW reads these two attributes, which GradScaler otherwise sets. It changes nothing
        # where found_inf is 1, and divides the gradients by grad_scale, which here clips them.
        self._skip = optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]
        self._scale = optimizer.grad_scale = torch.ones((), device=device)  # type: ignore[attr-defined]
        self._softmax = softmax
        self._static_ids: Tensor | None = None
        # Graphs of a whole step took Qwen2.5-0.5B at 8 x 512 from 45.9 to 39.3 ms on an H100, where launching
        # kernels is the limit. They gain nothing at larger sizes.
        self._sharded = is_sharded(model)
        self._graphs = _Graphs() if compiled and device.type == "cuda" and not self._sharded else None
        self._copy: Bf16Copy | None = None
        self._several: bool | None = None
        if self._graphs is not None and precision == "bf16":
            # Imported here: it imports Triton, which a torch for the CPU need not have.
            from apr.train.bf16_copy import Bf16Copy

            self._copy = Bf16Copy(model, optimizer)
        elif compiled:
            self._softmax = torch.compile(softmax, fullgraph=True, dynamic=False)
            compile_layers(model)
        self._world, self._subtree = world, SubtreeSum() if fixed_order else None
        self._totals: Mapping[str, Tensor] | None = None
        self._of_ranks: RankSum | None = None
        if world.size > 1 and not self._sharded:
            self._of_ranks = TreeSum(device) if fixed_order else AllReduce()
            if self._copy is None:
                watch(self._parameters, self._of_ranks.ready)
            else:
                self._copy.watch(self._of_ranks.ready)

    def accumulate(self, batches: Sequence[Tensor], tokens: int) -> None:
        """Compute the gradients of a step's micro-batches, on all ranks. The host does not wait for them.

        Args:
            batches: int64 [B, T + 1] each, on the CPU or the device; as many in each step. Those of this
                rank.
            tokens: number of predicted tokens in all of them, on all ranks.
        """
        if self._of_ranks is not None:
            self._of_ranks.connect(self._device)
        run = len(batches)
        if self._subtree is not None:
            run = run_length(len(batches) * self._world.size)
        if self._subtree is None or run == len(batches):
            self._accumulate_in_a_row(batches, tokens, meets=self._of_ranks is not None)
            if self._sharded:
                # The gradients were added up within the backward passes.
                torch.distributed.all_reduce(self._loss)
            return
        for first in range(0, len(batches), run):
            self._accumulate_in_a_row(batches[first : first + run], tokens, meets=False)
            self._subtree.add(self._own_gradients(), self._loss)
            if self._graphs is None:
                self._clear_gradients()
        totals, loss = self._subtree.root()
        self._loss.copy_(loss)
        if self._of_ranks is not None:
            totals = self._of_ranks.finish(totals, self._loss)
        self._take_totals(totals)

    def gradients(self) -> Mapping[str, Tensor]:
        """Return the accumulated gradients by the names of their parameters."""
        return self._own_gradients() if self._totals is None else self._totals

    def loss(self) -> float:
        """Wait for the mean loss of the accumulated tokens and return it, in nats."""
        return self._loss.item()

    def update(self, lr: float, loss_limit: float = math.inf) -> StepOutcome:
        """Update the weights from the gradients, and clear the gradients.

        Args:
            lr: the learning rate.
            loss_limit: in nats; if the loss is above it, nothing is updated.
        """
        set_learning_rate(self._optimizer, lr)
        # Filled, not replaced: the captured update reads this memory.
        self._limit.fill_(loss_limit)
        if self._graphs is None:
            self._update()
            self._clear_gradients()
        else:
            if self._copy is not None and "update" not in self._graphs:
                self._copy.fix_addresses(self.gradients())
            self._graphs.run("update", self._update, warm_up=self._warm_up_update)
        # One transfer for all three: each by itself would make the host wait for the device.
        numbers = torch.stack([self._loss, self._norm.double(), self._skip.double()])
        self._world.meet(self._device)
        loss, norm, skipped = numbers.tolist()
        return StepOutcome(loss, norm, updated=not skipped)

    def own_numbers(self, batches: Sequence[Tensor], tokens: int) -> tuple[float, float]:
        """Return loss and gradient norm of this rank's micro-batches alone. No step follows.

        Args:
            batches: those that `accumulate` got.
            tokens: the same.
        """
        self._graphs = None
        self._clear_gradients()
        self._accumulate_in_a_row(batches, tokens, meets=False)
        norm = get_total_norm([own(gradient) for gradient in self._own_gradients().values()])
        return self.loss(), norm.item()

    def release(self) -> None:
        """Free what holds on to the connections between ranks, captured graphs too. No step follows."""
        if self._of_ranks is not None:
            self._of_ranks.release()
        self._graphs = None

    def _accumulate_in_a_row(self, batches: Sequence[Tensor], tokens: int, *, meets: bool) -> None:
        """Add up the gradients of micro-batches one after another; `meets`: then those of all ranks."""
        self._loss.zero_()
        if self._copy is not None:
            if self._several is None:
                self._several = len(batches) > 1
                # Not before: a resumed run's weights are in place only now.
                self._copy.refresh()
            assert self._several == (len(batches) > 1), "the graphs are captured for one or for several"
            self._copy.begin(accumulate=self._several)
        for i, batch in enumerate(batches):
            ids = batch.to(self._device, non_blocking=True)
            last = i == len(batches) - 1
            if self._graphs is None:
                self._add(ids, tokens, meets=meets and last)
            else:
                self._replay(self._graphs, ids, tokens, first=i == 0, meets=meets and last)

    def _own_gradients(self) -> dict[str, Tensor]:
        if self._copy is not None:
            return self._copy.gradients()
        return {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}

    def _add(self, ids: Tensor, tokens: int, *, meets: bool) -> None:
        """Add the gradients and the loss of a micro-batch; `meets`: then add up those of all ranks."""
        if not meets:
            self._add_own(ids, tokens)
            return
        assert self._of_ranks is not None
        # The fast step adds up several micro-batches after each backward pass, not in it.
        with nullcontext() if self._copy is not None and self._several else self._of_ranks.overlapped():
            self._add_own(ids, tokens)
        self._take_totals(self._of_ranks.finish(self._own_gradients(), self._loss))

    def _take_totals(self, totals: Mapping[str, Tensor]) -> None:
        """Make the update use these gradients, whose memory may not be that of the parameters' own."""
        if self._copy is not None:
            self._totals = totals
            return
        for name, parameter in self._model.named_parameters():
            if parameter.grad is None:
                parameter.grad = totals[name]
            elif parameter.grad is not totals[name]:
                # Copied: a captured update reads the memory of the parameter's own.
                parameter.grad.copy_(totals[name])

    def _add_own(self, ids: Tensor, tokens: int) -> None:
        if self._copy is not None:
            with fastest_attention(self._device):
                self._loss += self._copy.add(ids, tokens)
            return
        with computing(self._device, self._precision):
            self._loss += add_gradients(self._model, ids, tokens, softmax=self._softmax)

    def _update(self) -> None:
        if self._copy is not None:
            norm = self._copy.norm()
        else:
            norm = whole(get_total_norm([p.grad for p in self._parameters if p.grad is not None]))
        self._norm.copy_(norm)
        # Decided on the device, so that the update needs no answer from the host. A comparison with NaN is
        # false.
        good = self._loss.isfinite() & norm.isfinite() & (self._loss <= self._limit)
        self._skip.copy_(~good)
        # As a division on the device: reading the norm to decide about clipping would stop the host in every
        # step.
        self._scale.copy_(((norm + _CLIP_EPS) / self._grad_clip).clamp(min=1))
        if self._copy is not None:
            self._copy.update(self._scale, self._skip)
        else:
            self._optimizer.step()

    def _warm_up_update(self) -> None:
        # No loss is below this limit, so that the update runs and changes nothing.
        limit = self._limit.clone()
        self._limit.fill_(-math.inf)
        self._update()
        self._limit.copy_(limit)

    def _replay(self, graphs: _Graphs, ids: Tensor, tokens: int, *, first: bool, meets: bool) -> None:
        """Run `_add` as a graph: the first micro-batch writes the gradients, the others add to them."""
        # A graph reads its input from the address it was captured with.
        if self._static_ids is None:
            self._static_ids = ids.clone()
        static = self._static_ids.copy_(ids)

        def warm_up() -> None:
            for _ in range(_WARM_UP_RUNS):
                self._add(static, tokens, meets=meets)
                self._clear_gradients()
            self._loss.zero_()
            if self._copy is not None:
                # Forgets what the warm-up added to the sums of several micro-batches.
                self._copy.begin(accumulate=bool(self._several))

        # Several graphs, because a graph replays one branch: whether a gradient exists already, and whether
        # the ranks meet, is decided at the capture.
        name = ("add" if self._copy is not None else "first" if first else "further") + " and meet" * meets
        # What a later graph computes is warmed up by the first one's.
        graphs.run(name, lambda: self._add(static, tokens, meets=meets), warm_up if first else None)

    def _clear_gradients(self) -> None:
        if self._copy is not None:
            self._copy.clear()
            return
        for parameter in self._parameters:
            # None instead of zeros: the first micro-batch then writes the gradients, and nothing is filled or
            # added to it.
            parameter.grad = None


class _Graphs:
    """Functions that are captured once as CUDA graphs, share their memory, and are replayed."""

    def __init__(self) -> None:
        # One pool: the graphs never run at the same time. With a pool each, their activations would all stay
        # reserved.
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._graphs

    def run(self, name: str, function: Callable[[], None], warm_up: Callable[[], None] | None = None) -> None:
        """Replay `function`; the first time, run `warm_up` and capture it before."""
        if name not in self._graphs:
            if warm_up is not None:
                # torch requires a side stream for the warm-up of a capture.
                stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    warm_up()
                current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # "thread_local": the loader's and the checkpoint's threads may allocate pinned memory during the
            # capture, which the default mode would turn into an error.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
            self._graphs[name] = graph
        self._graphs[name].replay()
