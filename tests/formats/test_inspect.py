"""apr.inspect: what a model file is, as a dictionary."""

import numpy as np
from tests.container.forged import Entry, forge

import apr


def test_unusual_header_fields_are_shown(tmp_path):
    path = tmp_path / "odd.apr"
    path.write_bytes(forge(Entry(), version=(2, 7), flags=1 << 10 | 1 << 14, reserved=b"\1"))
    facts = apr.inspect(path)
    assert (facts["version"], facts["unknown_flags"], facts["valid"]) == ("2.7", [14], True)
    assert str(facts["reserved"]).startswith("01")


def test_optimizer_state_and_tied_heads_are_not_counted_as_parameters(tmp_path):
    weight = np.ones((4, 2), np.float32)
    tensors = {
        "model.embed_tokens.weight": weight,
        "lm_head.weight": weight,
        "__training__.optimizer.m.model.embed_tokens.weight": weight,
    }
    apr.save(tensors, tmp_path / "m.apr", {"tie_word_embeddings": True})
    facts = apr.inspect(tmp_path / "m.apr")
    assert (facts["kind"], facts["param_count"], facts["tensor_count"]) == ("checkpoint", 8, 3)
