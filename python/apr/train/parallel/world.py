"""The ranks of a run: which one this process is, and what all of them tell each other.

A run in one process is a world of one rank, in which nothing is sent. torchrun starts the processes of a
larger one, and describes it in their environment. Numbers on the host travel over gloo, gradients on GPUs
over NCCL.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import (
    PrefixStore,
    Store,
    _get_default_group,
    _get_default_store,
)
from torch.distributed.rendezvous import rendezvous

from apr.errors import AprError, PreflightError, RefusedError, exit_code, messages
from apr.train.parallel.launched import launched_ranks

try:
    from torch.distributed import set_timeout
except ImportError:  # torch < 2.13
    from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


# How long a rank waits for another one that may be reading, compiling or writing what ends the run.
_PATIENCE_SECONDS = 1800.0
# How often a rank looks whether its GPU is done, once all have given theirs the work of a step.
_POLL_SECONDS = 1e-4


class RankTimeout(RuntimeError):  # noqa: N818 (named as the option)
    """Another rank does not answer."""


@dataclass(eq=False)
class World:
    """The ranks of a run, as one of them sees it."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process among those of its host: the GPU that it uses."""
    hosts: tuple[str, ...] = ("",)
    """The name of each rank's host."""
    timeout: float = _PATIENCE_SECONDS
    """How long a rank waits for another one between the first step and the end, in seconds."""
    store: Store | None = field(default=None, repr=False)
    """Keys and values that all ranks see; None in a world of one. It outlives each of them."""
    patience: float = field(default=_PATIENCE_SECONDS, init=False)
    """How long a rank waits for another one now, in seconds."""

    @property
    def leads(self) -> bool:
        """Whether this process prints, and writes to the run directory. One does."""
        return self.rank == 0

    def name(self, rank: int) -> str:
        """Return a rank and its host as text."""
        return f"rank {rank} on {self.hosts[rank]}"

    def be_patient(self, patient: bool) -> None:  # noqa: FBT001 (reads well where it is called)
        """Wait for other ranks as long as reading or compiling may take, or only as long as `timeout`."""
        self.patience = _PATIENCE_SECONDS if patient else self.timeout
        if self.size > 1:
            set_timeout(timedelta(seconds=self.patience))

    def meet(self, device: torch.device) -> None:
        """Wait until the GPUs of all ranks have done what they were given; do nothing without GPUs.

        Raises:
            RankTimeout: one of them does not get there.
        """
        if self.size == 1 or device.type != "cuda":
            return
        # First on the host, while the GPUs compute: one that waits for a rank that is stuck never ends.
        self.gather([0.0])
        done, until = torch.cuda.Event(), time.monotonic() + self.patience  # type: ignore[no-untyped-call]
        done.record()
        while not done.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > until:
                raise RankTimeout("timed out waiting for the GPUs")
            time.sleep(_POLL_SECONDS)

    def leave(self) -> None:
        """Close the connections to the other ranks, so that none of them waits for this one."""
        if dist.is_initialized():
            # A kernel on a GPU may be waiting for a rank that is gone, and a model that is divided holds on
            # to the group. Older gloo cannot do it.
            with suppress(RuntimeError, AttributeError):
                _get_default_group().abort()
            dist.destroy_process_group()
        # gloo closes them when the last reference is gone, and there are circles of them.
        gc.collect()

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return the values of each rank, in the order of the ranks. All ranks call it, with as many."""
        if self.size == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return [part.tolist() for part in parts]

    def gather_objects(self, value: T) -> list[T]:
        """Return what each rank passes, in the order of the ranks. All ranks call it."""
        if self.size == 1:
            return [value]
        # Typed by what is put in: torch's own annotation has no element type.
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_lead(self, value: T | None) -> T:
        """Return what the leading rank passes. All ranks call it."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Refuse the run on all ranks if the context of one of them does. All ranks enter it.

        Raises:
            AprError, OSError: this rank's own error, if it leads; otherwise a RefusedError that names the
                rank that has one.
        """
        error = None
        try:
            yield
        except (AprError, RefusedError, OSError) as refused:
            error = refused
            if self.size == 1:
                raise
        everyone = self.gather_objects(None if error is None else (messages(error), exit_code(error)))
        if self.leads and error is not None:
            raise error
        for rank, problem in enumerate(everyone):
            if problem is not None:
                lines, code = problem
                where = "" if rank == 0 else f"{self.name(rank)}: "
                errors = [RefusedError(where + line) for line in lines]
                for one in errors:
                    one.exit_code = code  # that of the rank whose problem it is
                raise errors[0] if len(errors) == 1 else PreflightError(errors)


ALONE = World()
_RUNS = count()


@cache
def _store() -> tuple[Store, int, int]:
    """Return the store through which the ranks find each other, the number of this one, and of all."""
    store, rank, size = next(rendezvous("env://"))
    return store, rank, size


@contextmanager
def joined(timeout: float) -> Iterator[World]:
    """Join the other processes of the run, if torchrun started several; leave them at the end.

    Args:
        timeout: how long a rank waits for another one once all have done a step, in seconds.
    """
    if launched_ranks() == 1:
        yield ALONE
        return
    # A program that has set up torch.distributed for itself keeps its own process group.
    theirs = dist.is_initialized()
    if not theirs:
        found, rank, size = _store()
        dist.init_process_group(
            # By device: numbers on the host must not wait for a GPU.
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            # The keys of an earlier run of the same processes would be taken for those of this one.
            store=PrefixStore(f"apr-{next(_RUNS)}", found),
            rank=rank,
            world_size=size,
        )
    try:
        size = dist.get_world_size()
        hosts: list[Any] = [None] * size
        dist.all_gather_object(hosts, socket.gethostname())
        local_rank, store = int(os.environ["LOCAL_RANK"]), _get_default_store()
        yield World(dist.get_rank(), size, local_rank, tuple(hosts), timeout, store)
    finally:
        if not theirs and dist.is_initialized():
            dist.destroy_process_group()
