"""The encoder underneath `apr tokenize encode`: the tokenizers library's own ids, in a faster way."""

import json
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr._core import Encoder

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "qwen2": SPLIT % r"\p{N}",
    "qwen3.5": (SPLIT % r"\p{N}")
    .replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+")
    .replace(r"\s\p{L}", r"\s\p{L}\p{M}"),
    "llama-bpe": SPLIT % r"\p{N}{1,3}",
    "o200k": O200K,
}
KINDS = ["gpt-2", "smollm", *PATTERNS]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    """A byte-level tokenizer of each kind that has a faster way, trained on this interpreter's source."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel
    made = Tokenizer(models.BPE(ignore_merges=request.param == "llama-bpe"))
    if request.param == "gpt-2":
        made.pre_tokenizer = byte_level(add_prefix_space=False)
    elif request.param == "smollm":
        cuts = [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)]
        made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    else:
        cuts = [
            pre_tokenizers.Split(Regex(PATTERNS[request.param]), "isolated"),
            byte_level(add_prefix_space=False, use_regex=False),
        ]
        made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    if request.param.startswith("qwen"):
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        initial_alphabet=byte_level.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator(islice(source(), 60), trainer)
    made.encode_special_tokens = True
    return made


@pytest.fixture(scope="module")
def encoder(tokenizer):
    made = Encoder(tokenizer.to_str(), 2)
    assert made.is_fast
    return made


def source():
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="ignore")


def ids_of(encoder, texts):
    return lists(encoder.encode(texts))


def lists(encoded):
    """The ids of each text, None for what is none."""
    ids, counts = np.frombuffer(encoded.ids, "<u4").tolist(), np.frombuffer(encoded.counts, "<i8").tolist()
    ends = np.cumsum(np.maximum(counts, 0)).tolist()
    assert len(ids) == (ends[-1] if ends else 0)
    return [ids[end - count : end] if count >= 0 else None for end, count in zip(ends, counts, strict=True)]


def check(tokenizer, encoder, texts):
    expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    found = ids_of(encoder, texts)
    if found != expected:
        wrong = next(n for n, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        pytest.fail(f"{texts[wrong][:200]!r}: {found[wrong][:40]} and not {expected[wrong][:40]}")


PIECES = st.sampled_from([
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u0085", "\u200b", "'s", "'S", "'\u017f",
    "'ll", "'LL", "'", "don't", "x", "Ab", "é", "e\u0301", "\u0301", "Å", "中文", "١٢", "Ⅷ", "½",
    "1", "12345", "…", "!!", "😀", "<|endoftext|>", "\0",
])  # fmt: skip
# Long ones too: 64 bytes are cut at once.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(PIECES, max_size=80).map(
    "".join
)


def check_pieces(tokenizer, encoder, text):
    """Where a text is cut. Ids show that only if tokens reach across the wrong cut."""
    expected = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    found = encoder.pieces(text)
    if found != expected:
        wrong = next(n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1])
        near = slice(max(0, wrong - 3), wrong + 3)
        pytest.fail(f"{found[near]} and not {expected[near]}")


@given(TEXT)
def test_any_text_is_cut_where_the_library_cuts_it(tokenizer, encoder, text):
    check_pieces(tokenizer, encoder, text)


# Beside letters, numbers, white space, punctuation, contractions, and itself.
CONTEXTS = "{0}b{0} 1{0}2 {0} !{0}. {0}{0}x\n{0}'{0} A{0}A{0}a{0}\r\n {0}/\u0301{0}'s\t{0}\u00a0{0}中{0}s'{0}"


@pytest.mark.parametrize("step", [229, pytest.param(1, marks=pytest.mark.long)])
def test_every_character_is_cut_as_the_library_does(step, tokenizer, encoder):
    """Including those that Unicode has not assigned yet: another version of Unicode is noticed here."""
    codes = [*range(0x800), *range(0x800, sys.maxunicode + 1, step)]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 500):
        check_pieces(tokenizer, encoder, "\n".join(map(CONTEXTS.format, characters[start : start + 500])))


def test_the_unicode_versions_of_the_library_are_those_that_the_encoder_has():
    """An upgrade that classifies a character in another way changes ids: then the encoder must change too."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Digits, Split

    def is_digit(code):
        return len(Digits(individual_digits=True).pre_tokenize_str(f"a{chr(code)}")) == 2

    def is_number(code):
        return len(Split(Regex(r"\p{N}"), "isolated").pre_tokenize_str(f"a{chr(code)}")) == 2

    # U+10D40 is a digit since Unicode 16, U+11DE0 since Unicode 17. Patterns have 16, `Digits` has 17.
    assert [is_digit(0x10D40), is_digit(0x11DE0)] == [True, True]
    assert [is_number(0x10D40), is_number(0x11DE0)] == [True, False]


