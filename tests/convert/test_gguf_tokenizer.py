"""The tokenizer of a GGUF file is the one of the .apr file: names, types, scores, pre-tokenizer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


# GPT-4o's, and Mistral's Tekken.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cased(suffix, digits):
    words = (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{suffix}"
    )
    return split(rf"{words}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


SPLITTERS = {
    "gpt-2": (gpt2, False),
    "smollm": (digits, False),
    "qwen2": (lambda: split(rf"{_SUFFIX}|{_LETTERS}|\p{{N}}|{_REST}"), False),
    "llama-bpe": (lambda: split(rf"{_SUFFIX}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"), True),
    "dbrx": (lambda: split(rf"{_SUFFIX}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"), False),
    "gpt-4o": (lambda: cased(f"{_SUFFIX}?", "{1,3}"), False),
    "tekken": (lambda: cased("", ""), True),
}


def trained(kind):
    """A tokenizer of 600 tokens, trained on the texts that llama.cpp is asked about."""
    from tokenizers import Tokenizer, decoders, normalizers, processors, trainers
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence

    from apr.convert.check_gguf import TEXTS

    special = ["<unk>", "<s>", "</s>"]
    if kind == "sentencepiece":
        tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first", split=True)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    else:
        parts, ignore_merges = SPLITTERS[kind]
        tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
        tokenizer.pre_tokenizer = Sequence(parts())
        if kind == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if kind == "sentencepiece":
        # Bytes are tokens of the model, and not special.
        spec = json.loads(tokenizer.to_str())
        spec["added_tokens"] = spec["added_tokens"][:3]
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return tokenizer


def keys_of(tokenizer, rows=None, config=None):
    from apr.convert.gguf_tokenizer import tokenizer_keys

    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config or {})}
    return tokenizer_keys({"hf_tokenizer": files}, rows or tokenizer.get_vocab_size())


@pytest.mark.parametrize("name", SPLITTERS)
def test_the_pre_tokenizer_is_found_by_how_it_splits(name):
    pre_tokenizers, ignore_merges = SPLITTERS[name]
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


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
_KEYS = [
    "vocabulary",
    "merges",
    "token_type",
    "scores",
    "model",
    "pre_type",
    "bos_token_id",
    "add_bos_token",
    "x",
]


@given(
    st.dictionaries(st.sampled_from([f"tokenizer.{key}" for key in _KEYS]), _VALUES),
    st.none() | st.lists(st.text(max_size=3), min_size=1, max_size=5),
    st.dictionaries(
        st.sampled_from(["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]), st.text()
    ),
)
def test_any_metadata_are_written_or_a_note(tmp_path, keys, vocabulary, files):
    import gguf

    from apr.convert.gguf_tokenizer import tokenizer_keys
    from apr.gguf.writer import write

    metadata = keys | ({} if vocabulary is None else {"tokenizer.vocabulary": vocabulary})
    metadata |= {"hf_tokenizer": files} if files else {}
    written, notes = tokenizer_keys(metadata, 5)
    with (tmp_path / "m.gguf").open("wb") as file:
        write(file, "llama", written, [])
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    if "tokenizer.ggml.tokens" in fields:
        assert len(fields["tokenizer.ggml.tokens"].contents()) == 5
        assert len(fields["tokenizer.ggml.token_type"].contents()) == 5
    else:
        assert len(notes) == 1
        assert fields["tokenizer.ggml.model"].contents() == "none"
