"""Names and shapes of a decoder's parameters, known without building the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr.errors import WeightsError

if TYPE_CHECKING:
    from apr.model.config import ModelConfig

# Tensors of a checkpoint whose names start like this are the state of a training run, not of the model.
TRAINING_PREFIX = "__training__."
# The output projection, in transformers' names and in GGUF's.
HEADS = ("lm_head.weight", "output.weight")
EMBEDDING, HEAD = "model.embed_tokens.weight", HEADS[0]


def check_layers(path: str, config: ModelConfig, tensors: int) -> None:
    """Refuse more layers than the file has tensors.

    Call it before anything is built for each layer: forged metadata may ask for a billion of them.

    Raises:
        WeightsError: the file has fewer tensors than layers.
    """
    if config.num_layers > tensors:
        raise WeightsError(f"{path}: num_layers is {config.num_layers:,}, but the file has {tensors} tensors")


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
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, queries)
        if config.attention_bias:
            shapes[f"{at}.self_attn.o_proj.bias"] = (hidden,)
        shapes[f"{at}.mlp.gate_proj.weight"] = shapes[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes
