"""Whether ids can be text at all, judged by their distribution before a training step is spent on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apr.data.scan import Scan

# Fewer tokens have no distribution worth judging.
MIN_TOKENS = 32
# The most frequent token of text and code (a comma, a line break, a space) makes up 3 to 15 %, with a
# vocabulary of single bytes up to 30 %. A corpus that was 99.99 % <unk> once trained to a loss of 0.0008.
MAX_SHARE = 0.5
# Text in single bytes has 4 to 5 bits per token, in a vocabulary of thousands 8 to 11.
MIN_ENTROPY_BITS = 2.0
# A byte-level vocabulary knows all text. If another kind misses more than this, it was made for other text.
MAX_UNKNOWN_SHARE = 0.01
# A quarter of all tokens means documents of fewer than four tokens on average, which are not documents.
MAX_EOS_SHARE = 0.25
# Text in single bytes has some thirty different ids on its first page.
MIN_DISTINCT_IDS, MIN_TOKENS_FOR_DISTINCT = 16, 1024
# Up to four copies of a text teach nearly as much as new text (https://arxiv.org/abs/2305.16264); three
# quarters of them are repeats. More than five copies of everything are a mistake in how the corpus was made.
# Fewer windows of 64 ids than MIN_WINDOWS have no share worth judging.
MAX_REPEATED_SHARE, MIN_WINDOWS = 0.8, 100


def corpus_problems(scan: Scan, eos_id: int | None, unk_id: int | None) -> list[str]:
    """Return why a corpus cannot be text, one line per reason; an empty list if it can be.

    Args:
        scan: of all shards. `MAX_SHARE`, `MIN_ENTROPY_BITS`, `MIN_DISTINCT_IDS` and `MAX_REPEATED_SHARE` are
            its limits.
        eos_id: the end-of-text id, at most `MAX_EOS_SHARE` of all tokens; None if it is not known.
        unk_id: the id of unknown text, at most `MAX_UNKNOWN_SHARE` of all tokens; None if there is none.
    """
    if not scan.most_frequent:
        return ["all ids are too large for a vocabulary; shards must contain little-endian 32-bit ids"]
    if scan.total_tokens < MIN_TOKENS:
        return []
    problems = []
    token, count = scan.most_frequent[0]
    share = count / scan.total_tokens
    dominated = share > MAX_SHARE
    if dominated:
        kind = ""
        if token == unk_id:
            kind = " (unknown text)"
        elif token == eos_id:
            kind = " (end of text)"
        problems.append(
            f"id {token}{kind} makes up {share:.2%} of all tokens; in text, no id exceeds {MAX_SHARE:.0%}"
        )
    if scan.entropy_bits < MIN_ENTROPY_BITS:
        problems.append(
            f"the entropy is {scan.entropy_bits:.3f} bits per token; text has more than {MIN_ENTROPY_BITS:g}"
        )
    if scan.distinct_ids < MIN_DISTINCT_IDS and scan.total_tokens >= MIN_TOKENS_FOR_DISTINCT:
        problems.append(f"only {scan.distinct_ids} different ids; text has at least {MIN_DISTINCT_IDS}")
    if scan.repeated_share > MAX_REPEATED_SHARE and scan.windows >= MIN_WINDOWS:
        problems.append(
            f"{scan.repeated_share:.0%} of the 64-id windows are repeats, above the limit of "
            f"{MAX_REPEATED_SHARE:.0%}; the same text occurs many times"
        )
    for name, special, limit in (
        ("unknown text", unk_id, MAX_UNKNOWN_SHARE),
        ("end of text", eos_id, MAX_EOS_SHARE),
    ):
        # An id that dominates the corpus already has its line.
        if scan.share(special) > limit and not (dominated and special == token):
            problems.append(
                f"{name} (id {special}) makes up {scan.share(special):.2%} of all tokens, above the limit "
                f"of {limit:.0%}"
            )
    return problems
