"""The tokenizer of a model as the keys of a GGUF file, from which llama.cpp and Ollama rebuild it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_CONFIG, HF_GENERATION, HF_TOKENIZER, VOCABULARY
from apr.convert.hf_files import TEMPLATES
from apr.data.pre_tokenizers import PRE_TYPES, split_by_patterns
from apr.gguf.names import SPECIAL_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer

# GGUF's token types.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# GGUF's keys for further ids that end a text, in the order in which they are used.
_OTHER_ENDS = ("eot", "eom")
# Keys of .apr metadata that GGUF names otherwise, or not at all.
_RENAMED = {"vocabulary": "tokens", "pre_type": "pre"}
_NOT_IN_GGUF = frozenset({"vocab_size", "model_type", "identity"})
# SentencePiece merges the pair with the highest score first. Scores that follow from ranks are at most 0;
# these are below every rank, for tokens that no merge makes.
_NO_MERGE_SCORE = -1e6

# Two splitters that agree on this text are taken for the same. It has what they differ in: contractions in
# both cases, runs of digits, capitals within words, marks, spaces, line ends, slashes and other scripts.
_PROBE = (
    "I'm sure they'LL say We've  seen\tit\n\n\n  12345 times, iPhone15Pro's 3.14159/2 \r\n"
    "HTTPServer HeLLo wORLD x=[1,22,333,4444];\n\t\treturn -1;  // ok/\n/path/to\n"
    "naïve café cafe\u0301 Ünïcödé ДОБРЫЙ день नमस्ते 你好世界。 ½ ²³ 🚀🚀🏽 ...!!! ___ 'tis \u00a0end   \n "
)


def tokenizer_keys(metadata: Mapping[str, Any], rows: int) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return the `tokenizer.*` keys of a GGUF file, and notes for the user.

    Args:
        metadata: of an .apr file. They have the tokenizer as transformers' files, as GGUF's lists, or not.
        rows: the rows of the embedding. llama.cpp needs a token for each.
    """
    files = metadata.get(HF_TOKENIZER)
    if isinstance(files, dict) and isinstance(files.get("tokenizer.json"), str):
        result = _from_json(files, metadata, rows)
    elif isinstance(files, dict) and files:
        result = "it has no tokenizer.json; load it with transformers and save it again to get one"
    elif isinstance(metadata.get(VOCABULARY), list):
        result = _from_lists(metadata, rows)
    else:
        result = "the .apr file has none"
    if isinstance(result, str):
        # llama.cpp loads such a model; it takes token ids instead of text.
        return {"tokenizer.ggml.model": "none"}, (f"the GGUF file has no tokenizer: {result}",)
    keys, notes = result
    return {**keys, **_chat_templates(metadata)}, notes


def _from_lists(metadata: Mapping[str, Any], rows: int) -> tuple[dict[str, object], tuple[str, ...]] | str:
    """Return the keys of a tokenizer that came from a GGUF file, or why they cannot be written."""
    kind = metadata.get("tokenizer.model") or metadata.get("tokenizer.model_type") or "gpt2"
    keys: dict[str, Any] = {"tokenizer.ggml.model": "gpt2" if str(kind).lower() == "bpe" else str(kind)}
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.")
        if name != key and name not in _NOT_IN_GGUF and _fits_gguf(value):
            keys.setdefault(f"tokenizer.ggml.{_RENAMED.get(name, name)}", value)
    tokens = metadata[VOCABULARY]
    if not all(isinstance(token, str) for token in tokens):
        return "tokenizer.vocabulary contains a value that is not a string"
    if len(tokens) > rows:
        return _too_many(len(tokens), rows)
    merges = metadata.get("tokenizer.merges")
    if isinstance(merges, list) and all(isinstance(merge, list) for merge in merges):
        keys["tokenizer.ggml.merges"] = [" ".join(map(str, merge)) for merge in merges]
    missing = rows - len(tokens)
    keys["tokenizer.ggml.tokens"] = [*tokens, *(f"[PAD{id_}]" for id_ in range(len(tokens), rows))]
    for name, default, padding in (("token_type", _NORMAL, _UNUSED), ("scores", None, _NO_MERGE_SCORE)):
        values = keys.get(f"tokenizer.ggml.{name}", default and [default] * len(tokens))
        if values is None:
            continue
        kinds = (int,) if name == "token_type" else (int, float)
        is_list = isinstance(values, list) and len(values) == len(tokens)
        if not is_list or not all(isinstance(value, kinds) for value in values):
            return f"tokenizer.{name} does not have a number for each of the {len(tokens)} tokens"
        keys[f"tokenizer.ggml.{name}"] = [*map(type(padding), values), *[padding] * missing]
    return keys, ()


