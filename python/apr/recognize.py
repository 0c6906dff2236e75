"""What a file or directory is that stands where something else was expected, and what was probably meant."""

from __future__ import annotations

import json
import os
import re

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

_TEXTS = (".jsonl", ".ndjson", ".txt", ".parquet", ".csv", ".md", ".text", ".json")
_JSON = (".jsonl", ".ndjson", ".json")
_COMPRESSED = (".gz", ".zst")
# A file of weights that transformers reads.
_WEIGHTS = (".safetensors", ".safetensors.index.json")
# A model in several .apr files.
_INDEX = ".apr.index.json"
_SEVERAL = "a model in several .apr files; apr convert makes one of them"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Token files of other tools.
_TOKENS = (".bin", ".ds", ".idx", ".npy")
_TOKENS_BESIDE = (".ds.index", ".ds.metadata", ".ds.loss")
_MEGATRON = b"MMIDIDX\x00\x00"
# The dtype in the header of a .npy file, if it is one of integers.
_INTEGERS = re.compile(rb"'descr': '[<>|=]?[iu]")
# Files of a directory that are looked at for token ids: one may have a million shards.
_MOST_TOKEN_FILES = 4
# The files of a PEFT adapter.
ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def recognized(path: str | PathLike[str]) -> str:
    """Return what a path is and what to do with it, such as `a run directory; pass a checkpoint in it`.

    Returns:
        The text; an empty one for what is not recognized.
    """
    shown = os.fspath(path)
    if adapter := adapter_directory(shown):
        return (
            "a PEFT adapter; merge it into its base model with PEFT, and convert OUT: "
            f'AutoPeftModelForCausalLM.from_pretrained("{adapter}").merge_and_unload().save_pretrained("OUT")'
        )
    return _directory(shown) if os.path.isdir(shown) else _file(shown)  # noqa: PTH112 (pathlib takes 8 ms)


def adapter_directory(path: str | PathLike[str]) -> str:
    """Return the directory of the PEFT adapter that a path stands for; an empty text for anything else.

    PEFT writes an adapter to a directory, an adapter with a name to a directory of this name in it.
    """
    shown = os.fspath(path)
    if not os.path.isdir(shown):  # noqa: PTH112
        is_part = os.path.basename(shown) in {ADAPTER, *_ADAPTER_WEIGHTS}  # noqa: PTH119
        return _parent(shown) if is_part and os.path.isfile(shown) else ""  # noqa: PTH113
    try:
        names = sorted(os.listdir(shown))  # noqa: PTH208
    except OSError:
        return ""
    if any(name.endswith(".apr") or (name.startswith("model") and name.endswith(_WEIGHTS)) for name in names):
        return ""  # a whole model, perhaps with an adapter beside it
    if ADAPTER in names:
        return shown
    if "config.json" in names:
        return ""
    inside = (os.path.join(shown, name) for name in names)  # noqa: PTH118
    return next((one for one in inside if os.path.isfile(os.path.join(one, ADAPTER))), "")  # noqa: PTH113, PTH118


def _directory(path: str) -> str:
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208
    except OSError:
        return ""
    present = set(names)
    # A directory of token shards may hold other arrays under their names.
    tokens = _tokens_of(path, names)
    if "ckpt" in present and {"result.json", "config.yaml", "train.jsonl"} & present:
        return f"a run directory; pass a checkpoint in it{_checkpoint(path)}"
    if not tokens and any(name.startswith("shard-") and name.endswith(".bin") for name in names):
        return "a directory of token shards, which is for --dataset"
    weights = any(name.endswith(_WEIGHTS) for name in names)
    if "config.json" in present and weights:
        return f"a transformers model; convert it with apr convert {path} {_stem(path)}.apr"
    if "config.json" in present and present & {*_PICKLES}:
        return (
            "a transformers model in pickles; save it as safetensors with transformers, then convert it with "
            "apr convert"
        )
    if weights:
        return "a directory of safetensors files; convert one, or their index, with apr convert"
    gguf = next((name for name in names if name.endswith(".gguf")), None)
    if gguf is not None:
        return f"a directory of GGUF files; convert one with apr convert {os.path.join(path, gguf)} OUT.apr"  # noqa: PTH118
    if "tokenizer.json" in present or {"vocab.json", "merges.txt"} <= present:
        return "a tokenizer, which is for --tokenizer"
    if present & {"dataset_info.json", "state.json", "dataset_dict.json"}:
        return (
            "a dataset of the datasets library; save it with to_parquet or to_json, then encode it with "
            "apr tokenize encode"
        )
    if any(name.endswith(_INDEX) for name in names):
        return _SEVERAL
    if any(name.endswith(".apr") for name in names):
        return "a directory of .apr files; pass one of them"
    if tokens:
        return f"a directory of {tokens}; {_import(path)}"
    texts = [name for name in names if _is_text(name)]
    for name in texts[:_MOST_TOKEN_FILES]:
        if other := _not_utf8(os.path.join(path, name)):  # noqa: PTH118
            return f"a directory with {name}, {other}"
    return f"a directory of texts; encode it with {_encode(path)}" if texts else ""


