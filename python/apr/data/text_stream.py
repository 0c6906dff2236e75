"""Text from token ids that arrive one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Tokens of the prompt that the first new ones are decoded after: some decoders write a space before a word
# only if it is not the first.
_CONTEXT_TOKENS = 8
# What decoders write for bytes that are not a whole character.
_INCOMPLETE = "\ufffd"


class TextStream:
    """The text of a growing list of ids. It ends before the first stop text.

    Args:
        decode: returns the text of ids.
        prompt: ids of the prompt; its own text is not returned.
        stop: texts that end the stream.

    Attributes:
        text: all text so far that is certain.
        stopped: whether a stop text was found.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        self._decode, self._stop = decode, stop
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        # The text of the ids up to `_read` is known; those from `_start` on are decoded again with new ones.
        self._start, self._read = 0, len(self._ids)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, id_: int) -> str:
        """Add an id and return the text that became certain."""
        self._ids.append(id_)
        new = self._new_text()
        if new.endswith(_INCOMPLETE):
            return ""  # the next id may complete the character
        self._start, self._read = self._read, len(self._ids)
        return self._release(new, last=False)

    def finish(self) -> str:
        """Return the rest: what may have been the start of a stop text or of a character, and was not."""
        new = self._new_text()
        self._start = self._read = len(self._ids)
        return self._release(new, last=True)

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(known) :]

    def _release(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [at for at in (self._held.find(text) for text in self._stop) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
        else:
            keep = 0 if last else max((_overlap(self._held, text) for text in self._stop), default=0)
            out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a start of `stop`, but not all of it."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