@given(st.lists(TEXT, max_size=5))
def test_any_text_has_the_ids_of_the_library(tokenizer, encoder, texts):
    check(tokenizer, encoder, texts)


@pytest.mark.parametrize("step", [211, pytest.param(1, marks=pytest.mark.long)])
def test_every_character_has_the_class_of_the_library(step, tokenizer, encoder):
    """Beside letters, digits, blanks and punctuation: what class it has decides where a text is cut."""
    codes = [*range(0x500), *range(0x500, sys.maxunicode + 1, step)]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 4000):
        part = characters[start : start + 4000]
        check(tokenizer, encoder, [f"a{c}b 1{c}2 {c} !{c}. {c}{c}x\n{c}'{c}" for c in part])


def test_source_code_has_the_ids_of_the_library(tokenizer, encoder):
    check(tokenizer, encoder, list(islice(source(), 40)))


@pytest.mark.long
def test_a_whole_corpus_has_the_ids_of_the_library(tokenizer, encoder):
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    for start in range(0, len(paths), 200):
        check(
            tokenizer,
            encoder,
            [p.read_text(encoding="utf-8", errors="ignore") for p in paths[start : start + 200]],
        )


def test_a_full_cache_changes_no_ids(tokenizer):
    encoder = Encoder(tokenizer.to_str(), 1)
    check(tokenizer, encoder, [" ".join(f"w{n:x}" for n in range(start, 300_000, 2)) for start in range(2)])


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
    ],
)
def test_other_tokenizers_use_the_library(change, tokenizer):
    from tokenizers import Tokenizer

    other = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | change))
    other.encode_special_tokens = True
    encoder = Encoder(other.to_str(), 2)
    assert not encoder.is_fast
    check(other, encoder, ["Ein \uff34ext  with 12 words", "", "  x"])


def test_added_tokens_are_matched_in_a_text(tokenizer):
    from tokenizers import AddedToken, Tokenizer

    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens([AddedToken("    ", normalized=False), AddedToken("def ", normalized=False)])
    other.encode_special_tokens = True
    check(other, Encoder(other.to_str(), 2), ["def f(x):\n    return x", "defx", "   y", "<|endoftext|>"])


def test_truncation_and_padding_of_a_file_are_ignored(tokenizer):
    from tokenizers import Tokenizer

    other = Tokenizer.from_str(tokenizer.to_str())
    other.enable_truncation(3)
    other.enable_padding(length=9)
    text = "a longer text than three tokens hold"
    assert ids_of(Encoder(other.to_str(), 1), [text]) == ids_of(Encoder(tokenizer.to_str(), 1), [text])


def test_bytes_that_are_not_in_the_vocabulary_are_left_out_as_in_the_library(tokenizer):
    from tokenizers import Tokenizer

    # SmolLM2's vocabulary lacks seven bytes.
    spec = json.loads(tokenizer.to_str())
    # Byte 4.
    del spec["model"]["vocab"]["Ą"]
    other = Tokenizer.from_str(json.dumps(spec))
    other.encode_special_tokens = True
    check(other, Encoder(other.to_str(), 1), ["a\x04b", "\x04", "x" * 40 + "\x04", "plain"])


def test_texts_that_are_not_normalized_have_the_ids_of_the_library(tokenizer, encoder):
    marks = "\u0301\u0327\u0323\u0340\u1161\u11a8\u09be\u0dcf"
    check(tokenizer, encoder, [f"{a} e{m}{n}x{a}{m} {n}" for a in "eÅ가क" for m in marks for n in marks])


def _as_strings(spec):
    spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]


def _with_an_unknown_token(spec):
    spec["model"]["unk_token"] = "!"
    del spec["model"]["vocab"]["Ą"]


def _with_a_merge_twice(spec):
    spec["model"]["merges"].append(spec["model"]["merges"][0])


def _with_ids_in_another_order(spec):
    spec["model"]["vocab"] = dict(sorted(spec["model"]["vocab"].items(), reverse=True))


def _with_an_id_of_two_tokens(spec):
    spec["model"]["vocab"]["never"] = spec["model"]["vocab"]["a"]


