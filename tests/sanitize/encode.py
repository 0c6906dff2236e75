"""Text encoded from strings and bytes that Python owns, on several threads."""

import json

import numpy as np

from apr._core import Encoder

LETTERS = "abcdefgh"
TOKENIZER = {
    "model": {
        "type": "BPE",
        "vocab": {letter: number for number, letter in enumerate(LETTERS)},
        "merges": [],
    },
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
}

encoder = Encoder(json.dumps(TOKENIZER), 2, before=100, after=101)
assert encoder.is_fast
texts = [LETTERS * number for number in range(50)]
lines = [json.dumps({"text": text}).encode() for text in texts]
values = [text.encode() for text in texts]
for encoded in (encoder.encode_lines(lines, "text"), encoder.encode_values([*values, None])):
    assert np.frombuffer(encoded.text_bytes, "<u8")[: len(texts)].tolist() == list(map(len, texts))
    assert np.frombuffer(encoded.counts, "<i8")[: len(texts)].tolist() == [len(text) + 2 for text in texts]
    assert np.frombuffer(encoded.ids, "<u4")[:4].tolist() == [100, 101, 100, 0]
ids = encoder.encode(texts).ids
assert np.frombuffer(ids, "<u4").tolist() == list(range(len(LETTERS))) * sum(range(50))
