"""Whole runs beside plain torch and transformers loops; gradient accumulation beside one large batch."""

import math

import pytest
from tests.train.conftest import BASE, DATA, SEQ, records
from tests.train.oracles import TRAIN_WINDOWS, reference_order

STEPS, WARM_UP, PEAK, CLIP, DECAY = 50, 5, 2e-3, 0.5, 0.1


def test_eight_steps_equal_transformers_and_plain_adamw(options, train):
    """Compare losses, gradient norms and learning rates with an independent loop."""
    import torch
    from transformers import AutoModelForCausalLM

    from apr.data.shards import ShardDir

    config = options(num_steps=8, eval_every=8, warmup_steps=2, grad_accum=2, batch_size=2, weight_decay=0.1)
    train(config)
    model = AutoModelForCausalLM.from_pretrained(BASE.parent / "hf_qwen2_tied", dtype=torch.float32)
    decay = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "embed" not in n)]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    order = reference_order(TRAIN_WINDOWS, seed=42)
    ids = torch.from_numpy(ShardDir(config.dataset).read(0, 8000).astype("int64"))
    for record in [r for r in records(config.run_dir) if "train_loss" in r]:
        step = record["step"]
        batch = torch.stack([ids[w * SEQ : w * SEQ + SEQ + 1] for w in order[step * 4 : step * 4 + 4]])
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = (step + 1 - 2) / 6
        lr = 2e-3 * (step + 1) / 2 if step < 2 else 2e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        assert record["train_loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert record["lr"] == pytest.approx(lr, rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()


def plain_schedule(step):
    """Linear to the peak, then a cosine to 1 % of it at the last step, as the specification says."""
    if step < WARM_UP:
        return PEAK * (step + 1) / WARM_UP
    share = (step + 1 - WARM_UP) / (STEPS - WARM_UP)
    return PEAK * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def plain_loop(directory, ids, windows_per_step, seed):
    """Return losses and gradient norms of `STEPS` steps, by torch and transformers alone."""
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
    order, outcomes = reference_order(TRAIN_WINDOWS, seed), []
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
        outcomes.append((loss.item(), norm.item()))
    return outcomes


@pytest.mark.parametrize(
    ("model", "batch_size", "grad_accum"),
    [("qwen2_tied", 4, 1), ("qwen2_untied", 2, 2), ("llama_tied", 1, 4), ("llama_untied", 4, 1)],
)
def test_fifty_steps_equal_those_of_a_plain_loop(options, train, model, batch_size, grad_accum):
    import torch

    from apr.data.shards import ShardDir

    config = options(
        init=DATA / f"from_safetensors_{model}.apr",
        num_steps=STEPS,
        eval_every=STEPS,
        warmup_steps=WARM_UP,
        lr=PEAK,
        grad_clip=CLIP,
        weight_decay=DECAY,
        batch_size=batch_size,
        grad_accum=grad_accum,
        seed=7,
    )
    train(config)
    ours = [r for r in records(config.run_dir) if "train_loss" in r]
    ids = torch.from_numpy(ShardDir(config.dataset).read(0, 8000).astype("int64"))
    theirs = plain_loop(DATA / f"hf_{model}", ids, 4, seed=7)
    assert max(norm for _, norm in theirs) > CLIP  # clipping had something to do
    assert theirs[-1][0] < theirs[0][0] - 0.5  # and so had training
    assert [r["train_loss"] for r in ours] == pytest.approx([loss for loss, _ in theirs], abs=1e-4)
    assert [r["grad_norm"] for r in ours] == pytest.approx([norm for _, norm in theirs], rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_gradient_of_micro_batches_equals_that_of_one_batch(options, batch_size):
    """Every token of a step counts the same, however the step is split."""
    import torch

    from apr.data.windows import TrainingOrder
    from apr.train.optimizer import make_optimizer
    from apr.train.start.preflight import prepare
    from apr.train.step import Step

    prepared = prepare(options())
    windows = prepared.split.train
    order = TrainingOrder(len(windows), seed=42, shuffle=True).windows(0, 6)
    ids = torch.from_numpy(windows.batch(order))

    def accumulated(batch_size):
        model = prepared.build_model()
        step = Step(model, make_optimizer(model, prepared.config), precision="fp32", grad_clip=1e9)
        step.accumulate(ids.split(batch_size), ids[:, 1:].numel())
        gradients = {name: p.grad for name, p in model.named_parameters()}
        return step.update(0.0), gradients

    one, whole = accumulated(6)
    several, cut = accumulated(batch_size)
    assert several.train_loss == pytest.approx(one.train_loss, rel=1e-6)
    assert several.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
