"""The processes of a run, forked from one that has imported torch: a rank starts in milliseconds."""

from __future__ import annotations

import io
import os
import traceback

from tests.train.children import _CONTEXT


class Ranks:
    """Processes that each call a function of a test module, with the environment that torchrun gives them.

    Args:
        size: the number of them.
        function: called with `arguments` in each; what it returns is in `results`.
    """

    def __init__(self, size, function, *arguments):
        import torch.distributed as dist

        # As torchrun's agent does, this process keeps the store, which outlives every rank.
        self._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.processes, self._receivers = [], []
        for rank in range(size):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            process = _CONTEXT.Process(
                target=_call, args=(sender, environment, function, arguments), daemon=True
            )
            process.start()
            sender.close()
            self.processes.append(process)
            self._receivers.append(receiver)

    def results(self):
        """Wait for the ranks, and return what each returned; None for one that died."""
        results = [self.result(rank) for rank in range(len(self.processes))]
        for process in self.processes:
            process.join()
        return results

    def result(self, rank):
        """Wait for a rank, and return what it returned; None if it died."""
        try:
            kind, value = self._receivers[rank].recv()
        except EOFError:
            return None
        assert kind == "returned", value
        return value


def _call(sender, environment, function, arguments):
    import torch

    from apr.train import finish

    os.environ.update(environment)
    torch.set_num_threads(1)
    finish.plot_losses = lambda *_, **__: None  # the picture takes half the time of such a short run
    try:
        sender.send(("returned", function(*arguments)))
    except BaseException:  # noqa: BLE001 (the test shows it)
        sender.send(("raised", traceback.format_exc()))


def interrupt(config, step):
    """Train until a signal arrives in one rank, after a step, and return how the run ended."""
    import signal

    from apr.train import loop

    update = loop.Step.update

    def interrupting(self, *arguments):
        outcome = update(self, *arguments)
        calls[0] += 1
        if calls[0] == step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return outcome

    calls, loop.Step.update = [0], interrupting
    try:
        return train(config)[0]
    finally:
        loop.Step.update = update


def fail(config, rank, step, how):
    """Train, and let one rank fail in its n-th step; return how the run ended, as the others see it."""
    import signal

    from apr.train import step as steps

    add_gradients, calls = steps.add_gradients, [0]

    def failing(*arguments, **options):
        calls[0] += 1
        if calls[0] < step or os.environ["RANK"] != str(rank):
            return add_gradients(*arguments, **options)
        if how == "a bad number":
            return add_gradients(*arguments, **options) * float("nan")
        if how == "an error":
            raise ValueError("a fault of its own")
        os.kill(os.getpid(), {"dies": signal.SIGKILL, "hangs": signal.SIGSTOP}[how])
        raise AssertionError("it was killed")

    steps.add_gradients = failing
    try:
        return train(config)[0]
    finally:
        steps.add_gradients = add_gradients


def train_differently(base, changes):
    """Train with options that differ in one rank."""
    from dataclasses import replace

    return train(replace(base, **changes) if os.environ["RANK"] == "1" else base)[0]


def train(*configs):
    """Train each of them, and return the statuses and what was printed."""
    from apr.errors import AprError, exit_code, message
    from apr.train import pretrain

    ends = []
    for config in configs:
        out = io.StringIO()
        try:
            result = pretrain(config, out=out)
            ends.append((result.status, result.exit_code, out.getvalue()))
        except (AprError, OSError) as error:
            ends.append(("refused", exit_code(error), message(error)))
    return ends
