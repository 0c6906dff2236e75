"""The tokenizer of a GGUF file is the one of the .apr file: names, types, scores, pre-tokenizer."""

import json

import pytest

# One pair of rows for each splitter, from the models' own tokenizer.json.
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def byte_level(pre_tokenizers, **model):
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence

    vocab = {token: id_ for id_, token in enumerate(sorted(ByteLevel.alphabet()))} | {"<|end|>": 256}
    tokenizer = Tokenizer(BPE(vocab, [], **model))
    tokenizer.pre_tokenizer = Sequence(pre_tokenizers)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def split(pattern):
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Split

    return [Split(Regex(pattern), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]


def digits():
    from tokenizers.pre_tokenizers import ByteLevel, Digits

    return [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]


def gpt2():
    from tokenizers.pre_tokenizers import ByteLevel

    return [ByteLevel(add_prefix_space=False)]


def keys_of(tokenizer, rows=None, config=None):
    from apr.convert.gguf_tokenizer import tokenizer_keys

    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config or {})}
    return tokenizer_keys({"hf_tokenizer": files}, rows or tokenizer.get_vocab_size())


@pytest.mark.parametrize(
    ("pre_tokenizers", "ignore_merges", "name"),
    [
        (gpt2, False, "gpt-2"),
        (digits, False, "smollm"),
        (lambda: split(rf"{_SUFFIX}|{_LETTERS}|\p{{N}}|{_REST}"), False, "qwen2"),
        (lambda: split(rf"{_SUFFIX}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"), True, "llama-bpe"),
        (lambda: split(rf"{_SUFFIX}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"), False, "dbrx"),
    ],
)
def test_the_pre_tokenizer_is_found_by_how_it_splits(pre_tokenizers, ignore_merges, name):
    keys, notes = keys_of(byte_level(pre_tokenizers(), ignore_merges=ignore_merges))
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == name
    assert notes == ()


def test_a_splitter_that_llama_cpp_lacks_is_a_note():
    from tokenizers.pre_tokenizers import ByteLevel, Whitespace

    keys, notes = keys_of(byte_level([Whitespace(), ByteLevel(add_prefix_space=False, use_regex=False)]))
    assert keys == {"tokenizer.ggml.model": "none"}
    assert "splits" in notes[0]


def test_a_tokenizer_of_another_kind_is_a_note():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    keys, notes = keys_of(Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")))
    assert keys == {"tokenizer.ggml.model": "none"}
    assert "WordLevel" in notes[0]


def sentencepiece():
    """A small tokenizer of Llama 2's kind: characters, spaces as ▁, bytes for what it lacks."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("▁", "a"), ("in", "g"), ("o", "u")]
    tokens += letters + [a + b for a, b in merges] + ["<tool>"]
    tokenizer = Tokenizer(
        BPE(
            {token: id_ for id_, token in enumerate(tokens)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def test_bytes_ranks_and_the_space_in_front_are_kept():
    tokenizer = sentencepiece()
    keys, notes = keys_of(tokenizer, config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    assert notes == ()
    names = keys["tokenizer.ggml.tokens"]
    types = dict(zip(names, keys["tokenizer.ggml.token_type"], strict=True))
    scores = dict(zip(names, keys["tokenizer.ggml.scores"], strict=True))
    assert keys["tokenizer.ggml.model"] == "llama"
    assert [types[name] for name in ("<unk>", "<s>", "<0x41>", "▁the", "<tool>")] == [2, 3, 6, 1, 4]
    assert scores["▁t"] > scores["he"] > scores["▁the"] > scores["ou"] > scores["a"]
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.unknown_token_id"] == 0


def test_damaged_tokenizer_files_are_a_note():
    from apr.convert.gguf_tokenizer import tokenizer_keys

    keys, notes = tokenizer_keys({"hf_tokenizer": {"tokenizer.json": "{}"}}, 8)
    assert keys == {"tokenizer.ggml.model": "none"}
    assert len(notes) == 1
    keys, notes = tokenizer_keys({"hf_tokenizer": {"tokenizer.model": {"base64": ""}}}, 8)
    assert "tokenizer.json" in notes[0]
