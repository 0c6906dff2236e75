"""Tokenizers from every source have the ids of the tokenizers package, and the right end of text."""

import json
from pathlib import Path

import numpy as np
import pytest

import apr
from apr.cli import main
from apr.data.byte_level import Vocabulary, gpt2_alphabet
from apr.data.pre_tokenizers import PRE_TYPES
from apr.data.tokenizers import load_tokenizer
from apr.errors import FormatError, UnsupportedError, UsageError

IMPORTED = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
TEXT = "def f(x):\n    return x  # 1234 naïve 東京\r\n\t<|endoftext|> don't\n\n\n"
# Bytes of a small vocabulary, and merges that tell the pre-tokenizers apart.
MERGES = [("Ġ", "Ġ"), ("1", "2"), ("12", "3"), ("Ġ", "1"), ("d", "e"), ("de", "f"), ("Ċ", "Ċ"), (".", "Ċ")]


@pytest.fixture(scope="module")
def tokenizer_json() -> Path:
    return IMPORTED / "hf_llama_tied" / "tokenizer.json"


def ids_of(loaded, text):
    return loaded.tokenizer.encode(text, add_special_tokens=False).ids


def reference(path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_vocabulary(*extra):
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*extra, *sorted(ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    return {token: id_ for id_, token in enumerate(tokens)}


def write_pair(directory, ids, merges, config=None):
    directory.mkdir(exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(ids))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def write_model(path, **changes):
    ids = byte_vocabulary("<|endoftext|>", "<|im_end|>")
    metadata = {
        "tokenizer.vocabulary": list(ids),
        "tokenizer.merges": [f"{a} {b}" for a, b in MERGES],
        "tokenizer.model_type": "BPE",
        "tokenizer.pre_type": "gpt-2",
        "tokenizer.eos_token_id": 0,
    } | {f"tokenizer.{key}": value for key, value in changes.items()}
    apr.save({"w": np.zeros(1, np.float32)}, path, {k: v for k, v in metadata.items() if v is not None})
    return path


def test_a_tokenizer_json_has_its_own_ids(tokenizer_json):
    loaded = load_tokenizer(tokenizer_json)
    assert ids_of(loaded, TEXT) == reference(tokenizer_json).encode(TEXT, add_special_tokens=False).ids
    assert loaded.decode(ids_of(loaded, TEXT)) == TEXT


def test_special_tokens_within_a_text_are_text(tokenizer_json):
    loaded = load_tokenizer(tokenizer_json)
    assert loaded.eos_id not in ids_of(loaded, "a<|endoftext|>b")


@pytest.mark.parametrize("model", ["llama_tied", "llama_untied"])
def test_a_gguf_has_the_ids_of_its_original_tokenizer(model):
    loaded = load_tokenizer(IMPORTED / f"{model}.gguf")
    original = reference(IMPORTED / f"hf_{model}" / "tokenizer.json")
    assert ids_of(loaded, TEXT) == original.encode(TEXT, add_special_tokens=False).ids
    assert (loaded.eos_token, loaded.eos_id, loaded.vocab_size) == ("<|endoftext|>", 0, 512)


def test_a_qwen2_gguf_has_the_ids_of_transformers():
    from transformers import AutoTokenizer

    loaded = load_tokenizer(IMPORTED / "qwen2_tied.gguf")
    theirs = AutoTokenizer.from_pretrained(IMPORTED, gguf_file="qwen2_tied.gguf")
    text = TEXT.replace("<|endoftext|>", "")
    assert ids_of(loaded, text) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("model", ["llama_tied", "qwen2_untied"])
def test_a_converted_model_has_the_ids_of_its_gguf(model, tmp_path):
    assert main(["convert", str(IMPORTED / f"{model}.gguf"), str(tmp_path / "m.apr")]) == 0
    ours, theirs = load_tokenizer(tmp_path / "m.apr"), load_tokenizer(IMPORTED / f"{model}.gguf")
    assert ids_of(ours, TEXT) == ids_of(theirs, TEXT)
    assert ours.sha256 == theirs.sha256


@pytest.mark.parametrize("kind", PRE_TYPES)
def test_metadata_rebuilds_the_same_tokenizer(kind, tmp_path):
    first = load_tokenizer(write_model(tmp_path / "a.apr", pre_type=kind))
    apr.save({"w": np.zeros(1, np.float32)}, tmp_path / "b.apr", first.metadata())
    second = load_tokenizer(tmp_path / "b.apr")
    assert first.metadata()["tokenizer.pre_type"] == kind
    assert second.metadata() == first.metadata()
    assert ids_of(second, TEXT) == ids_of(first, TEXT)
    assert second.sha256 == first.sha256


def test_metadata_of_a_tokenizer_json_rebuilds_it(tokenizer_json, tmp_path):
    first = load_tokenizer(tokenizer_json)
    assert first.metadata()["tokenizer.vocab_size"] == 512
    apr.save({"w": np.zeros(1, np.float32)}, tmp_path / "m.apr", first.metadata())
    assert ids_of(load_tokenizer(tmp_path / "m.apr"), TEXT) == ids_of(first, TEXT)


def test_a_tokenizer_that_metadata_cannot_express_has_none(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.metadata() == {}
    assert loaded.unk_id == 0


def test_a_model_file_without_a_pre_type_uses_gpt2s_with_a_note(tmp_path):
    named, unnamed = (
        write_model(tmp_path / f"{name}.apr", pre_type=kind) for name, kind in (("a", "gpt-2"), ("b", None))
    )
    assert ids_of(load_tokenizer(unnamed), TEXT) == ids_of(load_tokenizer(named), TEXT)
    note = load_tokenizer(unnamed).note
    assert note is not None
    assert "GPT-2" in note
    assert load_tokenizer(named).note is None


def test_pre_tokenizers_split_digits_differently(tmp_path):
    def tokens(kind):
        loaded = load_tokenizer(write_model(tmp_path / f"{kind}.apr", pre_type=kind))
        return [loaded.tokenizer.id_to_token(id_) for id_ in ids_of(loaded, "a  3412")]

    assert tokens("gpt-2") == ["a", "Ġ", "Ġ", "3", "4", "12"]
    assert tokens("smollm") == ["a", "ĠĠ", "3", "4", "1", "2"]
    assert tokens("qwen2") == ["a", "Ġ", "Ġ", "3", "4", "1", "2"]
    assert tokens("llama-bpe") == ["a", "Ġ", "Ġ", "3", "4", "1", "2"]
    assert ids_of(load_tokenizer(tmp_path / "llama-bpe.apr"), "3123") != ids_of(
        load_tokenizer(tmp_path / "qwen2.apr"), "3123"
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pre_type": "kimi-k2"}, "kimi-k2"),
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "llama"}, r"tokenizer\.scores"),
        ({"vocabulary": None}, "tokenizer.vocabulary"),
        ({"eos_token_id": 9999}, "tokenizer.eos_token_id"),
        ({"merges": ["a"]}, r"tokenizer\.merges\[0\]"),
        ({"merges": ["a zz"]}, "merges"),
    ],
)
def test_an_unsupported_tokenizer_in_a_model_file_is_refused(changes, match, tmp_path):
    path = write_model(tmp_path / "m.apr", **changes)
    with pytest.raises((FormatError, UnsupportedError), match=match):
        load_tokenizer(path)


