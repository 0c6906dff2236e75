"""The identity of a tokenizer: the same in every form, another one if any id may differ."""

import json
import shutil
from pathlib import Path

import pytest
from tests.data.directories import TOKENIZER
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from apr.cli import main
from apr.data.identity import difference, tokenizer_identity
from apr.data.tokenizers import load_tokenizer

TEXTS = [path.read_text() for path in sorted(Path(__file__).parents[2].glob("docs/*.md"))][:6]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def split(pattern):
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated")]
    return pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def byte_level(pre_tokenizer=BYTE_LEVEL, normalizer=None, vocabulary=480, texts=TEXTS):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Behind the vocabulary, as Qwen2's are.
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    return tokenizer


def llama3():
    spec = json.loads(byte_level(split(LLAMA3)).to_str())
    spec["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(spec))


def sentencepiece():
    """As transformers converts a Llama 2 tokenizer: the order of the tokens is that of their scores."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    texts = [text.replace(" ", "▁") for text in TEXTS[:2]]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=240, show_progress=False))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    letters = sorted({letter for pair in merges for token in pair for letter in token})
    pieces = [*dict.fromkeys("".join(pair) for pair in merges), *letters]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(pieces)]
    ids = {token: id_ for id_, token in enumerate(tokens)}
    # All pairs that make a token, the best first.
    pairs = [
        (token[:at], token[at:])
        for token in sorted(set(pieces), key=ids.__getitem__)
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    made = Tokenizer(models.BPE(ids, pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


KINDS = {
    "gpt-2": (byte_level, "<|endoftext|>"),
    "smollm": (
        lambda: byte_level(
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])
        ),
        "<|endoftext|>",
    ),
    "qwen2": (lambda: byte_level(split(QWEN2), normalizers.NFC()), "<|endoftext|>"),
    "llama-bpe": (llama3, "<|endoftext|>"),
    "llama": (sentencepiece, "</s>"),
}


def identity(path):
    return load_tokenizer(path).identity


def model_directory(path, tokenizer, eos):
    """A model directory of transformers with that tokenizer, and with more rows than ids."""
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TOKENIZER / name, path / name)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return path


@pytest.mark.parametrize("kind", [*KINDS, "with a file of added tokens"])
def test_the_identity_is_the_same_with_and_without_the_library(kind, tmp_path):
    make, eos = KINDS.get(kind, KINDS["gpt-2"])
    made = make()
    made.add_tokens([AddedToken("ñ \n", normalized=False), AddedToken("<|x|>")])
    path = model_directory(tmp_path / "model", made, eos)
    if kind not in KINDS:
        (path / "added_tokens.json").write_text(json.dumps({"<more>": made.get_vocab_size()}))
    loaded = load_tokenizer(path)
    assert (loaded.fast is not None) == (kind in KINDS and kind != "llama")
    unknown = loaded.tokenizer.model.unk_token
    unk_id = None if unknown is None else loaded.tokenizer.token_to_id(unknown)
    assert loaded.identity == tokenizer_identity(loaded.tokenizer, unk_id=unk_id)
    ids = [*range(0, loaded.vocab_size, 3), *range(loaded.vocab_size)]
    text = loaded.tokenizer.decode(ids[:300], skip_special_tokens=False)
    assert loaded.decode(ids[:300]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_survives_every_conversion(kind, tmp_path):
    make, eos = KINDS[kind]
    source = model_directory(tmp_path / "model", make(), eos)
    expected = identity(source)
    assert expected == identity(source / "tokenizer.json")
    before = source
    for name in ("one.apr", "two.gguf", "three.apr", "four.gguf"):
        assert main(["convert", str(before), str(tmp_path / name)]) == 0
        before = tmp_path / name
        assert difference(identity(before), expected) is None
        assert identity(before) == expected, name
    assert main(["convert", str(tmp_path / "one.apr"), str(tmp_path / "back")]) == 0
    assert identity(tmp_path / "back") == expected


@pytest.mark.parametrize("kind", ["gpt-2", "qwen2"])
def test_a_pair_of_files_has_the_identity_of_its_tokenizer_json(kind, tmp_path):
    source = model_directory(tmp_path / "model", KINDS[kind][0](), "<|endoftext|>")
    spec = json.loads((source / "tokenizer.json").read_text())
    expected = identity(source)
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    (source / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in spec["model"]["merges"])
    )
    config = {
        "eos_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer" if kind == "qwen2" else "GPT2Tokenizer",
        "added_tokens_decoder": {str(token["id"]): token for token in spec["added_tokens"]},
    }
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    assert identity(source) == expected
    assert main(["convert", str(source), str(tmp_path / "one.apr")]) == 0
    assert identity(tmp_path / "one.apr") == expected
    assert main(["convert", str(tmp_path / "one.apr"), str(tmp_path / "back")]) == 0
    assert identity(tmp_path / "back") == expected


def test_all_that_apr_tokenize_train_writes_is_one_tokenizer(tmp_path):
    corpus = tmp_path / "a.txt"
    corpus.write_text(TEXTS[0])
    out = tmp_path / "out"
    assert (
        main(["tokenize", "train", "--corpus", str(corpus), "--vocab-size", "400", "--output", str(out)]) == 0
    )
    expected = identity(out)
    (out / "tokenizer.json").unlink()
    assert identity(out) == expected
    (out / "tokenizer_config.json").unlink()
    assert identity(out) == expected
    # The ecosystem's own form of the pair: bytes in hex.
    alphabet = {letter: byte for byte, letter in enumerate(_alphabet())}

    def in_hex(token):
        if token.startswith("<|"):
            return token
        return "".join(f"{alphabet[letter]:02x}" for letter in token)

    words = json.loads((out / "vocab.json").read_text())
    (out / "vocab.json").write_text(json.dumps({in_hex(token): id_ for token, id_ in words.items()}))
    lines = [line for line in (out / "merges.txt").read_text().split("\n") if line and line[0] != "#"]
    (out / "merges.txt").write_text("\n".join(" ".join(map(in_hex, line.split(" "))) for line in lines))
    assert identity(out) == expected


def _alphabet():
    """GPT-2's letters by byte, from transformers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    return [letters[byte] for byte in range(256)]


def test_the_order_and_layout_of_a_file_are_nothing(tmp_path):
    source = model_directory(tmp_path / "model", byte_level(), "<|endoftext|>")
    expected = identity(source)
    spec = json.loads((source / "tokenizer.json").read_text())
    spec["model"]["vocab"] = dict(reversed(spec["model"]["vocab"].items()))
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    spec["pre_tokenizer"]["trim_offsets"] = False
    spec["post_processor"] = None
    (source / "tokenizer.json").write_text(json.dumps(spec, indent=7))
    assert identity(source) == expected


def exchange_ids(spec):
    ids = spec["model"]["vocab"]
    first, second = list(ids)[300:302]
    ids[first], ids[second] = ids[second], ids[first]


def exchange_merges(spec):
    merges = spec["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def drop_a_merge(spec):
    spec["model"]["merges"].pop(7)


def rename_a_token(spec):
    spec["added_tokens"][-1]["content"] = "<other>"


def add_a_token(spec):
    last = spec["added_tokens"][-1]
    spec["added_tokens"].append(last | {"id": last["id"] + 1, "content": "<more>"})


def lower(spec):
    spec["normalizer"] = {"type": "Lowercase"}


def strip_accents(spec):
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}


def compose(spec):
    spec["normalizer"] = {"type": "NFC"}


def fold(spec):
    spec["normalizer"] = {"type": "NFKC"}


def prefix_space(spec):
    spec["pre_tokenizer"]["add_prefix_space"] = True


def single_digits(spec):
    digits = {"type": "Digits", "individual_digits": True}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, spec["pre_tokenizer"]]}


