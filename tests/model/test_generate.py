"""Generation: transformers' own tokens for each family, options, ends, and a model in training."""

from itertools import pairwise

import pytest
from tests.model.tiny import VOCABULARY, ours, transformers_model

from apr.errors import OptionsError, RefusedError, UsageError
from apr.model.families import FAMILIES

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def model():
    return ours(transformers_model("llama"))


def prompt(length, seed=0):
    import torch

    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def their_tokens(theirs, ids, count, **options):
    import torch

    ids = torch.tensor([ids])
    theirs.generation_config.eos_token_id = None
    generated = theirs.generate(
        ids,
        max_new_tokens=count,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
        **{"do_sample": False, **options},
    )
    return generated[0, ids.shape[1] :].tolist()


@every_family
def test_greedy_tokens_are_those_of_transformers(family):
    """Prompts shorter and longer than the window of 8; LongRoPE changes its factors on the way, at 16."""
    import apr

    # With other weights, some families repeat one token, which would prove little.
    spread = 0.15 if family == "gemma2" else 0.02 if family == "gemma3_text" else 0.4
    theirs = transformers_model(family, initializer_range=spread).eval()
    model = ours(theirs)
    seen = set()
    for length in (1, 5, 12, 40):
        ids = prompt(length, seed=length)
        expected = their_tokens(theirs, ids, 30)
        (result,) = apr.generate(model, ids, max_tokens=30)
        assert result.ids == expected, length
        assert result.finish == "length"
        seen |= set(expected)
    assert len(seen) > 5


@every_family
def test_passes_over_a_cache_equal_one_pass(family):
    import torch

    from apr.model.cache import KvCache

    model = ours(transformers_model(family)).eval()
    ids = torch.tensor([prompt(40), prompt(40, seed=1)])
    # LongRoPE has other frequencies for one long pass, so that there is nothing to compare with.
    if family == "phi3":
        ids = ids[:, :16]
    cuts = [0, ids.shape[1] // 3, *range(ids.shape[1] // 3 + 1, ids.shape[1] - 4), ids.shape[1]]
    cache = KvCache(model.config, 2, ids.shape[1], ids.device, torch.float32)
    with torch.no_grad():
        whole = model(ids)
        parts = [model(ids[:, a:b], cache) for a, b in pairwise(cuts)]
    assert (torch.cat(parts, 1) - whole).norm() <= 1e-5 * whole.norm()
    with pytest.raises(IndexError):
        model(ids[:, :1], cache)


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "longrope"])
def test_tables_of_single_positions_are_those_of_transformers(rope_type):
    """Through the context of 36 and beyond it, where dynamic frequencies change with every token."""
    import apr

    scaling = {"rope_type": rope_type, "factor": 3.0, "rope_theta": 10000.0}
    if rope_type == "longrope":
        scaling |= {"short_factor": [1.0] * 10, "long_factor": [1.5 + i for i in range(10)],
                    "original_max_position_embeddings": 36}  # fmt: skip
    context = 36 if rope_type == "dynamic" else 128
    theirs = transformers_model("llama", max_position_embeddings=context, rope_parameters=scaling).eval()
    ids = prompt(20)
    model = ours(theirs)
    count = min(60, context - 20)
    assert apr.generate(model, ids, max_tokens=count)[0].ids == their_tokens(theirs, ids, count)


def test_log_probabilities_are_those_of_the_model(model):
    import torch

    import apr

    (result,) = apr.generate(model, prompt(7), max_tokens=9, temperature=0.7, top_k=5, seed=3)
    ids = torch.tensor([prompt(7) + result.ids])
    with torch.no_grad():
        expected = model(ids).log_softmax(-1)[0, 6:-1].gather(-1, ids[0, 7:, None])[:, 0]
    assert result.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_seed_gives_the_same_tokens_and_leaves_torchs_generators_alone(model):
    import torch

    import apr

    torch.manual_seed(1)
    before = torch.get_rng_state()
    options = {"max_tokens": 12, "temperature": 1.3, "seed": 5}
    first, second = apr.generate(model, prompt(4), n=2, **options)
    assert apr.generate(model, prompt(4), **options)[0].ids == first.ids
    assert first.ids != second.ids
    assert apr.generate(model, prompt(4), max_tokens=12, temperature=1.3)[0].ids != first.ids
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stop_id_ends_its_own_sequence_only(model):
    import apr

    options = {"max_tokens": 20, "temperature": 2.0, "seed": 0, "n": 3}
    free = apr.generate(model, prompt(4), **options)
    stop = free[0].ids[5]
    stopped = apr.generate(model, prompt(4), stop_ids=[stop], **options)
    for whole, cut in zip(free, stopped, strict=True):
        if stop in whole.ids:
            assert cut.ids == whole.ids[: whole.ids.index(stop) + 1]
            assert cut.finish == "stop"
        else:
            assert cut.ids == whole.ids
            assert cut.finish == "length"


