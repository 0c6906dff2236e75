"""How byte-level tokenizers split a text before they merge bytes, under llama.cpp's names."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD, _SPACES = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    rf"|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_SPACES}"
)
_O200K = _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", "{1,3}")
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{_TAIL}"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_TAIL}"
_CJK = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+"
_CJK_AND_MORE = r"[\x{0800}-\x{9fa5}\x{ac00}-\x{d7ff}]+"
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+"
)
# Letters that have a case, but for those of mathematics.
_CASED_LETTERS = r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{1d400}-\x{1d7ff}]]+"
_WIDE_PUNCTUATION = r"\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}"
_BETWEEN_STOPS = r" ?[^(\s|.,!?)\x{2026}\x{3002}\x{ff0c}\x{3001}\x{0964}\x{06d4}\x{060c}]+"


class PreType(NamedTuple):
    """One way to split a text."""

    patterns: tuple[str, ...]
    """Applied one after the other; what is between their matches is a piece too."""
    ignore_merges: bool = False
    """Whether a piece that is a token is taken without merging."""
    nfc: bool = False
    """Whether text is normalized to NFC first, as the model's own tokenizer.json does. GGUF has no key for
    it, and llama.cpp never normalizes."""


PRE_TYPES: dict[str, PreType] = {
    "gpt-2": PreType((_GPT2,)),
    "smollm": PreType((r"\p{N}", _GPT2)),
    "qwen2": PreType((_QWEN2,), nfc=True),
    "llama-bpe": PreType((_LLAMA3,), ignore_merges=True),
    "dbrx": PreType((_LLAMA3,)),
    "gpt-4o": PreType((_O200K,)),
    "tekken": PreType((_CASED % ("", "", ""),), ignore_merges=True),
    "qwen35": PreType(
        (_QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}"),), nfc=True
    ),
    "stablelm2": PreType((_QWEN2,)),
    "granite-embed-multi-97m": PreType((_O200K,), ignore_merges=True),
    "falcon": PreType((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": PreType(
        (
            *("[\r\n]", rf"\s?{_CASED_LETTERS}", rf"\s?[!-/:-~{_WIDE_PUNCTUATION}]+", r"\s+$"),
            *(_CJK_AND_MORE, r"\p{N}+"),
        )
    ),
    "deepseek-coder": PreType(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_MORE, r"\p{N}")),
    "deepseek-v3": PreType((r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}[\r\n]*{_SPACES}")),
    "poro-chat": PreType((_BETWEEN_STOPS,)),
    "viking": PreType((_BETWEEN_STOPS, r"\p{N}")),
    "tiny_aya": PreType((r"\d{1,3}(?=(?:\d{3})*\b)", _O200K)),
    "bailingmoe": PreType(
        (rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "seed-coder": PreType((rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_SPACES}",)),
    "ufakzeka": PreType((rf"{_WORD}|\p{{N}}{_TAIL}",)),
    "laguna": PreType((r"[^\n]+|[\n]+", _QWEN2)),
    "minicpm5": PreType((r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+{_TAIL}"), ignore_merges=True),
    "default": PreType((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
# Other names that llama.cpp treats alike.
_ALIASES = {
    "gpt-2": "phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat "
    "a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling exaone4",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez",
    "stablelm2": "hunyuan solar-open grok-2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "dbrx": "smaug-bpe glm4 chatglm-bpe",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "poro-chat": "bloom gpt3-finnish",
    "tiny_aya": "cohere2moe",
    "bailingmoe": "bailingmoe2 llada-moe",
}
_NAMES = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


def pre_type_named(name: str) -> str | None:
    """Return the key of PRE_TYPES for a name that llama.cpp knows; None for another one."""
    return name if name in PRE_TYPES else _NAMES.get(name)


def pre_tokenizer(name: str) -> Any:  # noqa: ANN401 (the package's stubs have no common class)
    """Return the `pre_tokenizer` for a key of PRE_TYPES."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    # As the models' own tokenizer.json have it.
    if name == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return split_by_patterns(PRE_TYPES[name].patterns)


def split_by_patterns(patterns: tuple[str, ...]) -> Any:  # noqa: ANN401 (as above)
    """Return a `pre_tokenizer` that applies patterns one after the other and then maps bytes to letters."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    splits = [Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


def pre_type_of(spec: dict[str, Any]) -> str | None:
    """Return which of PRE_TYPES a tokenizer.json has; None for another model or another pre-tokenizer.

    Args:
        spec: the contents of a tokenizer.json.
    """
    model = spec["model"]
    # Byte fallback marks SentencePiece vocabularies, whose tokens are characters and not bytes.
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    parts = (
        _without_offsets(spec.get("pre_tokenizer")),
        spec.get("normalizer"),
        bool(model.get("ignore_merges")),
    )
    for name, kind in PRE_TYPES.items():
        normalizer = {"type": "NFC"} if kind.nfc else None
        if parts == (_pre_tokenizer_spec(name), normalizer, kind.ignore_merges):
            return name
    return None


@cache
def _pre_tokenizer_spec(name: str) -> Any:  # noqa: ANN401 (JSON)
    """Return a pre-tokenizer as tokenizer.json spells it, without offsets."""
    # The state of a component is its JSON.
    return _without_offsets(json.loads(pre_tokenizer(name).__getstate__()))


def _without_offsets(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Return JSON without `trim_offsets`, which changes offsets only, not ids."""
    if isinstance(value, dict):
        return {key: _without_offsets(inner) for key, inner in value.items() if key != "trim_offsets"}
    return [_without_offsets(inner) for inner in value] if isinstance(value, list) else value