def test_vocab_and_merges_alone_are_gpt2s_byte_level(tmp_path):
    ids = byte_vocabulary("<|endoftext|>")
    loaded = load_tokenizer(write_pair(tmp_path, ids, MERGES))
    expected = Vocabulary(ids, MERGES, "gpt-2", ("<|endoftext|>",), None).build(tmp_path)
    expected.encode_special_tokens = True
    assert ids_of(loaded, TEXT) == expected.encode(TEXT, add_special_tokens=False).ids
    assert (loaded.eos_id, loaded.vocab_size) == (0, len(ids))


def test_vocab_and_merges_of_qwen2_follow_its_configuration(tmp_path):
    ids = byte_vocabulary()
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": {
            str(len(ids)): {"content": "<|endoftext|>"},
            str(len(ids) + 1): {"content": "<|im_end|>"},
        },
    }
    loaded = load_tokenizer(write_pair(tmp_path, ids, MERGES, config))
    assert loaded.metadata()["tokenizer.pre_type"] == "qwen2"
    assert (loaded.eos_token, loaded.eos_id, loaded.vocab_size) == ("<|endoftext|>", len(ids), len(ids) + 2)


def test_a_hex_byte_vocabulary_is_detected_and_has_the_same_ids(tmp_path):
    byte_level = byte_vocabulary("<|endoftext|>")
    plain = load_tokenizer(write_pair(tmp_path / "plain", byte_level, MERGES))
    values = {letter: plain.tokenizer.decoder.decode([letter]) for letter in byte_level if len(letter) == 1}
    letters = {letter: f"{byte:02x}" for byte, letter in enumerate(gpt2_alphabet())}
    assert len(values) == 256

    def to_hex(token):
        return token if token == "<|endoftext|>" else "".join(letters[letter] for letter in token)

    ids = {to_hex(token): id_ for token, id_ in byte_level.items()}
    assert ids["646566"] == byte_level["def"]
    loaded = load_tokenizer(write_pair(tmp_path / "hex", ids, [(to_hex(a), to_hex(b)) for a, b in MERGES]))
    assert "hex" in loaded.note
    assert ids_of(loaded, TEXT) == ids_of(plain, TEXT)
    assert loaded.decode(ids_of(loaded, TEXT)) == TEXT