def test_generation_ends_where_the_model_has_no_more_positions(model):
    import apr

    (result,) = apr.generate(model, prompt(120), max_tokens=50)
    assert len(result.ids) == 8
    assert result.finish == "context"


@pytest.mark.parametrize(
    ("ids", "word"),
    [([], "empty"), ([3] * 128, "128"), ([3, VOCABULARY], str(VOCABULARY)), ([-1], "-1")],
)
def test_prompts_that_do_not_fit_are_refused(model, ids, word):
    import apr

    with pytest.raises(RefusedError, match=word):
        apr.generate(model, ids)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_tokens": 0}, "--max-tokens"),
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_k": 0}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.01}, "--top-p"),
        ({"min_p": -0.5}, "--min-p"),
        ({"min_p": 1.5}, "--min-p"),
        ({"seed": -1}, "--seed"),
        ({"n": 0}, "--n"),
    ],
)
def test_options_out_of_range_are_refused(model, options, word):
    import apr

    with pytest.raises(OptionsError, match=word):
        apr.generate(model, [3], **options)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"n": 2}])
def test_options_of_sampling_contradict_temperature_zero(model, options):
    import apr

    with pytest.raises(UsageError, match="temperature"):
        apr.generate(model, [3], temperature=0, **options)


def test_a_model_in_training_generates_and_trains_on():
    import torch

    import apr

    def train(sample):
        model = ours(transformers_model("gemma3_text"))
        ids = torch.tensor([prompt(24)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            model(ids).square().mean().backward()
            if sample:
                # The prompt has the length of the batch: both use the same tables.
                apr.generate(model, ids, max_tokens=5)
                assert torch.is_grad_enabled()
                assert model.training
            optimizer.step()
        return model.state_dict()

    plain, sampled = train(sample=False), train(sample=True)
    assert all(torch.equal(plain[name], sampled[name]) for name in plain)


def test_autocast_decides_the_dtype_of_the_cache(model):
    import torch

    import apr

    with torch.autocast("cpu", torch.bfloat16):
        (result,) = apr.generate(model, prompt(5), max_tokens=6)
    assert len(result.ids) == 6


def test_layers_that_training_compiled_are_not_compiled_again():
    import torch

    import apr

    model = ours(transformers_model("llama"))
    expected = apr.generate(model, prompt(6), max_tokens=5)[0].ids

    def refuse(*_):
        raise AssertionError("compiled")

    for layer in model.model.layers:
        layer.compile(backend=refuse)
    assert apr.generate(model, prompt(6), max_tokens=5)[0].ids == expected
    torch.compiler.reset()


@pytest.mark.cuda
@every_family
def test_a_captured_step_gives_the_tokens_of_plain_steps(family):
    import apr
    from apr.model import generate

    theirs = transformers_model(family).eval()
    # Not transformers': those of Phi-3 past its first context depend on its version.
    expected = apr.generate(ours(theirs), prompt(12), max_tokens=40)[0].ids
    model = ours(theirs).cuda()
    assert generate._STEPS_WORTH_CAPTURING <= 40
    assert apr.generate(model, prompt(12), max_tokens=40)[0].ids == expected
    for seed in (0, 1):
        several = apr.generate(model, prompt(12), max_tokens=40, temperature=0.8, n=3, seed=seed)
        few = apr.generate(model, prompt(12), max_tokens=15, temperature=0.8, n=3, seed=seed)
        assert [result.ids[:15] for result in several] == [result.ids for result in few]


@every_family
def test_a_step_at_a_position_of_the_device_is_a_plain_step(family):
    """What the captured graph computes, on the CPU, where it can be checked without a GPU."""
    import torch

    from apr.model.cache import CapturedCache, KvCache

    model = ours(transformers_model(family)).eval()
    ids = torch.tensor([prompt(30)])
    plain, unknown = (KvCache(model.config, 1, 40, ids.device, torch.float32) for _ in range(2))
    with torch.no_grad():
        model(ids[:, :6], plain)
        model(ids[:, :6], unknown)
        captured = CapturedCache(unknown)
        for at in range(6, 30):
            expected = model(ids[:, at : at + 1], plain)
            actual = model(ids[:, at : at + 1], captured)
            captured.position.add_(1)
            assert (actual - expected).norm() <= 1e-5 * expected.norm(), at
