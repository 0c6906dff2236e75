"""Text of ids that arrive one by one: the same as of all at once, and an end at stop texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.data.text_stream import TextStream


def decode(ids):
    """Decode bytes, as a byte-level tokenizer with 256 tokens does."""
    return bytes(ids).decode(errors="replace")


@given(text=st.text(max_size=30), prompt=st.text(max_size=12))
def test_pieces_add_up_to_the_text(text, prompt):
    stream = TextStream(decode, list(prompt.encode()))
    pieces = [stream.push(byte) for byte in text.encode()] + [stream.finish()]
    assert "".join(pieces) == stream.text == text
    assert not stream.stopped


@given(text=st.text("abc", max_size=30), stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_text(text, stop):
    stream = TextStream(decode, (), stop)
    shown = ""
    for byte in text.encode():
        shown += stream.push(byte)
        assert not any(word in shown for word in stop)
        if stream.stopped:
            break
    shown += stream.finish()
    # The stop text that is complete first decides; of several that end there, the one that begins first.
    ends = [text.find(word) + len(word) for word in stop if word in text]
    assert stream.stopped == bool(ends)
    expected = text
    if ends:
        seen = text[: min(ends)]
        expected = seen[: min(seen.find(word) for word in stop if word in seen)]
    assert shown == stream.text == expected


def test_half_a_character_waits_for_its_other_half():
    stream = TextStream(decode)
    first, second = "é".encode()
    assert stream.push(first) == ""
    assert stream.push(second) == "é"


def test_a_character_that_never_becomes_whole_is_shown_at_the_end():
    stream = TextStream(decode)
    assert stream.push("é".encode()[0]) == ""
    assert stream.finish() == "\ufffd"


def test_a_space_that_depends_on_what_comes_before_is_kept():
    def words(ids):  # as SentencePiece decodes: no space before the first word
        return " ".join("word" for _ in ids)

    stream = TextStream(words, [0])
    assert stream.push(0) == " word"
    assert TextStream(words).push(0) == "word"


@pytest.mark.parametrize("invalid", [b"\xff\xffa", b"\x80b"])
def test_bytes_that_are_no_text_do_not_swallow_what_follows(invalid):
    stream = TextStream(decode)
    pieces = [stream.push(byte) for byte in invalid] + [stream.finish()]
    assert "".join(pieces) == decode(invalid)