def test_gpt2s_vocabulary_is_not_mistaken_for_hex(tmp_path):
    assert load_tokenizer(write_pair(tmp_path, byte_vocabulary("<|endoftext|>"), MERGES)).note is None


def test_a_line_of_merges_may_start_with_a_hash(tmp_path):
    ids = byte_vocabulary("<|endoftext|>") | {"##": 10_000}
    loaded = load_tokenizer(write_pair(tmp_path, ids, [("#", "#"), *MERGES]))
    assert ids_of(loaded, "##") == [10_000]
    assert loaded.vocab_size == 10_001


def test_end_of_text_is_preferred_to_a_chat_end_with_a_note(tmp_path):
    loaded = load_tokenizer(write_model(tmp_path / "m.apr", eos_token_id=1))
    assert (loaded.eos_token, loaded.eos_id) == ("<|endoftext|>", 0)
    assert "<|im_end|>" in loaded.note


def test_the_end_of_text_is_configured_and_never_guessed(tmp_path):
    ids = byte_vocabulary("</s>", "<eos>")
    assert load_tokenizer(write_pair(tmp_path / "bare", ids, MERGES)).eos_id is None
    assert load_tokenizer(write_pair(tmp_path / "named", ids, MERGES, {"eos_token": "</s>"})).eos_id == 0
    requested = load_tokenizer(tmp_path / "named", eos_token="<eos>")
    assert (requested.eos_token, requested.eos_id) == ("<eos>", 1)
    with pytest.raises(UsageError, match="<nope>"):
        load_tokenizer(tmp_path / "named", eos_token="<nope>")


def test_a_configured_end_of_text_must_be_in_the_vocabulary(tmp_path):
    pair = write_pair(tmp_path, byte_vocabulary(), MERGES, {"eos_token": {"content": "</s>"}})
    with pytest.raises(FormatError, match="</s>"):
        load_tokenizer(pair)


def test_truncation_padding_and_dropout_are_turned_off(tokenizer_json, tmp_path):
    spec = json.loads(tokenizer_json.read_text())
    spec["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    spec["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    spec["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    loaded = load_tokenizer(tmp_path)
    assert ids_of(loaded, TEXT) == ids_of(load_tokenizer(tokenizer_json), TEXT)


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "JSON"), (b"[]", "JSON"), (b"{}", "model"), (b'{"model": {}}', "tokenizers")]
)
def test_an_invalid_tokenizer_json_is_refused(content, match, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FormatError, match=match):
        load_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_the_hash_is_that_of_the_files(tokenizer_json, tmp_path):
    import hashlib

    pair = write_pair(tmp_path, byte_vocabulary("<|endoftext|>"), MERGES)
    content = (pair / "vocab.json").read_bytes() + (pair / "merges.txt").read_bytes()
    assert load_tokenizer(pair).sha256 == hashlib.sha256(content).hexdigest()
    assert load_tokenizer(tokenizer_json).sha256 == hashlib.sha256(tokenizer_json.read_bytes()).hexdigest()


