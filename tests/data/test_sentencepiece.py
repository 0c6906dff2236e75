"""SentencePiece vocabularies of GGUF files: the ids of llama.cpp and of the tokenizer they were made from."""

import json
from functools import cache

import pytest
from tests.data.gguf_vocabularies import PROBE, ROWS, TEXTS, llama_cpp_ids, write_gguf
from tokenizers import Tokenizer, models, normalizers, trainers

from apr.data.tokenizers import load_tokenizer
from apr.errors import FormatError

SPACE = "\u2581"
MORE = [*TEXTS, " leading", "   ", "a\u2581b", "", "🚀 न", "</s><unk>"]


@cache
def original():
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        [PROBE] * 4,
        trainers.BpeTrainer(vocab_size=ROWS, special_tokens=special, limit_alphabet=80, show_progress=False),
    )
    spec = json.loads(made.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(spec))
    made.encode_special_tokens = True
    return made


def keys(**changes):
    model = json.loads(original().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    ranks = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge), rank)
    scores = [float(-ranks[token]) if token in ranks else -1e6 for token in tokens]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    pads = ROWS - len(tokens)
    lists = {
        "tokens": tokens + [f"[PAD{id_}]" for id_ in range(len(tokens), ROWS)],
        "scores": scores + [-1e6] * pads,
        "token_type": types + [5] * pads,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {"model": "llama", "pre": "default", **lists, **ids, "add_bos_token": False} | changes


def ids_of(loaded):
    return [loaded.tokenizer.encode(text, add_special_tokens=False).ids for text in MORE]


def test_a_vocabulary_with_scores_gives_the_ids_of_its_original(tmp_path):
    loaded = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys(), tensors=False))
    expected = [original().encode(text, add_special_tokens=False).ids for text in MORE]
    assert ids_of(loaded) == expected
    assert (loaded.eos_token, loaded.eos_id, loaded.bos_id, loaded.unk_id) == ("</s>", 2, 1, 0)
    assert [loaded.decode(ids) for ids in expected] == [text.replace(SPACE, " ") for text in MORE]


@pytest.mark.parametrize("space_first", [True, False])
def test_a_vocabulary_with_scores_gives_the_ids_of_llama_cpp(space_first, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: uv pip install xllamacpp")
    path = write_gguf(tmp_path / "m.gguf", keys(add_space_prefix=space_first))
    # llama.cpp takes special tokens in a text for what they are.
    theirs = llama_cpp_ids(path, MORE[:-1])
    assert ids_of(load_tokenizer(path))[:-1] == theirs


def test_scores_must_be_there_for_every_token(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", keys(scores=[0.0]), tensors=False)
    with pytest.raises(FormatError, match=r"tokenizer\.scores"):
        load_tokenizer(path)