def no_byte_fallback(spec):
    spec["model"]["byte_fallback"] = False


def edited(source, change):
    """Change the tokenizer.json of a directory, and return the directory."""
    spec = json.loads((source / "tokenizer.json").read_text())
    change(spec)
    (source / "tokenizer.json").write_text(json.dumps(spec))
    return source


def no_split(spec):
    spec["pre_tokenizer"]["use_regex"] = False


@pytest.mark.parametrize(
    "change",
    [
        *(exchange_ids, exchange_merges, drop_a_merge, rename_a_token, add_a_token),
        *(lower, strip_accents, compose, fold, prefix_space, no_split),
    ],
)
def test_what_changes_ids_changes_the_identity(change, tmp_path):
    source = model_directory(tmp_path / "model", byte_level(), "<|endoftext|>")
    before = identity(source)
    assert difference(identity(edited(source, change)), before) is not None


def test_digits_that_merges_join_are_split(tmp_path):
    """Splitting digits changes ids only if there are merges of digits."""
    texts = ["2024 2024 2024 1234 12345 123 12 " * 50]
    source = model_directory(tmp_path / "model", byte_level(texts=texts, vocabulary=280), "<|endoftext|>")
    before = identity(source)
    assert difference(identity(edited(source, single_digits)), before) is not None


def test_byte_fallback_changes_the_identity(tmp_path):
    source = model_directory(tmp_path / "model", sentencepiece(), "</s>")
    before = identity(source)
    assert difference(identity(edited(source, no_byte_fallback)), before) is not None


@pytest.mark.parametrize("model", [models.Unigram, models.WordPiece, models.WordLevel])
def test_other_kinds_of_models_have_an_identity_of_their_own(model, tmp_path):
    words = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
    found = set()
    for scale in (1.0, 2.0):
        if model is models.Unigram:
            made = model([(word, -scale * id_) for word, id_ in words.items()], 0)
        else:
            made = model(words if scale == 1.0 else words | {"c": 4}, unk_token="<unk>")
        Tokenizer(made).save(str(tmp_path / "tokenizer.json"))
        found.add(identity(tmp_path / "tokenizer.json"))
    assert len(found) == 2
