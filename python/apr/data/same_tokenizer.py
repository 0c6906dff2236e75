"""Whether a model, shards and a tokenizer belong together, compared wherever two of them meet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.data.identity import MANIFEST_KEY, MODEL_KEY, difference, recorded_identity
from apr.data.tokenizers import load_tokenizer, tokenizer_from_metadata
from apr.errors import AprError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from os import PathLike

    from apr.data.loaded_tokenizer import LoadedTokenizer


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known about the tokenizer of a model file, of a shard directory, or of one that was given."""

    label: str
    """Its name in messages."""
    identity: str | None
    """None if it is not known."""
    sha256: str | None
    """SHA-256 as `LoadedTokenizer` defines it: equal for the same files."""
    special_ids: tuple[int | None, int | None] | None = None
    """The ids that end a text and that stand for unknown text; None if the tokenizer itself was not read."""

    @property
    def is_known(self) -> bool:
        """Whether it can be compared with another one."""
        return self.identity is not None


def facts_of_tokenizer(tokenizer: LoadedTokenizer) -> TokenizerFacts:
    """Return the facts of a tokenizer that was given."""
    return TokenizerFacts(str(tokenizer.source), tokenizer.identity, tokenizer.sha256)


def facts_of_model(path: str | PathLike[str], metadata: Mapping[str, Any]) -> TokenizerFacts:
    """Return the facts of a model file: of the tokenizer in it, or else of the one that it records."""
    loaded = _loaded_from_metadata(path, metadata)
    if loaded is not None:
        return TokenizerFacts(str(path), loaded.identity, loaded.sha256, (loaded.eos_id, loaded.unk_id))
    return TokenizerFacts(str(path), recorded_identity(metadata.get(MODEL_KEY)), None)


def facts_of_shards(path: str | PathLike[str], manifest: Mapping[str, Any]) -> TokenizerFacts:
    """Return the facts of a shard directory.

    A manifest of an earlier version, or of another producer, records a path and a SHA-256: if the tokenizer
    is still there and unchanged, it is the one.
    """
    directory, sha256 = manifest.get("tokenizer_dir"), manifest.get("tokenizer_sha256")
    label = f"{path} (encoded with {directory})" if isinstance(directory, str) else str(path)
    identity = recorded_identity(manifest.get(MANIFEST_KEY))
    if identity is None and isinstance(directory, str) and isinstance(sha256, str):
        try:
            loaded = load_tokenizer(Path(directory))
        except (AprError, RefusedError, OSError, ModuleNotFoundError):
            loaded = None
        if loaded is not None and loaded.sha256 == sha256:
            identity = loaded.identity
    return TokenizerFacts(label, identity, sha256 if isinstance(sha256, str) else None)


def check_same_tokenizer(first: TokenizerFacts, second: TokenizerFacts) -> None:
    """Check that two things belong to the same tokenizer, as far as both are known.

    Raises:
        RefusedError: they do not; names both.
    """
    if first.identity is None or second.identity is None:
        return
    if first.sha256 is not None and first.sha256 == second.sha256:
        return
    differs = difference(first.identity, second.identity)
    if differs is not None:
        raise RefusedError(
            f"{second.label}: another tokenizer than that of {first.label}: {differs}; "
            "use the same one for both"
        )


def unknown_note(facts: Sequence[TokenizerFacts]) -> str | None:
    """Return a line about tokenizers that could not be compared; None if all could, or there is only one."""
    unknown = [one.label for one in facts if not one.is_known and not _has_equal_files(one, facts)]
    if not unknown or len(facts) == 1:
        return None
    return (
        f"tokenizer: not recorded in {' and '.join(dict.fromkeys(unknown))}, so whether it is the same is "
        "not checked (for shards, apr repair-manifest DIR --tokenizer T records it)"
    )


def _has_equal_files(one: TokenizerFacts, facts: Iterable[TokenizerFacts]) -> bool:
    return one.sha256 is not None and any(other is not one and other.sha256 == one.sha256 for other in facts)


def _loaded_from_metadata(path: str | PathLike[str], metadata: Mapping[str, Any]) -> LoadedTokenizer | None:
    """Return the tokenizer that metadata contain; None if there is none that can be rebuilt here."""
    try:
        return tokenizer_from_metadata(path, metadata)
    except (AprError, RefusedError, OSError, ModuleNotFoundError):
        return None
