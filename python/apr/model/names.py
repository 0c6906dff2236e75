"""Names and shapes of a decoder's parameters, known without building the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.errors import WeightsError
from apr.model.families import FAMILIES

if TYPE_CHECKING:
    from apr.model.config import ModelConfig

# Tensors of a checkpoint whose names start like this are the state of a training run, not of the model.
TRAINING_PREFIX = "__training__."
# The output projection, in transformers' names and in GGUF's.
HEADS = ("lm_head.weight", "output.weight")
# The input embedding, likewise.
EMBEDDINGS = ("model.embed_tokens.weight", "token_embd.weight")
EMBEDDING, HEAD = EMBEDDINGS[0], HEADS[0]


def check_layers(path: str, config: ModelConfig, tensors: int) -> None:
    """Refuse more layers than the file has tensors.

    Call it before anything is built for each layer: forged metadata may ask for a billion of them.

    Raises:
        WeightsError: the file has fewer tensors than layers.
    """
    if config.num_layers > tensors:
        raise WeightsError(
            f"{path}: num_layers is {config.num_layers:,}, but the file has {tensors} tensors", path=path
        )


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its name in transformers. A tied head has no entry."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}"
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (rows, hidden)
            if config.qkv_bias:
                shapes[f"{at}.self_attn.{name}_proj.bias"] = (rows,)
            if config.qk_norm is not None and name != "v":
                shapes[f"{at}.self_attn.{name}_norm.weight"] = (
                    config.head_dim if config.qk_norm == "head" else rows,
                )
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, queries)
        if config.o_bias:
            shapes[f"{at}.self_attn.o_proj.bias"] = (hidden,)
        shapes[f"{at}.mlp.gate_proj.weight"] = shapes[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        for norm in config.norms:
            if norm is not None:
                shapes[f"{at}.{norm}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def fused_parts(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Return the tensors that transformers stores for several parameters of the decoder.

    Returns:
        For each such tensor, the names of the parameters and their numbers of rows, in the order of the rows.
    """
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    rows = {
        "qkv_proj": {"q_proj": queries, "k_proj": keys, "v_proj": keys},
        "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size},
    }
    modules = {"qkv_proj": "self_attn", "gate_up_proj": "mlp"}
    return {
        f"model.layers.{layer}.{modules[name]}.{name}.weight": {
            f"model.layers.{layer}.{modules[name]}.{part}.weight": count for part, count in rows[name].items()
        }
        for layer in range(config.num_layers)
        for name in FAMILIES[config.family].fused
    }
