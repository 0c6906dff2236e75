"""The keys and tensors of a GGUF file of one of the families in `names`, read with the `gguf` package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from apr.container.dtypes import NUMPY
from apr.errors import FormatError, UnsupportedError
from apr.gguf.names import ARCHITECTURES, ONE_PLUS, PERMUTED, hf_name, unpermute
from apr.gguf.structure import one_number, read_structure

if TYPE_CHECKING:
    from os import PathLike

    from gguf import GGMLQuantizationType, ReaderTensor
    from numpy.typing import NDArray

# Types that .apr stores as they are; every other one is dequantized to float32.
_PLAIN_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}
# Divisors of rotary frequencies: tensors in GGUF, metadata in .apr. Llama 3's:
ROPE_FACTORS = "rope_freqs.weight"
# LongRoPE's, for long and for short inputs.
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = frozenset({ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS})
# The kinds of rotary scaling that the key rope.scaling.type names. Llama 3's is in tensors alone.
_SCALINGS = frozenset({"none", "linear", "yarn", "longrope"})
# Architectures with windows in llama.cpp: every n-th layer attends to all positions, the others to a window.
WINDOWED = {"olmo2": 4, "gemma2": 2, "gemma3": 6, "exaone4": 4}
# Sizes that may be a list with one number for each layer.
_PER_LAYER = frozenset({"attention.head_count", "attention.head_count_kv", "feed_forward_length"})
# Keys of all architectures that change how scores, positions or logits are computed, and are read.
_UNDERSTOOD = frozenset({
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.high_freq_factor",
    "rope.scaling.low_freq_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
})  # fmt: skip
# And of single architectures.
_UNDERSTOOD_OF = {
    "gemma2": frozenset({"attn_logit_softcapping", "final_logit_softcapping"}),
    "granite": frozenset({"attention.scale", "embedding_scale", "logit_scale", "residual_scale"}),
}
# What the names of other such keys have in common. A key that is skipped gives other logits without a word.
_CHANGES_VALUES = re.compile(r"^rope\.|scal|softcap|clamp|temperature|alibi|_swa$")
# The values with which they change nothing, beside 0. `finetuned` says only what the author did, except that
# Granite has no positions without it.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "embedding_scale": (1.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "attention.output_scale": (1.0,),
    "attention.value_scale": (1.0,),
    "rope.scaling.alpha": (1.0,),
    "rope.scaling.finetuned": (False, True),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
}
# A message names no more of the tensors that have no place in the model.
_NAMED_IN_MESSAGE = 5


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file under its transformers name.

    Attributes:
        name: the transformers name.
        dtype: the dtype of `values`, as .apr spells it: the stored one, or "f32" if GGUF quantizes it.
        shape: the dimensions in row-major order.
        path: the GGUF file.
        source: the entry of the `gguf` package.
        heads: the number of heads whose rows `values` puts in transformers' order, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    source: ReaderTensor
    heads: int | None
    shift: bool = False
    """Whether GGUF holds 1 + weight, of which `values` returns the weight."""

    @property
    def unit(self) -> int:
        """The number of values that are read together: a quantization block, or a head to reorder."""
        return self._block[0] if self.heads is None else prod(self.shape) // self.heads

    def values(self, start: int, stop: int) -> NDArray[Any]:
        """Return values `start` to `stop` in row-major order, as a one-dimensional array of `dtype`.

        Args:
            start: a multiple of `unit`.
            stop: a multiple of `unit`, or the number of values.

        Raises:
            FormatError: the file was cut short since it was opened.
        """
        values = self._values(start, stop)
        return (values.astype(np.float32) - 1).astype(values.dtype) if self.shift else values

    def _values(self, start: int, stop: int) -> NDArray[Any]:
        from gguf import dequantize

        stored = self.stored(start, stop)
        if self.source.tensor_type.name in _PLAIN_TYPES:
            return stored.view(NUMPY[self.dtype])
        values: NDArray[Any] = dequantize(stored[None], self.source.tensor_type)[0]
        return values

    def stored(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the stored bytes of values `start` to `stop`, with rows in transformers' order.

        Args:
            start: a multiple of `unit`.
            stop: a multiple of `unit`, or the number of values.

        Raises:
            FormatError: the file was cut short since it was opened.
        """
        values, nbytes = self._block
        # Read by position: pages of the reader's mapping count as memory of this process. Through them, a
        # file of 656 MB took 702 MB.
        raw: NDArray[np.uint8] = np.empty((stop - start) // values * nbytes, np.uint8)
        with self.path.open("rb") as file:
            file.seek(self.source.data_offset + start // values * nbytes)
            if file.readinto(raw.data) != raw.nbytes:
                raise FormatError(
                    f"{self.path}: {self.source.name}: the file was cut short while it was read",
                    path=self.path,
                    tensor=self.source.name,
                )
        if self.heads is None:
            return raw
        # Rows hold whole blocks, so that moving the bytes of rows moves the values.
        rows = raw.reshape((stop - start) // prod(self.shape[1:]), -1)
        return unpermute(rows, (stop - start) // self.unit).reshape(-1)

    @property
    def _block(self) -> tuple[int, int]:
        """The number of values and of bytes of a block; of a type that is not quantized, of one value."""
        from gguf import GGML_QUANT_SIZES

        values, nbytes = GGML_QUANT_SIZES[self.source.tensor_type]
        return values, nbytes


class GgufFile:
    """An opened GGUF file of a family that `apr` trains.

    Attributes:
        path: the file.
        architecture: the key `general.architecture`, one of `ARCHITECTURES`.
        fields: all keys with their values.
        tensors: the tensors by their transformers names, without the rotary factors.
        rope_factors: the tensors with divisors of rotary frequencies, by their names in `ROPE_TENSORS`.

    Raises:
        FormatError: the file is not a valid GGUF file.
        UnsupportedError: a family, a feature or a tensor that decoders of `apr` do not have.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        structure = read_structure(self.path)
        # Without this check a big-endian file became noise.
        if not structure.little_endian:
            self.refuse("a big-endian GGUF file is not supported")
        self.fields = structure.fields
        if "general.architecture" not in self.fields:
            raise FormatError(f"{self.path}: GGUF key general.architecture is missing", path=self.path)
        self.architecture = str(self.fields["general.architecture"])
        if self.architecture not in ARCHITECTURES:
            self.refuse(
                f"GGUF architecture {self.architecture!r} is not supported; supported: "
                f"{', '.join(ARCHITECTURES)}"
            )
        self._refuse_features()
        self.tensors: dict[str, GgufTensor] = {}
        self.rope_factors: dict[str, GgufTensor] = {}
        self._add_tensors(structure.tensors)

    def refuse(self, problem: str, tensor: str | None = None) -> NoReturn:
        """Raise the error for something that is valid GGUF but not supported."""
        raise UnsupportedError(f"{self.path}: {problem}", path=self.path, tensor=tensor)

    def has(self, key: str) -> bool:
        """Whether the file has the key of its architecture, such as "rope.freq_base"."""
        return f"{self.architecture}.{key}" in self.fields

    def number(self, key: str) -> float:
        """Return a number among the keys of the architecture.

        Raises:
            FormatError: the key is missing or not a finite number.
            UnsupportedError: it lists another number for each layer.
        """
        name = f"{self.architecture}.{key}"
        if name not in self.fields:
            raise FormatError(f"{self.path}: GGUF key {name} is missing", path=self.path)
        value = self.fields[name]
        if isinstance(value, list) and key in _PER_LAYER:
            layers = self.size("block_count")
            if len(value) != layers:
                raise FormatError(
                    f"{self.path}: GGUF key {name} has {len(value)} entries for {layers} layers",
                    path=self.path,
                )
            value = one_number(value)
            if isinstance(value, list):
                self.refuse(f"{name} differs between layers ({_shown(value)}), which is not supported")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise FormatError(
                f"{self.path}: GGUF key {name} is {_shown(value)}, which is not a finite number",
                path=self.path,
            )
        return value

    def size(self, key: str) -> int:
        """Return a positive whole number among the keys of the architecture.

        Raises:
            FormatError: the key is missing or not a positive whole number.
        """
        value = self.number(key)
        if not isinstance(value, int) or value < 1:
            raise FormatError(
                f"{self.path}: GGUF key {self.architecture}.{key} is {value}, not a positive integer",
                path=self.path,
            )
        return value

    @property
    def kv_heads(self) -> int:
        """The number of KV heads."""
        # GGUF's rule: without the key, there are as many as attention heads.
        key = "attention.head_count_kv" if self.has("attention.head_count_kv") else "attention.head_count"
        return self.size(key)

    def _refuse_features(self) -> None:
        arch = self.architecture
        scaling = self.fields.get(f"{arch}.rope.scaling.type", "none")
        windows = arch in WINDOWED or arch == "phi3"
        features = {
            f"rope scaling {scaling!r}": scaling not in _SCALINGS,
            "mixture of experts": bool(self.fields.get(f"{arch}.expert_count")),
            "bidirectional attention (attention.causal)": not self.fields.get(
                f"{arch}.attention.causal", True
            ),
            "a LoRA adapter (general.type)": self.fields.get("general.type") == "adapter",
            "sliding-window attention": not windows
            and bool(self.fields.get(f"{arch}.attention.sliding_window")),
            "a model split over several files": self.fields.get("split.count", 1) != 1,
        }
        for feature, present in features.items():
            if present:
                self.refuse(f"{feature} is not supported in GGUF files")
        self._refuse_keys()

    def _refuse_keys(self) -> None:
        """Refuse keys that change what the model computes and are not read."""
        arch = self.architecture
        understood = _UNDERSTOOD | _UNDERSTOOD_OF.get(arch, frozenset())
        for name, value in self.fields.items():
            key = name.removeprefix(f"{arch}.")
            if key == name or key in understood or not _CHANGES_VALUES.search(key):
                continue
            neutral = list(_NEUTRAL.get(key, ()))
            if (arch, key) == ("granite", "rope.scaling.finetuned"):
                neutral = [True]
            elif key.endswith("_swa"):  # sizes of the layers with windows, where they are those of the others
                neutral.append(self.fields.get(name.removesuffix("_swa")))
            elif not any(value if isinstance(value, list) else [value]):
                continue
            if value not in neutral:
                self.refuse(
                    f"the key {name} ({_shown(value)}) changes what the model computes, and is not supported"
                )

    def _add_tensors(self, sources: list[ReaderTensor]) -> None:
        arch = self.architecture
        unknown = [s.name for s in sources if hf_name(s.name, arch) is None and s.name not in ROPE_TENSORS]
        if unknown:
            names = ", ".join(unknown[:_NAMED_IN_MESSAGE])
            if len(unknown) > _NAMED_IN_MESSAGE:
                names += " …"
            self.refuse(f"the tensors {names} are not part of a {self.architecture} decoder", unknown[0])
        heads_of: dict[str, int] = {}
        if self.architecture in PERMUTED:
            heads_of = {"q_proj": self.size("attention.head_count"), "k_proj": self.kv_heads}
        for source in sources:
            if source.name in ROPE_TENSORS:
                shape = tuple(map(int, source.shape))
                self.rope_factors[source.name] = GgufTensor(
                    source.name, "f32", shape, self.path, source, None
                )
                continue
            if not is_readable(source.tensor_type):
                self.refuse(
                    f"{source.name} has the unsupported GGML type {source.tensor_type.name}", source.name
                )
            name = str(hf_name(source.name, arch))
            shape = tuple(int(n) for n in reversed(source.shape))  # GGUF lists the fastest dimension first
            heads = next((n for part, n in heads_of.items() if f".{part}." in name), None)
            if heads is not None and shape[0] % (2 * heads):
                raise FormatError(
                    f"{self.path}: {source.name}: {shape[0]} rows cannot be divided among {heads} heads",
                    path=self.path,
                    tensor=source.name,
                )
            dtype = _PLAIN_TYPES.get(source.tensor_type.name, "f32")
            shift = arch in ONE_PLUS and name.endswith("norm.weight")
            self.tensors[name] = GgufTensor(name, dtype, shape, self.path, source, heads, shift)


def _shown(value: object) -> str:
    """Return a value for an error, not all of a long list."""
    if isinstance(value, list):
        return ", ".join(map(str, value[:_NAMED_IN_MESSAGE])) + (
            " …" if len(value) > _NAMED_IN_MESSAGE else ""
        )
    return repr(value)


def is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether .apr stores the type as it is, or the gguf package can dequantize it."""
    from gguf import GGML_QUANT_SIZES, dequantize

    if kind.name in _PLAIN_TYPES:
        return True
    try:  # the package has no list of the types that it dequantizes
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
