"""The same promises on a GPU. Skipped where there is none."""

import json

import pytest
from tests.model.test_decoder import CASES
from tests.train.test_fast_layers import check_layers
from tests.train.test_kernels import check_cross_entropy, check_update
from tests.train.test_loss import check_chunks
from tests.train.test_step import check_bad_step, check_checkpointing, make

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(("reference", "file"), CASES, ids=[file.stem for _, file in CASES])
def test_logits_and_gradients_equal_the_references(reference, file):
    import torch

    from apr.model import Decoder
    from apr.train.loss import add_gradients

    expected = json.loads(reference.read_text())
    model = Decoder.from_apr(file, "cuda")
    ids = torch.tensor([expected["input_ids"]], device="cuda")
    loss = add_gradients(model, ids, ids[:, 1:].numel())
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-4)
    assert model(ids)[0].logsumexp(-1).tolist() == pytest.approx(expected["logits_row_logsumexp"], abs=1e-4)
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx(expected["grad_norm_by_parameter"], rel=1e-3, abs=1e-7)


def test_a_run_in_bf16_learns_and_measures_the_gpu(options, train):
    config = options(device="cuda", num_steps=24, eval_every=12)
    result = train(config)
    assert (result.status, result.exit_code, result.device) == ("BUDGET_SPENT", 0, "cuda:0")
    assert result.final_val_loss < result.initial_val_loss - 0.3
    assert all(gate.passed for gate in result.gates if gate.name != "target")
    assert result.mfu is None or 0 <= result.mfu < 1
    assert result.peak_memory_bytes > 0
    steps = [json.loads(line) for line in (config.run_dir / "train.jsonl").read_text().splitlines()]
    assert all(0 <= r["gpu_util_pct"] <= 100 for r in steps if "train_loss" in r)


def test_fp32_steps_equal_those_of_the_cpu(options, train, tmp_path):
    histories = [
        train(options(device=device, precision="fp32", run_dir=tmp_path / device)).val_loss_history
        for device in ("cpu", "cuda")
    ]
    assert histories[1] == pytest.approx(histories[0], abs=1e-3)


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_a_compiled_step_learns_like_a_plain_one(options, train, tmp_path, grad_accum):
    runs = [
        options(device="cuda", run_dir=tmp_path / f"{compiled}", compile=compiled, grad_accum=grad_accum)
        for compiled in (False, True)
    ]
    plain, compiled = (train(run) for run in runs)
    assert compiled.val_loss_history == pytest.approx(plain.val_loss_history, abs=2e-2)
    norms = [
        [json.loads(line).get("grad_norm") for line in (run.run_dir / "train.jsonl").read_text().splitlines()]
        for run in runs
    ]
    assert norms[1][1] == pytest.approx(norms[0][1], rel=2e-2)  # of the first step: the same weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("bad", ["limit", "gradient"])
def test_a_bad_step_changes_nothing(compiled, bad, precision):
    check_bad_step(bad, "cuda", compiled=compiled, precision=precision)


@pytest.mark.parametrize("check", [check_cross_entropy, check_update])
def test_kernels_equal_their_plain_versions(check):
    check("cuda")


@pytest.mark.parametrize("family", ["llama", "qwen2", "smollm3"])
def test_fast_layers_are_the_decoder(family):
    check_layers(family, "cuda")


@pytest.mark.parametrize("batches", [1, 3])
def test_the_fast_step_is_the_plain_step(batches):
    """Loss, norm and each gradient of the fast step, against float32 on the same weights."""
    import torch

    found = {}
    for compiled, precision in ((False, "fp32"), (True, "bf16")):
        model, _, step, _ = make("cuda", compiled=compiled, precision=precision)
        generator = torch.Generator().manual_seed(0)
        ids = [torch.randint(0, 512, (2, 17), generator=generator) for _ in range(batches)]
        step.accumulate(ids, 32 * batches)
        gradients = {name: gradient.float().clone() for name, gradient in step.gradients().items()}
        outcome = step.update(0.0)
        found[compiled] = outcome, gradients
        assert set(gradients) == {name for name, _ in model.named_parameters()}
    (plain, expected), (fast, gradients) = found[False], found[True]
    assert fast.train_loss == pytest.approx(plain.train_loss, rel=1e-3)
    assert fast.grad_norm == pytest.approx(plain.grad_norm, rel=1e-2)
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        # Most for the keys' biases, whose gradients nearly cancel.
        assert difference < 6e-2, (name, difference)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_activation_checkpointing_changes_no_gradient(compiled, precision):
    gradients, _ = check_checkpointing("cuda", precision=precision, compiled=compiled)
    for name, gradient in gradients[False].items():
        difference = (gradients[True][name].float() - gradient.float()).norm() / gradient.float().norm()
        # Attention's and the embedding's gradients are summed in no fixed order.
        assert difference < (1e-5 if precision == "fp32" else 1e-2), (name, difference)


