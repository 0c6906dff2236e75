"""The identity of a tokenizer: what decides its ids, however it is stored.

Two hashes, `VOCABULARY-SPLIT`: the first is of all tokens with their ids and of the merges, the second of the
ids of a text that has what tokenizers treat differently. No file's bytes are in it: a tokenizer.json, a pair
of vocab.json and merges.txt, a GGUF file and an .apr file of one tokenizer have the same identity.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from apr._core import ByteLevel, Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenizers import Tokenizer

# The keys of a model file's metadata and of a manifest.
MODEL_KEY, MANIFEST_KEY = "tokenizer.identity", "tokenizer_identity"
_IDENTITY = re.compile(r"[0-9a-f]{32}-([0-9a-f]{16}|unknown)")
_UNKNOWN = "unknown"
# Contractions in both cases, runs of digits, capitals within words, marks, composed and decomposed letters,
# spaces, line ends, slashes, other scripts and symbols: where pre-tokenizers, normalizers and byte fallback
# differ.
_PROBE = (
    "I'm sure they'LL say We've  seen\tit\n\n\n  12345 times, iPhone15Pro's 3.14159/2 \r\n"
    "HTTPServer HeLLo wORLD x=[1,22,333,4444];\n\t\treturn -1;  // ok/\n/path/to\n"
    "naïve café cafe\u0301 Ünïcödé ДОБРЫЙ день नमस्ते 你好世界。 ½ ²³ ﬁ Ⅳ 🚀🚀🏽 "
    "...!!! ___ 'tis \u00a0end   \n "
)


def tokenizer_identity(
    tokenizer: Tokenizer | ByteLevel, *, unk_id: int | None, split_known: bool = True
) -> str:
    """Return the identity of a tokenizer.

    Args:
        tokenizer: the tokenizer; special tokens may or may not count in its texts.
        unk_id: the id of text that the vocabulary does not have.
        split_known: whether the way in which it splits texts is the tokenizer's own, and not assumed.
    """
    if isinstance(tokenizer, ByteLevel):
        content = tokenizer.identity_text()
    else:
        content = "".join(f"{line}\n" for line in _lines(tokenizer)).encode()
    split = _UNKNOWN
    if split_known:
        # A model without an unknown token may have no ids for the text; the packages raise nothing narrower.
        with suppress(Exception):
            # Files differ in whether they name the unknown token, which is nothing that a text means.
            known = [id_ for id_ in _probed(tokenizer) if id_ != unk_id]
            split = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    return f"{hashlib.sha256(content).hexdigest()[:32]}-{split}"


def _probed(tokenizer: Tokenizer | ByteLevel) -> list[int]:
    if isinstance(tokenizer, ByteLevel):
        # Not with numpy, whose import would take longer than a repair, which compares identities only.
        return memoryview(Encoder(tokenizer, 1).encode([_PROBE]).ids).cast("B").cast("I").tolist()
    return list(tokenizer.encode(_PROBE, add_special_tokens=False).ids)


def _lines(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the tokens with their ids, and what else decides ids."""
    for token, id_ in sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]):
        # Converters to GGUF name ids without a token so, and fill a vocabulary up to the model's with them.
        if token != f"[PAD{id_}]":
            yield f"{id_} {json.dumps(token)}"
    yield from _rules(json.loads(tokenizer.to_str())["model"])


def _rules(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a model decides ids by, besides its tokens."""
    if model["type"] != "BPE":
        # A dictionary of tokens is in the vocabulary already; a list of them has scores.
        yield json.dumps(
            {key: value for key, value in model.items() if key != "vocab" or isinstance(value, list)},
            sort_keys=True,
        )
        return
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if model.get("byte_fallback"):
        # SentencePiece has a score for each token, from which the pairs that make it follow.
        yield from map(json.dumps, dict.fromkeys("".join(pair) for pair in pairs))
    else:
        yield from map(json.dumps, pairs)


def difference(a: str, b: str) -> str | None:
    """Return in what two identities differ; None if they are of the same tokenizer, as far as is known."""
    (vocabulary_a, split_a), (vocabulary_b, split_b) = a.split("-"), b.split("-")
    if vocabulary_a != vocabulary_b:
        return "the tokens, their ids or the merges differ"
    if split_a != split_b and _UNKNOWN not in (split_a, split_b):
        return "the tokens are the same, but texts are normalized or split in another way"
    return None


def same_in_manifests(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two manifests are of the same tokenizer, in whatever form it was given."""
    if a.get("tokenizer_sha256") == b.get("tokenizer_sha256"):
        return True
    identities = recorded_identity(a.get(MANIFEST_KEY)), recorded_identity(b.get(MANIFEST_KEY))
    return None not in identities and identities[0] == identities[1]


def recorded_identity(identity: object) -> str | None:
    """Return an identity that a file records; None if it records none, or something else."""
    return identity if isinstance(identity, str) and _IDENTITY.fullmatch(identity) else None
