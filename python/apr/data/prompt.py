"""A model's own tokenizer for prompts: special tokens count, and a text begins as in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr.container.metadata import HF_CONFIG, HF_GENERATION, HF_TOKENIZER
from apr.data.chat import render_chat
from apr.data.loaded_tokenizer import CHAT_ENDS, LoadedTokenizer
from apr.data.pre_tokenizers import pre_type_named
from apr.data.tokenizers import load_tokenizer, tokenizer_from_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

# Pre-tokenizers whose models expect the token that begins texts.
_BOS_FIRST = frozenset({"llama-bpe", "tekken"})


class PromptTokenizer:
    """Encodes prompts and conversations for a model, and decodes what it generates.

    Args:
        path: the model file.
        metadata: its metadata.
        tokenizer: a tokenizer to use instead of the one in the file: a directory or a tokenizer.json.

    Raises:
        AprError: the file's tokenizer cannot be rebuilt.
        FileNotFoundError: `tokenizer` does not exist.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        metadata: Mapping[str, Any],
        tokenizer: str | PathLike[str] | None = None,
    ) -> None:
        self._path, self._metadata = path, metadata
        self._own = tokenizer is None
        self.loaded: LoadedTokenizer = (
            tokenizer_from_metadata(path, metadata) if tokenizer is None else load_tokenizer(tokenizer)
        )
        # Corpora are encoded with special tokens as plain text. In a prompt they mean what they say.
        self.loaded.tokenizer.encode_special_tokens = False

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, after the token that begins texts if the model expects one."""
        ids = self.loaded.tokenizer.encode(text, add_special_tokens=True).ids
        bos = self.loaded.bos_id
        # A kept tokenizer.json adds the token itself. The keys of GGUF only say that it is wanted.
        if self._own and bos is not None and ids[:1] != [bos] and _adds_bos(self._metadata):
            return [bos, *ids]
        return list(ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the ids of a conversation in the model's chat template, up to the start of its answer.

        Raises:
            RefusedError: the file has no template, or the template refuses the messages.
        """
        text = render_chat(self._path, self._metadata, messages)
        return list(self.loaded.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.loaded.decode(list(ids), skip_special=True)

    def stop_ids(self) -> set[int]:
        """Return the ids that end a text or an answer."""
        stops = metadata_stop_ids(self._metadata)
        if self.loaded.eos_id is not None:
            stops.add(self.loaded.eos_id)
        vocabulary = self.loaded.tokenizer.get_added_tokens_decoder()
        return stops | {id_ for id_, token in vocabulary.items() if token.content in CHAT_ENDS}


def metadata_stop_ids(metadata: Mapping[str, Any]) -> set[int]:
    """Return the ids that end generation according to a model file, which may have no tokenizer."""
    generation, config = metadata.get(HF_GENERATION), metadata.get(HF_CONFIG)
    stated = generation.get("eos_token_id") if isinstance(generation, dict) else None
    if stated is None and isinstance(config, dict):
        stated = config.get("eos_token_id")
    several = stated if isinstance(stated, list) else [stated]
    # The ends of a text, of a turn and of a message, at which llama.cpp stops too.
    ends = (metadata.get(f"tokenizer.{end}_token_id") for end in ("eos", "eot", "eom"))
    return {id_ for id_ in (*several, *ends) if type(id_) is int}


def _adds_bos(metadata: Mapping[str, Any]) -> bool:
    if HF_TOKENIZER in metadata:
        return False
    stated = metadata.get("tokenizer.add_bos_token")
    if stated is not None:
        return stated is True
    # llama.cpp's rule where a file does not say.
    kind = metadata.get("tokenizer.model_type") or metadata.get("tokenizer.model")
    return kind == "llama" or pre_type_named(str(metadata.get("tokenizer.pre_type"))) in _BOS_FIRST
