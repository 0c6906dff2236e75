"""A whole run beside a plain torch and transformers loop; gradient accumulation beside one big batch."""

import json
import math

import pytest
from tests.train.conftest import DATA, SEQ
from tests.train.test_pretrain import TRAIN_WINDOWS, reference_order

STEPS, WARM_UP, PEAK, CLIP, DECAY = 50, 5, 2e-3, 0.5, 0.1


def plain_schedule(step):
    """The specification's words: linear to the peak, cosine to 1 % of it at the last step."""
    if step < WARM_UP:
        return PEAK * (step + 1) / WARM_UP
    share = (step + 1 - WARM_UP) / (STEPS - WARM_UP)
    return PEAK * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def plain_loop(directory, ids, windows_per_step, seed):
    """Losses and gradient norms of `STEPS` steps; nothing of ours but the order's specification."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
        fused=False,
    )
    order, found = reference_order(TRAIN_WINDOWS, seed), []
    for step in range(STEPS):
        starts = [w * SEQ for w in order[step * windows_per_step : (step + 1) * windows_per_step]]
        batch = torch.stack([ids[start : start + SEQ + 1] for start in starts])
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = plain_schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return found


@pytest.mark.parametrize(
    ("model", "batch_size", "grad_accum"),
    [("qwen2_tied", 4, 1), ("qwen2_untied", 2, 2), ("llama_tied", 1, 4), ("llama_untied", 4, 1)],
)
def test_fifty_steps_are_those_of_a_plain_loop(options, train, model, batch_size, grad_accum):
    import torch

    from apr.data.shards import ShardDir

    config = options(
        init=DATA / f"from_safetensors_{model}.apr",
        num_steps=STEPS,
        steps_per_epoch=STEPS,
        warmup_steps=WARM_UP,
        lr=PEAK,
        grad_clip=CLIP,
        weight_decay=DECAY,
        batch_size=batch_size,
        grad_accum=grad_accum,
        seed=7,
    )
    train(config)
    lines = (config.run_dir / "train.jsonl").read_text().splitlines()
    ours = [r for r in map(json.loads, lines) if "train_loss" in r]
    ids = torch.from_numpy(ShardDir(config.dataset).read(0, 8000).astype("int64"))
    theirs = plain_loop(DATA / f"hf_{model}", ids, 4, seed=7)
    assert max(norm for _, norm in theirs) > CLIP  # clipping had something to do
    assert theirs[-1][0] < theirs[0][0] - 0.5  # and so had training
    assert [r["train_loss"] for r in ours] == pytest.approx([loss for loss, _ in theirs], abs=1e-4)
    assert [r["grad_norm"] for r in ours] == pytest.approx([norm for _, norm in theirs], rel=1e-3)


@pytest.mark.parametrize("split", [(2, 3), (1, 6), (3, 2)], ids=str)
def test_the_gradient_of_micro_batches_is_that_of_one_batch(options, split):
    """Loss and gradient of one step: every token counts alike, however the step is cut."""
    import io

    import torch

    from apr.train.loop import Loop
    from apr.train.machine.signals import StopRequest
    from apr.train.record.report import Report
    from apr.train.start.preflight import prepare

    def accumulated(batch_size, grad_accum):
        prepared = prepare(options(batch_size=batch_size, grad_accum=grad_accum, grad_clip=1e9))
        model = prepared.build_model()
        loop = Loop(prepared, model, Report(io.StringIO()), StopRequest(), started=0.0)
        with loop._batches() as loop._loader:
            loop._accumulate()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        return loop._training_step.update(0.0), gradients

    one, whole = accumulated(6, 1)
    several, cut = accumulated(*split)
    assert several.train_loss == pytest.approx(one.train_loss, rel=1e-6)
    assert several.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