def _fits_gguf(value: object) -> bool:
    """Whether a GGUF key can hold a value of JSON."""
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        # An array has one type, and its whole numbers are of 32 bits with a sign.
        return (
            len(kinds) == 1
            and kinds <= {bool, int, float, str}
            and (kinds != {int} or all(-(2**31) <= item < 2**31 for item in value))
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value < 2**32
    return isinstance(value, (bool, float, str))


def _from_json(
    files: Mapping[str, Any], metadata: Mapping[str, Any], rows: int
) -> tuple[dict[str, object], tuple[str, ...]] | str:
    """Return the keys of a tokenizer.json, or why llama.cpp has no such tokenizer."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    except Exception as error:  # noqa: BLE001 (the package raises nothing narrower)
        return f"the tokenizers package cannot read tokenizer.json: {error}"
    tokenizer.no_truncation()
    tokenizer.no_padding()
    spec = json.loads(files["tokenizer.json"])
    model = spec["model"]
    if model["type"] != "BPE":
        return f"its model is {model['type']}, but llama.cpp runs decoders with BPE"
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values(), default=0) >= rows:
        return _too_many(max(ids.values()) + 1, rows)
    names = {id_: token for token, id_ in ids.items()}
    tokens = [names.get(id_, f"[PAD{id_}]") for id_ in range(rows)]
    types = [_NORMAL if id_ in names else _UNUSED for id_ in range(rows)]
    for added in spec["added_tokens"]:
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    special = _special_ids(files, metadata, ids)
    keys: dict[str, object] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    notes: tuple[str, ...] = ()
    if model.get("byte_fallback"):
        keys |= _sentencepiece(tokenizer, model, merges, tokens, types)
    else:
        pre_type, note = _pre_type(tokenizer, ignore_merges=bool(model.get("ignore_merges")))
        if pre_type is None:
            return "llama.cpp has no name for the way in which it splits a text"
        keys |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre_type,
            "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        }
        notes = () if note is None else (note,)
    # Both are always written: without them, llama.cpp decides by the name of the pre-tokenizer.
    encoded = tokenizer.encode("a").ids
    keys["tokenizer.ggml.add_bos_token"] = "bos" in special and encoded[:1] == [special["bos"]]
    keys["tokenizer.ggml.add_eos_token"] = "eos" in special and encoded[-1:] == [special["eos"]]
    for name, id_ in special.items():
        keys[f"tokenizer.ggml.{name}_token_id"] = id_
    return keys, notes


def _sentencepiece(
    tokenizer: Tokenizer,
    model: Mapping[str, Any],
    merges: list[list[str]],
    tokens: list[str],
    types: list[int],
) -> dict[str, object]:
    """Return the keys of a BPE over characters with bytes as the last resort, and mark those in `types`."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    for id_, token in enumerate(tokens):
        if types[id_] == _NORMAL and len(token) == len("<0x00>") and token.startswith("<0x"):
            types[id_] = _BYTE
        elif token == model.get("unk_token"):
            types[id_] = _UNKNOWN
    first = tokenizer.encode("a", add_special_tokens=False).tokens
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [
            float(-ranks[token]) if token in ranks else _NO_MERGE_SCORE for token in tokens
        ],
        "tokenizer.ggml.add_space_prefix": bool(first) and first[0].startswith("▁"),
    }


def _pre_type(tokenizer: Tokenizer, *, ignore_merges: bool) -> tuple[str | None, str | None]:
    """Return llama.cpp's name for the splitting of a text, and a note where that name is not exact."""
    if tokenizer.pre_tokenizer is None:
        return None, None
    # A normalizer composes characters or does nothing; the probe shows both. llama.cpp never normalizes.
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)]
    close = None
    for name, kind in PRE_TYPES.items():
        reference = split_by_patterns(kind.patterns)
        if [piece for piece, _ in reference.pre_tokenize_str(_PROBE)] != pieces:
            continue
        if kind.ignore_merges == ignore_merges:
            return name, None
        close = close or name
    if close is None:
        return None, None
    return close, (
        f"llama.cpp's pre-tokenizer {close} splits a text as this tokenizer does, but treats words that are "
        "tokens and that no merges make otherwise; some words may get other ids"
    )


def _special_ids(
    files: Mapping[str, Any], metadata: Mapping[str, Any], ids: Mapping[str, int]
) -> dict[str, int]:
    """Return the ids of the special tokens that the model's configurations name, by GGUF's names."""
    found: dict[str, int] = {}
    configs = [_json(files.get(name)) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    known = set(ids.values())
    ends: list[int] = []
    for name, key in SPECIAL_TOKENS.items():
        for config in configs:
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token in ids:
                found.setdefault(key, ids[token])
        for kept in (metadata.get(HF_GENERATION), metadata.get(HF_CONFIG)):
            stated = kept.get(f"{name}_id") if isinstance(kept, dict) else None
            candidates = stated if isinstance(stated, list) else [stated]
            several = [id_ for id_ in candidates if type(id_) is int and id_ in known]
            if several:
                found.setdefault(key, several[0])
            if name == "eos_token":
                ends += several
    # A chat model ends an answer with another token than a text, and generation stops at both.
    others = [id_ for id_ in dict.fromkeys(ends) if id_ != found.get("eos")]
    return found | dict(zip(_OTHER_ENDS, others, strict=False))


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Return the keys of the chat templates: one without a name, and any others under their names."""
    files = metadata.get(HF_TOKENIZER)
    files = files if isinstance(files, dict) else {}
    # As transformers reads them: the file of its own wins.
    template = files.get("chat_template.jinja")
    others = {
        f"tokenizer.chat_template.{name.removeprefix(f'{TEMPLATES}/').removesuffix('.jinja')}": text
        for name, text in files.items()
        if name.startswith(f"{TEMPLATES}/") and isinstance(text, str)
    }
    if template is None:
        template = _json(files.get("tokenizer_config.json")).get("chat_template")
    if template is None:
        template = metadata.get("chat_template")
    if isinstance(template, str):
        return {"tokenizer.chat_template": template, **others}
    keys: dict[str, object] = {**others}
    for entry in template if isinstance(template, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            name = entry.get("name")
            suffix = "" if name == "default" else f".{name}"
            keys[f"tokenizer.chat_template{suffix}"] = entry["template"]
    return keys


def _too_many(tokens: int, rows: int) -> str:
    return f"it has {tokens} tokens, but the embedding has {rows} rows"


def _json(text: object) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
