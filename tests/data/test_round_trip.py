"""Which tokenizers keep the text of a corpus: judged by ids, in the terms of each tokenizer."""

import json
from itertools import chain

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

from apr.data.encode import encode_corpus
from apr.data.encode_options import EncodeOptions
from apr.data.tokenizers import load_tokenizer
from apr.errors import RefusedError

END = "<|endoftext|>"
DOCUMENTS = {
    "plain": "def f(x): return x",
    "space first": " leading space",
    "spaces first": "   leading spaces",
    "spaces last": "trailing   ",
    "line break first": "\n\n\tindented\n",
    "the mark of spaces": "a\u2581b \u2581 c",
    "capitals and accents": "Größe É e\u0301 \uff26\uff35 \ufb01",
    "other scripts": "東京 मस्ते \U0001f600",
    "control characters": "a\u0000b\u00a0c\u200bd\r\n",
    "special token": f"x{END}y",
}
TEXT = list(DOCUMENTS.values()) * 3


def sentencepiece(normalizer=None, pre_tokenizer=None, decoder=None, unigram=False):
    """A tokenizer over characters with bytes as the last resort, as Llama 2 has it."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.Unigram() if unigram else models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, pre_tokenizer, decoder
    special = ["<unk>", END]
    if unigram:
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=[*special, *fallback], limit_alphabet=40, show_progress=False
        )
    made.train_from_iterator(TEXT, trainer)
    if unigram:
        return made
    # The bytes are ordinary tokens of the model, not special ones.
    spec = json.loads(made.to_str())
    spec["added_tokens"] = spec["added_tokens"][:2]
    return Tokenizer.from_str(json.dumps(spec))


def byte_level(**changes):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre.ByteLevel(add_prefix_space=changes.pop("prefix", False))
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=[END],
            initial_alphabet=pre.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


LLAMA2 = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
LLAMA2_DECODER = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
KEEP_TEXT = {
    "llama 2": lambda: sentencepiece(LLAMA2, None, LLAMA2_DECODER),
    "llama 2 without a decoder": lambda: sentencepiece(LLAMA2),
    "gemma": lambda: sentencepiece(normalizers.Replace(" ", "\u2581"), None, LLAMA2_DECODER),
    "metaspace always": lambda: sentencepiece(None, pre.Metaspace(), decoders.Metaspace()),
    "metaspace first": lambda: sentencepiece(
        None, pre.Metaspace(prepend_scheme="first", split=False), decoders.Metaspace(prepend_scheme="first")
    ),
    "metaspace never": lambda: sentencepiece(
        None, pre.Metaspace(prepend_scheme="never"), decoders.Metaspace(prepend_scheme="never")
    ),
    "unigram": lambda: sentencepiece(None, pre.Metaspace(), decoders.Metaspace(), unigram=True),
    "composing": lambda: sentencepiece(normalizers.NFKC(), pre.Metaspace(), decoders.Metaspace()),
    "lower case": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "without accents": lambda: byte_level(
        normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "stripping": lambda: byte_level(normalizer=normalizers.Strip()),
    "a space first": lambda: byte_level(prefix=True),
    "trimmed offsets": lambda: byte_level(
        prefix=True, post_processor=processors.ByteLevel(trim_offsets=True)
    ),
    "without a decoder": lambda: byte_level(decoder=None),
    "with another decoder": lambda: byte_level(decoder=decoders.WordPiece()),
}


@pytest.fixture
def encode(tmp_path):
    def run(tokenizer, texts, name="shards", **options):
        (tmp_path / "t").mkdir(exist_ok=True)
        tokenizer.save(str(tmp_path / "t" / "tokenizer.json"))
        if not options.get("resume"):
            lines = "".join(json.dumps({"content": text}) + "\n" for text in texts)
            (tmp_path / "c.jsonl").write_text(lines)
        corpus = (str(tmp_path / "c.jsonl"),)
        return encode_corpus(
            EncodeOptions(corpus, tmp_path / "t", tmp_path / name, eos_policy="none", **options)
        )

    return run


def stream(directory):
    return np.concatenate([np.fromfile(path, "<u4") for path in sorted(directory.glob("*.bin"))]).tolist()


@pytest.mark.parametrize("name", KEEP_TEXT)
def test_a_tokenizer_is_judged_in_its_own_terms(name, encode, tmp_path):
    tokenizer = KEEP_TEXT[name]()
    # Unknown characters end the command on their own; only bytes or bytes as a last resort know all.
    documents = {key: text for key, text in DOCUMENTS.items() if name != "unigram" or text.isascii()}
    for number, text in enumerate(documents.values()):
        encode(tokenizer, [text, "x"], f"one{number}")
    made = encode(tokenizer, documents.values())
    tokenizer.encode_special_tokens = True
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in documents.values()]
    assert stream(tmp_path / "shards") == list(chain.from_iterable(expected))
    assert "text_loss" not in made.manifest
    changes = name in ("composing", "lower case", "without accents")
    assert bool(made.notes) == changes


@pytest.mark.parametrize("content", ["ñandú", "ñ", "Ġa", "ÿ\u0120", "日本", "a b"])
@pytest.mark.parametrize("normalized", [True, False])
def test_an_added_token_that_a_decoder_garbles_is_kept(content, normalized, encode, tmp_path):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=normalized)])
    texts = [f"x {content} y{content}{content} é", content, "é"]
    encode(tokenizer, texts)
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenizer.token_to_id(content) in expected[0]
    assert stream(tmp_path / "shards") == list(chain.from_iterable(expected))
    loaded = load_tokenizer(tmp_path / "t")
    assert [loaded.decode(ids) for ids in expected] == texts
    ends = [*expected[0], loaded.eos_id, *expected[1]]
    assert loaded.decode(ends) == f"{texts[0]}{END}{texts[1]}"
    assert loaded.decode(ends, skip_special=True) == texts[0] + texts[1]


def word_level(pre_tokenizer):
    words = {word: id_ for id_, word in enumerate(sorted(set(" ".join(TEXT).replace("\u2581", " ").split())))}
    words |= {f"\u2581{word}": id_ for id_, word in enumerate(words, len(words))}
    made = Tokenizer(models.WordLevel(words | {"<unk>": len(words), END: len(words) + 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizer
    return made


def without_letters(letters):
    spec = json.loads(byte_level().to_str())
    spec["model"]["merges"] = []
    spec["model"]["vocab"] = {
        token: id_ for token, id_ in spec["model"]["vocab"].items() if not set(token) & set(letters)
    }
    return Tokenizer.from_str(json.dumps(spec))


LOSE_TEXT = {
    "white space": lambda: word_level(pre.WhitespaceSplit()),
    "white space before marks": lambda: word_level(pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])),
    "letters": lambda: without_letters("aeiou"),
    "line breaks": lambda: without_letters("Ċ"),
    "unknown text": lambda: sentencepiece(None, pre.Metaspace(), decoders.Metaspace(), unigram=True),
    "removed characters": lambda: byte_level(
        pre_tokenizer=pre.Sequence([pre.Split(" ", "removed"), pre.ByteLevel(add_prefix_space=False)])
    ),
}


@pytest.mark.parametrize("name", LOSE_TEXT)
def test_a_tokenizer_that_loses_text_is_refused_unless_allowed(name, encode, tmp_path):
    tokenizer = LOSE_TEXT[name]()
    texts = ["a plain line\nof text", "न" if name == "unknown text" else "another line"] * 3
    if name.startswith("white"):
        texts = [DOCUMENTS["plain"], DOCUMENTS["spaces first"]]
    with pytest.raises(RefusedError, match="--allow-text-loss"):
        encode(tokenizer, texts)
    assert not (tmp_path / "shards").exists()
    made = encode(tokenizer, texts, allow_text_loss=True)
    assert made.manifest["text_loss"] in made.notes[-1]
    tokenizer.encode_special_tokens = True
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert stream(tmp_path / "shards") == list(chain.from_iterable(expected))
    assert encode(tokenizer, texts, allow_text_loss=True, resume=True).complete_before