# Files beside tokenizer.json or the pair. Ids from 512 on are new.
BESIDE = {
    "a map alone": {"special_tokens_map.json": {"eos_token": "<|endoftext|>"}},
    "a map with an object": {"special_tokens_map.json": {"eos_token": {"content": "<|endoftext|>"}}},
    "a map before the configuration": {
        "tokenizer_config.json": {"eos_token": "def"},
        "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
    },
    "a configuration that lists its tokens": {
        "tokenizer_config.json": {
            "eos_token": "<|endoftext|>",
            "added_tokens_decoder": {"512": {"content": "<a>", "special": False}},
        },
        "special_tokens_map.json": {"eos_token": "def"},
        "added_tokens.json": {"<b>": 512},
    },
    "added tokens": {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        "added_tokens.json": {"<b>": 513, "<a>": 512, "ñandú": 514},
    },
    "an added end of text": {
        "special_tokens_map.json": {"eos_token": "</s>", "extra_special_tokens": ["<x>"]},
        "added_tokens.json": {"</s>": 512, "<x>": 513, "<y>": 514},
    },
    "tokens with flags": {
        "tokenizer_config.json": {
            "eos_token": "<|endoftext|>",
            "added_tokens_decoder": {
                "512": {"content": "<l>", "lstrip": True, "special": False, "normalized": False},
                "513": {"content": "<r>", "rstrip": True, "special": False, "normalized": True},
                "514": {"content": "<s>", "special": True},
            },
        }
    },
}
BESIDE_TEXT = "a <a> <b>x <l> y <r>  z</s> <x><y> ñandú <s> def f(x)"


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_a_tokenizer_json_are_read_as_in_transformers(name, tokenizer_json, tmp_path):
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    for file, content in BESIDE[name].items():
        (tmp_path / file).write_text(json.dumps(content))
    loaded = load_tokenizer(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (loaded.eos_token, loaded.eos_id) == (theirs.eos_token, theirs.eos_token_id)
    assert (
        ids_of(loaded, BESIDE_TEXT)
        == theirs(BESIDE_TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    )
    assert loaded.tokenizer.get_vocab() == theirs.get_vocab()
    assert load_tokenizer(tmp_path / "tokenizer.json").eos_id == loaded.eos_id


@pytest.mark.parametrize("name", BESIDE)
def test_a_model_file_keeps_what_is_beside_its_tokenizer(name, tokenizer_json, tmp_path):
    files = {"tokenizer.json": tokenizer_json.read_text()}
    files |= {file: json.dumps(content) for file, content in BESIDE[name].items()}
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    apr.save({"w": np.zeros(1, np.float32)}, tmp_path / "m.apr", {"hf_tokenizer": files})
    inside, beside = load_tokenizer(tmp_path / "m.apr"), load_tokenizer(tmp_path)
    assert ids_of(inside, BESIDE_TEXT) == ids_of(beside, BESIDE_TEXT)
    assert (inside.eos_id, inside.sha256) == (beside.eos_id, beside.sha256)


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_a_pair_are_read_as_beside_a_tokenizer_json(name, tokenizer_json, tmp_path):
    # The pair of the same tokenizer: its added token is in the vocabulary.
    model = json.loads(tokenizer_json.read_text())["model"]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    write_pair(tmp_path / "pair", model["vocab"] | {"<|endoftext|>": 0}, merges)
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    for file, content in BESIDE[name].items():
        for directory in ("pair", "json"):
            (tmp_path / directory / file).write_text(json.dumps(content))
    pair, whole = load_tokenizer(tmp_path / "pair"), load_tokenizer(tmp_path / "json")
    assert (pair.eos_token, pair.eos_id, pair.vocab_size) == (whole.eos_token, whole.eos_id, whole.vocab_size)
    if "flags" not in name:
        assert ids_of(pair, BESIDE_TEXT) == ids_of(whole, BESIDE_TEXT)


def test_a_model_file_may_keep_a_pair(tmp_path):
    pair = write_pair(tmp_path / "pair", byte_vocabulary("<|endoftext|>"), MERGES)
    files = {path.name: path.read_text() for path in pair.iterdir()}
    apr.save({"w": np.zeros(1, np.float32)}, tmp_path / "m.apr", {"hf_tokenizer": files})
    inside, beside = load_tokenizer(tmp_path / "m.apr"), load_tokenizer(pair)
    assert ids_of(inside, TEXT) == ids_of(beside, TEXT)
    assert (inside.eos_id, inside.sha256) == (beside.eos_id, beside.sha256)


def test_an_added_token_whose_id_cannot_be_kept_is_refused(tokenizer_json, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<a>": 600}')
    with pytest.raises(FormatError, match=r"'<a>'.* 600.* 512"):
        load_tokenizer(tmp_path)


def test_a_token_named_none_is_not_the_unknown_token(tmp_path):
    vocabulary = byte_vocabulary("None", "<|endoftext|>")
    assert load_tokenizer(write_pair(tmp_path, vocabulary, MERGES)).unk_id is None