def _checkpoint(run: str) -> str:
    """Return the best checkpoint of a run, or else its last one, as an example."""
    directory = os.path.join(run, "ckpt")  # noqa: PTH118
    try:
        with open(os.path.join(run, "result.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            best = json.load(file).get("best_checkpoint")
        if isinstance(best, str) and os.path.isfile(os.path.join(run, best)):  # noqa: PTH113, PTH118
            return f", such as {os.path.join(run, best)}"  # noqa: PTH118
    except (OSError, ValueError, AttributeError):
        pass  # no result, or a damaged one: the name of a file is enough
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".apr"))  # noqa: PTH208
    except OSError:
        names = []
    return f", such as {os.path.join(directory, names[-1])}" if names else ""  # noqa: PTH118


def _file(path: str) -> str:
    name = os.path.basename(path)  # noqa: PTH119
    if name == "config.json":
        directory = _parent(path)
        return f"the configuration of a transformers model; pass its directory to apr convert: {directory}"
    if name in _PICKLES and name.endswith(".json"):
        return "the index of a transformers model in pickles; save it as safetensors with transformers"
    if name.startswith("tokenizer") and name.endswith(".json"):
        return "a tokenizer, which is for --tokenizer"
    if name == "manifest.json":
        return f"the manifest of a shard directory; pass the directory: {_parent(path)}"
    if tokens := token_file(path):
        return f"{tokens}; {_import(path)}"
    if name.startswith("shard-") and name.endswith(".bin"):
        return f"one token shard; pass its directory: {_parent(path)}"
    if name == "result.json":
        return f"the result of a run; pass a checkpoint of it{_checkpoint(_parent(path))}"
    if name.endswith((".yaml", ".yml")):
        return "a YAML file, which is for --config, --arch or --contract"
    if name.endswith(".apr"):
        return "a model file, which is for --init"
    if name.endswith((".gguf", ".safetensors")):
        return f"a model file; convert it with apr convert {path} {_stem(path)}.apr"
    if name.endswith(_INDEX):
        return _SEVERAL
    if name.endswith(".safetensors.index.json"):
        return f"the index of several safetensors files; convert them with apr convert {path} OUT.apr"
    if _is_text(name):
        return _not_utf8(path) or f"a file of texts; encode it with {_encode(path)}"
    return ""


def token_files(path: str | PathLike[str]) -> str:
    """Return what a file or directory is if it has token ids of another tool, with the command that reads it.

    Returns:
        The text; an empty one for anything else, such as the shards of this package.
    """
    shown = os.fspath(path)
    if not os.path.isdir(shown):  # noqa: PTH112
        tokens = token_file(shown)
    else:
        try:
            tokens = _tokens_of(shown, sorted(os.listdir(shown)))  # noqa: PTH208
        except OSError:
            tokens = ""
        tokens = tokens and f"a directory of {tokens}"
    return tokens and f"{tokens}; {_import(shown)}"