def _with_an_added_token_of_another_id(spec):
    spec["added_tokens"].append(
        dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        | {"id": 90_000, "content": "<|extra|>"}
    )


@pytest.mark.parametrize(
    "change",
    [
        _as_strings,
        _with_an_unknown_token,
        _with_a_merge_twice,
        _with_ids_in_another_order,
        _with_an_id_of_two_tokens,
        _with_an_added_token_of_another_id,
    ],
)
def test_every_form_of_a_file_has_the_ids_of_the_library(change, tokenizer):
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.to_str())
    change(spec)
    content = json.dumps(spec)
    other = Tokenizer.from_str(content)
    other.encode_special_tokens = True
    check(other, Encoder(content, 1), ["a\x04b <|extra|> x", *islice(source(), 2)])


def test_an_invalid_tokenizer_is_refused():
    with pytest.raises(ValueError, match="Model missing"):
        Encoder("{}", 1)


def test_a_long_text_in_parts_has_the_ids_of_the_library(tokenizer, encoder):
    # Parts are cut between words; there are few such places in the second text, none in the third.
    texts = [" ".join(islice(source(), 30)), "é中 12 \n" * 40_000 + "a b" * 9, "x" * 200_000 + "\u0301"]
    check(tokenizer, encoder, texts)


def test_added_tokens_are_matched_in_a_long_text(tokenizer):
    from tokenizers import AddedToken, Tokenizer

    text = "\n".join(islice(source(), 4))
    for added in (
        [AddedToken("return", normalized=False)],
        [AddedToken("self", single_word=True), AddedToken("def", lstrip=True)],
        [AddedToken("in", rstrip=True)],
        [AddedToken("not in", normalized=False), AddedToken("is not", normalized=False)],
    ):
        other = Tokenizer.from_str(tokenizer.to_str())
        other.add_tokens(added)
        other.encode_special_tokens = True
        check(other, Encoder(other.to_str(), 2), [text])


STORED = ["one", "", 'zwei ä\n"\\\u2028', "\U0001f600 " * 9]


def test_files_lines_and_values_have_the_ids_of_their_texts_with_ends(tokenizer, tmp_path):
    plain = ids_of(Encoder(tokenizer.to_str(), 1), STORED)
    encoder = Encoder(tokenizer.to_str(), 2, before=7, after=8)
    expected = [[7, *ids, 8] for ids in plain]
    paths = [tmp_path / f"{n}.txt" for n in range(len(STORED))]
    for path, text in zip(paths, STORED, strict=True):
        path.write_bytes(text.encode())
    text_bytes = [len(text.encode()) for text in STORED]
    for ascii_only in (True, False):
        lines = [json.dumps({"a": 1, "t": t}, ensure_ascii=ascii_only).encode() + b"\n" for t in STORED]
        assert lists(encoder.encode_lines(lines, "t")) == expected
        assert encoder.encode_lines(lines, "t").text_bytes == np.array(text_bytes, "<u8").tobytes()
    assert lists(encoder.encode_files(paths)) == expected
    assert lists(encoder.encode_values([text.encode() for text in STORED])) == expected
    assert ids_of(encoder, STORED) == plain


def test_invalid_documents_have_no_ids(tokenizer, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    encoder = Encoder(tokenizer.to_str(), 2, after=8)
    assert lists(encoder.encode_files([tmp_path / "latin.txt", tmp_path / "gone", tmp_path])) == [None] * 3
    assert lists(encoder.encode_values([None, b"\xe9", b""])) == [None, None, [8]]
    lines = [b'{"t": 3}', b"nonsense", b'{"t": "\xe9"}', b'{"t": "\\ud800"}', b'{"u": "x"}', b"\n", b"[]"]
    assert lists(encoder.encode_lines(lines, "t")) == [None] * len(lines)


def test_nfc_equals_pythons(tokenizer):
    import unicodedata

    texts = ["e\u0301" * 3, "\u1100\u1161\u11a8", "\u0344 \u2126", "plain"]
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    assert ids_of(Encoder(tokenizer.to_str(), 1, nfc=True), texts) == ids_of(
        Encoder(tokenizer.to_str(), 1), composed
    )


def test_a_stopped_encoder_refuses_to_encode(tokenizer):
    encoder = Encoder(tokenizer.to_str(), 2)
    encoder.stop()
    with pytest.raises(InterruptedError):
        encoder.encode(["text"])