def test_activation_checkpointing_takes_less_memory_on_a_gpu(options, train, tmp_path):
    common = {"device": "cuda", "seq_length": 256, "batch_size": 32, "num_steps": 2, "compile": True}
    peaks = [
        train(
            options(
                **common,
                run_dir=tmp_path / f"{keeps}",
                activation_checkpointing=not keeps,
                allow_shard_cycle=True,
            )
        ).peak_memory_bytes
        for keeps in (True, False)
    ]
    assert peaks[1] < peaks[0]


def test_a_run_resumes_where_it_was(options, train, train_until, tmp_path):
    alone = train(options(device="cuda", precision="fp32", run_dir=tmp_path / "alone"))
    assert train_until(options(device="cuda", precision="fp32"), 7).status == "INTERRUPTED"
    resumed = train(options(device="cuda", precision="fp32", resume=True))
    assert resumed.steps_completed == 12
    # Attention's and the embedding's gradients are summed in no fixed order on a GPU.
    assert resumed.val_loss_history == pytest.approx(alone.val_loss_history, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_with_deterministic_a_resumed_run_ends_in_the_same_bytes(
    options, train, train_until, tmp_path, precision, compiled
):
    import torch

    import apr

    common = {"device": "cuda", "precision": precision, "compile": compiled, "deterministic": True}
    train(options(**common, run_dir=tmp_path / "alone"))
    assert train_until(options(**common), 7).status == "INTERRUPTED"
    assert train(options(**common, resume=True)).steps_completed == 12
    for name in ("epoch-000.apr", "epoch-001.apr"):
        ours, theirs = (apr.load(tmp_path / run / "ckpt" / name) for run in ("run", "alone"))
        differing = [tensor for tensor in theirs if not torch.equal(ours[tensor], theirs[tensor])]
        assert not differing, f"{name}: {differing}"
        assert ours.metadata == theirs.metadata
        files = [(tmp_path / run / "ckpt" / name).read_bytes() for run in ("run", "alone")]
        assert files[0] == files[1]


@pytest.fixture
def leave():
    """Take the GPU's memory, but for so many bytes, as another program does: torch does not know of it."""
    import ctypes

    import torch

    driver, taken = ctypes.CDLL("libcuda.so.1"), []

    def take(nbytes):
        torch.cuda.empty_cache()
        pointer = ctypes.c_uint64()
        rest = ctypes.c_size_t(torch.cuda.mem_get_info()[0] - nbytes)
        assert driver.cuMemAlloc_v2(ctypes.byref(pointer), rest) == 0
        taken.append(pointer)

    yield take
    for pointer in taken:
        driver.cuMemFree_v2(pointer)


def test_out_of_memory_on_the_gpu_names_flags_that_fit(options, train, leave):
    import io
    import re

    import torch

    from apr.train import Callbacks, pretrain

    common = {
        "device": "cuda",
        "batch_size": 2048,
        "num_steps": 1,
        "allow_shard_cycle": True,
        "compile": False,
    }
    failed = pretrain(
        options(**common),
        # Taken in the middle of the run: the checks before it saw a free GPU.
        callbacks=Callbacks(on_evaluation=lambda _: leave(600 << 20)),
        out=io.StringIO(),
    )
    assert (failed.status, failed.exit_code) == ("FAILED", 1)
    assert "CUDA out of memory" in failed.detail
    assert "2,048 windows at a time" in failed.detail
    advised = int(re.search(r"--micro-batch (\d+)", failed.detail)[1])
    torch.cuda.empty_cache()
    result = train(options(**common, force=True, micro_batch=advised))
    assert (result.status, result.micro_batch) == ("BUDGET_SPENT", advised)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_auto_tries_micro_batches_and_leaves_no_trace(options, train, leave, compiled):
    import torch

    from apr.train import plan

    common = {"device": "cuda", "batch_size": 2048, "num_steps": 1, "allow_shard_cycle": True}
    config = options(**common, compile=compiled, micro_batch="auto")
    torch.zeros(1, device="cuda")
    leave(1400 << 20)  # of which the context of the trial's process takes some
    state = torch.cuda.get_rng_state()
    planned = plan(config)
    assert torch.cuda.get_rng_state().equal(state)
    assert any("measured" in note for note in planned.prepared.notes)
    torch.cuda.empty_cache()
    result = train(config)
    assert result.status == "BUDGET_SPENT"
    assert result.micro_batch * result.grad_accum == 2048


def test_chunks_change_neither_loss_nor_gradient(monkeypatch):
    check_chunks(monkeypatch, "cuda")


def test_a_missing_device_is_refused(options):
    from apr.errors import UnavailableError
    from apr.train import pretrain

    with pytest.raises(UnavailableError, match="cuda:63"):
        pretrain(options(device="cuda:63"))
