"""GGUF files of the Llama and Qwen2 families, read with the `gguf` package."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apr.container.dtypes import NUMPY
from apr.errors import FormatError, UnsupportedError
from apr.gguf.names import FAMILIES, hf_name, unpermute

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from gguf import GGMLQuantizationType, GGUFReader, ReaderField, ReaderTensor
    from numpy.typing import NDArray

# Factors of Llama 3's rotary frequencies; the parameters of all published models, but for the largest factor.
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1, 4, 8192
# Types that .apr stores as they are; every other one is dequantized to float32.
_PLAIN_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file under its transformers name."""

    name: str
    dtype: str
    """As .apr names it: the stored type, or f32 where GGUF quantizes."""
    shape: tuple[int, ...]
    path: Path
    source: ReaderTensor
    heads: int | None
    """How many heads to un-permute the rows of, or None."""

    @property
    def unit(self) -> int:
        """How many values can only be read together: those of a block, or of a head that is un-permuted."""
        return self._block[0] if self.heads is None else prod(self.shape) // self.heads

    def values(self, start: int, stop: int) -> NDArray[Any]:
        """The values from the `start`th to before the `stop`th in row-major order, of one dimension.

        Args:
            start: a multiple of `unit`.
            stop: a multiple of `unit`, or the number of values.

        Returns:
            In `dtype`, un-permuted.

        Raises:
            FormatError: the file was cut short since it was opened.
        """
        from gguf import dequantize

        stored = self.stored(start, stop)
        if self.source.tensor_type.name in _PLAIN_TYPES:
            return stored.view(NUMPY[self.dtype])
        values: NDArray[Any] = dequantize(stored[None], self.source.tensor_type)[0]
        return values

    def stored(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of these values as they are stored, un-permuted; arguments and errors as of `values`."""
        values, nbytes = self._block
        # By position, not through the reader's mapping: its pages would count as memory of this process.
        raw: NDArray[np.uint8] = np.empty((stop - start) // values * nbytes, np.uint8)
        with self.path.open("rb") as file:
            file.seek(self.source.data_offset + start // values * nbytes)
            if file.readinto(raw.data) != raw.nbytes:
                raise FormatError(
                    f"{self.path}: {self.source.name}: the file was cut short meanwhile",
                    path=self.path,
                    tensor=self.source.name,
                )
        if self.heads is None:
            return raw
        # Whole rows move, and the blocks in them.
        rows = raw.reshape((stop - start) // prod(self.shape[1:]), -1)
        return unpermute(rows, (stop - start) // self.unit).reshape(-1)

    @property
    def _block(self) -> tuple[int, int]:
        """Values and bytes of a block; of a type that is not quantized, of a value."""
        from gguf import GGML_QUANT_SIZES

        values, nbytes = GGML_QUANT_SIZES[self.source.tensor_type]
        return values, nbytes


class GgufModel:
    """A GGUF file of a family that `apr` trains: `.metadata` as .apr writes it, `.tensors` by name.

    Raises:
        FormatError: the file is no GGUF, or its structure lies.
        UnsupportedError: a family, a feature or a tensor that has no place in a Llama or Qwen2 decoder.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._reader = _open(self.path)
        if self._reader.byte_order != "I":
            raise UnsupportedError(f"{self.path}: a big-endian GGUF file is not read", path=self.path)
        self._fields = {key: _contents(self.path, field) for key, field in self._reader.fields.items()}
        self.architecture = str(self._fields.get("general.architecture"))
        if self.architecture not in FAMILIES:
            raise UnsupportedError(
                f"{self.path}: GGUF architecture {self.architecture!r} is not read "
                f"(read are: {', '.join(FAMILIES)})",
                path=self.path,
            )
        self._refuse_features()
        self.tensors = {tensor.name: tensor for tensor in self._named_tensors()}
        self.metadata = {**self._sizes(), **_tokenizer_metadata(self._fields)}

    def _number(self, key: str) -> float:
        value = self._fields.get(f"{self.architecture}.{key}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise FormatError(
                f"{self.path}: GGUF key {self.architecture}.{key} is missing or no number", path=self.path
            )
        return value

    def _size(self, key: str) -> int:
        value = self._number(key)
        if not isinstance(value, int) or value < 1:
            raise FormatError(
                f"{self.path}: GGUF key {self.architecture}.{key} is {value}, no size", path=self.path
            )
        return value

    def _has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._fields

    def _refuse_features(self) -> None:
        arch = self.architecture
        scaling = self._fields.get(f"{arch}.rope.scaling.type", "none")
        refused = {
            f"rope scaling {scaling!r}": scaling != "none",
            "mixture of experts": bool(self._fields.get(f"{arch}.expert_count")),
            "sliding-window attention": bool(self._fields.get(f"{arch}.attention.sliding_window")),
            "a model split over several files": self._fields.get("split.count", 1) != 1,
        }
        for feature, present in refused.items():
            if present:
                raise UnsupportedError(f"{self.path}: {feature} is not read from GGUF", path=self.path)

    def _head_dim(self) -> int:
        default = self._size("embedding_length") // self._size("attention.head_count")
        head_dim = self._size("attention.key_length") if self._has("attention.key_length") else default
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._has(key) and self._size(key) != head_dim:
                raise UnsupportedError(
                    f"{self.path}: {self.architecture}.{key} is {self._size(key)}, "
                    f"the heads have {head_dim}: partial rotary embeddings are not read",
                    path=self.path,
                )
        return head_dim

    def _kv_heads(self) -> int:
        # Absent means as many as heads: GGUF's own rule.
        key = "attention.head_count_kv" if self._has("attention.head_count_kv") else "attention.head_count"
        return self._size(key)

    def _named_tensors(self) -> Iterator[GgufTensor]:
        q_heads, kv_heads = self._size("attention.head_count"), self._kv_heads()
        permuted = {"q_proj": q_heads, "k_proj": kv_heads} if self.architecture == "llama" else {}
        names = [tensor.name for tensor in self._reader.tensors]
        strangers = [name for name in names if hf_name(name) is None and name != _ROPE_FACTORS]
        if strangers:
            raise UnsupportedError(
                f"{self.path}: tensors that a {self.architecture} decoder has no place for: "
                f"{', '.join(strangers[:5])}{' …' if len(strangers) > 5 else ''}",
                path=self.path,
                tensor=strangers[0],
            )
        for source in self._reader.tensors:
            if source.name == _ROPE_FACTORS:
                continue  # `_rope_scaling` reads it
            if not _is_read(source.tensor_type):
                raise UnsupportedError(
                    f"{self.path}: {source.name} has GGML type {source.tensor_type.name}, which is not read",
                    path=self.path,
                    tensor=source.name,
                )
            name = str(hf_name(source.name))
            shape = tuple(int(n) for n in reversed(source.shape))
            heads = next((n for part, n in permuted.items() if f".{part}." in name), None)
            if heads is not None and shape[0] % (2 * heads):
                raise FormatError(
                    f"{self.path}: {source.name}: {shape[0]} rows are not even for {heads} heads",
                    path=self.path,
                    tensor=source.name,
                )
            dtype = _PLAIN_TYPES.get(source.tensor_type.name, "f32")
            yield GgufTensor(name, dtype, shape, self.path, source, heads)

    def _sizes(self) -> dict[str, object]:
        arch, scaling = self.architecture, self._rope_scaling()
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise FormatError(f"{self.path}: there is no token_embd.weight", path=self.path)
        vocab_size = embedding.shape[0]
        if self._has("vocab_size") and self._size("vocab_size") != vocab_size:
            raise FormatError(
                f"{self.path}: {arch}.vocab_size is {self._size('vocab_size')}, "
                f"token_embd.weight has {vocab_size} rows",
                path=self.path,
                tensor="token_embd.weight",
            )
        sizes: dict[str, object] = {
            "model_type": arch,
            "name": self._fields.get("general.name", self.path.stem),
            "license": self._fields.get("general.license"),
            "data_source": None,
            "data_license": None,
            "original_format": "gguf",
            "param_count": sum(prod(tensor.shape) for tensor in self.tensors.values()),
            "architecture": arch,
            "hf_architecture": FAMILIES[arch],
            "hf_model_type": arch,
            "hidden_size": self._size("embedding_length"),
            "num_layers": self._size("block_count"),
            "num_heads": self._size("attention.head_count"),
            "num_kv_heads": self._kv_heads(),
            "head_dim": self._head_dim(),
            "vocab_size": vocab_size,
            "intermediate_size": self._size("feed_forward_length"),
            "max_position_embeddings": self._size("context_length"),
            "rope_theta": self._rope_theta(),
            "rope_type": 2,  # rows of q and k are un-permuted: split halves
            "rms_norm_eps": _shortest(self._number("attention.layer_norm_rms_epsilon")),
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
        }
        if scaling is not None:
            sizes["rope_scaling"] = scaling
        if arch == "llama":  # GGUF has no key for it: the tensors are all there is to go by
            sizes["attention_bias"] = any(name.endswith("q_proj.bias") for name in self.tensors)
        return sizes

    def _rope_theta(self) -> float:
        # 10000 where the key is absent: GGUF's own rule.
        return _shortest(self._number("rope.freq_base")) if self._has("rope.freq_base") else 10000.0

    def _rope_scaling(self) -> dict[str, object] | None:
        """Llama 3's scaling of rotary frequencies, of which GGUF keeps the factors but not the parameters.

        Raises:
            UnsupportedError: factors that the published parameters do not give.
        """
        source = next((t for t in self._reader.tensors if t.name == _ROPE_FACTORS), None)
        if source is None:
            return None
        stored = GgufTensor(_ROPE_FACTORS, "f32", tuple(map(int, source.shape)), self.path, source, None)
        found = stored.values(0, prod(stored.shape)) if source.tensor_type.name == "F32" else np.zeros(0)
        factor, head_dim = float(found.max(initial=0.0)), self._head_dim()
        if not (
            1 < factor < float("inf")
            and len(found) == head_dim // 2
            and np.allclose(found, _llama3_factors(self._rope_theta(), head_dim, factor), rtol=1e-5, atol=0)
        ):
            raise UnsupportedError(
                f"{self.path}: {_ROPE_FACTORS} holds factors of no rope scaling that is read (Llama 3's is)",
                path=self.path,
                tensor=_ROPE_FACTORS,
            )
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": float(_LLAMA3_LOW),
            "high_freq_factor": float(_LLAMA3_HIGH),
            "original_max_position_embeddings": _LLAMA3_CONTEXT,
        }


