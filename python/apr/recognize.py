"""What a file or directory is that stands where something else was expected, and what was probably meant."""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from os import PathLike

_TEXTS = (".jsonl", ".ndjson", ".txt", ".parquet", ".csv", ".md", ".text", ".json")
_COMPRESSED = (".gz", ".zst")
# A file of weights that transformers reads.
_WEIGHTS = (".safetensors", ".safetensors.index.json")
# A model in several .apr files.
_INDEX = ".apr.index.json"
_SEVERAL = "a model in several .apr files; apr convert makes one of them"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
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
    if "ckpt" in present and {"result.json", "config.yaml", "train.jsonl"} & present:
        return f"a run directory; pass a checkpoint in it{_checkpoint(path)}"
    if any(name.startswith("shard-") and name.endswith(".bin") for name in names):
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
    if any(_is_text(name) for name in names):
        return f"a directory of texts; encode it with {_encode(path)}"
    return ""


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
        return f"a file of texts; encode it with {_encode(path)}"
    return ""


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
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(_TEXTS)


def _encode(path: str) -> str:
    return f"apr tokenize encode --corpus {path} --tokenizer MODEL.apr --output shards"


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(os.path.normpath(path)))[0]  # noqa: PTH119, PTH122


def _parent(path: str) -> str:
    return os.path.dirname(path) or "."  # noqa: PTH120
