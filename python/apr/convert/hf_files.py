"""The files of a transformers model directory, and the metadata keys under which `.apr` files keep them."""

from __future__ import annotations

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS = "model.safetensors"
# The files of tokenizers, text and binary. The binary ones are SentencePiece models, as Llama, T5 and XLM-R
# name them.
TOKENIZER_TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)
TOKENIZER_BINARIES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

# The key of a binary file's content in its object {"base64": …}.
BASE64 = "base64"