def read_metadata(path: str | PathLike[str]) -> dict[str, object]:
    """The metadata that `apr convert` writes for a GGUF file: sizes, architecture, tokenizer."""
    return GgufModel(path).metadata


def _open(path: Path) -> GGUFReader:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise FormatError(f"{path}: no GGUF file (it starts with {magic!r})", path=path, offset=0)
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise FormatError(f"{path}: not a readable GGUF file: {error}", path=path) from error


def _contents(path: Path, field: ReaderField) -> Any:  # noqa: ANN401  (whatever GGUF holds)
    try:
        return field.contents()
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}: GGUF key {field.name}: no UTF-8 ({error.reason})", path=path, offset=int(field.offset)
        ) from None


def _is_read(kind: GGMLQuantizationType) -> bool:
    """Whether .apr stores the type as it is, or the gguf package dequantizes it."""
    from gguf import GGML_QUANT_SIZES, dequantize

    if kind.name in _PLAIN_TYPES:
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _llama3_factors(theta: float, head_dim: int, factor: float) -> NDArray[np.float32]:
    """What divides each rotary frequency (https://arxiv.org/abs/2407.21783, transformers' `llama3`)."""
    with np.errstate(all="ignore"):  # of sizes that lie anything may come, it only has to differ
        wavelengths = (
            2 * np.pi * np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        )
        smooth = (_LLAMA3_CONTEXT / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
        factors = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors[wavelengths < _LLAMA3_CONTEXT / _LLAMA3_HIGH] = 1
    factors[wavelengths > _LLAMA3_CONTEXT / _LLAMA3_LOW] = factor
    return factors.astype(np.float32)


def _shortest(value: float) -> float:
    """A float32 as the shortest decimal that gives it back: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokenizer_metadata(fields: dict[str, Any]) -> dict[str, object]:
    """GGUF's tokenizer keys under the names that .apr files have."""
    names = {"tokens": "vocabulary", "pre": "pre_type"}
    prefix = "tokenizer.ggml."
    found: dict[str, object] = {
        f"tokenizer.{names.get(key[len(prefix) :], key[len(prefix) :])}": value
        for key, value in fields.items()
        if key.startswith(prefix)
    }
    vocabulary = found.get("tokenizer.vocabulary")
    if isinstance(vocabulary, list):
        found["tokenizer.vocab_size"] = len(vocabulary)
    if "tokenizer.chat_template" in fields:
        found["chat_template"] = fields["tokenizer.chat_template"]
    return found