def token_file(path: str) -> str:
    """Return what a file is, by its name and contents, if it has token ids of another tool."""
    name = os.path.basename(path)  # noqa: PTH119
    if name.endswith(_TOKENS_BESIDE):
        return "token ids of datatrove"
    if not name.endswith(_TOKENS) or name in {*_PICKLES, *_ADAPTER_WEIGHTS} or not os.path.isfile(path):  # noqa: PTH113
        return ""
    try:
        start = _start(path)
        beside = _start(os.path.splitext(path)[0] + ".idx") if name.endswith(".bin") else start  # noqa: PTH122
    except OSError:
        return ""
    if beside.startswith(_MEGATRON):
        return "token ids of Megatron"
    # The first words of llm.c's files for training and for evaluation.
    if int.from_bytes(start[:4], "little") in {20240520, 20240801, 20240522}:
        return "token ids of llm.c"
    if start.startswith(b"\x93NUMPY"):
        # Of other numbers it holds no ids.
        return "a NumPy array of integers, perhaps token ids" if _INTEGERS.search(start) else ""
    if not start or name.endswith(".idx"):
        return ""
    if name.endswith(".ds"):
        return "token ids of datatrove"
    # Imported here: it needs numpy.
    from apr.layout import IMPORTED, foreign_layout

    layout = foreign_layout(path)
    if layout is None and not name.startswith("shard-") and not _is_plain_text(start):
        layout = "32-bit integers"
    elif layout not in IMPORTED:
        return ""
    if name.startswith("shard-"):
        return f"{layout} under the name of a shard"
    tool = "OLMo and Dolma write" if name.endswith(".npy") else "nanoGPT writes"
    return f"{layout} without a header, as {tool} token ids"


def _tokens_of(path: str, names: Sequence[str]) -> str:
    """Return what the first token file of a directory is."""
    candidates = [name for name in names if name.endswith(_TOKENS)][:_MOST_TOKEN_FILES]
    files = (os.path.join(path, name) for name in candidates)  # noqa: PTH118
    return next((tokens for file in files if (tokens := token_file(file))), "")


def _start(path: str) -> bytes:
    """Return the first bytes of a file; none if it is missing."""
    if not os.path.isfile(path):  # noqa: PTH113
        return b""
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read(64)


def _is_plain_text(start: bytes) -> bool:
    """Whether the first bytes are printable ASCII; too few for `foreign_layout`, perhaps."""
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in start)


def _import(path: str) -> str:
    return f"import them with apr tokenize import {path} shards --tokenizer MODEL.apr"


def hint_if_missing(path: str) -> str:
    """Return what to say about a path that does not exist if it looks like a repository on the Hub."""
    owner, slash, name = path.partition("/")
    plain = owner and name and "/" not in name and not owner.startswith((".", "~")) and " " not in path
    # Qwen2.5-0.5B has no ending, and first.apr has one.
    ending = os.path.splitext(name)[1][1:]  # noqa: PTH122
    if not (slash and plain) or os.path.exists(owner) or ending.isalpha():  # noqa: PTH110
        return ""
    return "apr downloads nothing: if this is a repository on the Hub, download it and pass the directory"


def _is_text(name: str) -> bool:
    """Whether `apr tokenize encode` reads a file as text, by its name."""
    return name.endswith((*_TEXTS, *(text + ending for text in _JSON for ending in _COMPRESSED)))


def _not_utf8(path: str) -> str:
    """Return what a file is that has the name of a text and is not one; an empty text if it may be one."""
    if path.endswith((".parquet", *_COMPRESSED)):
        return ""
    try:
        start = _start(path)
    except OSError:
        return ""
    try:
        start.decode()
    except UnicodeDecodeError as error:
        # The first bytes may end within a character.
        is_text = error.start > len(start) - 4 and error.reason == "unexpected end of data"
    else:
        is_text = b"\0" not in start  # small ids are valid UTF-8
    return "" if is_text else f"a file that is not UTF-8 text; if it has token ids, {_import(path)}"


def _encode(path: str) -> str:
    return f"apr tokenize encode --corpus {path} --tokenizer MODEL.apr --output shards"


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(os.path.normpath(path)))[0]  # noqa: PTH119, PTH122


def _parent(path: str) -> str:
    return os.path.dirname(path) or "."  # noqa: PTH120
