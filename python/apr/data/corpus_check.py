"""Is a corpus text at all? What the distribution of its ids says before a step is spent on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apr.data.scan import Scan

# Fewer tokens have no distribution worth judging.
MIN_TOKENS = 32
# The most frequent token of text and code (a comma, a line break, a space) has 3 to 15 % of it, with a
# vocabulary of single bytes up to 30 %. A corpus that was 99.99 % <unk> once trained to a loss of 0.0008.
MAX_SHARE = 0.5
# Text in single bytes has 4 to 5 bits a token, in a vocabulary of thousands 8 to 11.
MIN_ENTROPY_BITS = 2.0
# A byte-level vocabulary has no unknown text; of another kind, more than this was made for other text.
MAX_UNKNOWN_SHARE = 0.01
# Documents of fewer than four tokens on the average are none.
MAX_EOS_SHARE = 0.25
# Text in single bytes has some thirty different ones before its first page is over.
MIN_DISTINCT_IDS, MIN_TOKENS_FOR_DISTINCT = 16, 1024
# Up to four copies of a text teach nearly as much as new text (https://arxiv.org/abs/2305.16264): they are
# three quarters repeats. More than five copies of everything are a fault of its making. Fewer windows of 64
# ids than these have no share worth judging.
MAX_REPEATED_SHARE, MIN_WINDOWS = 0.8, 100


def corpus_problems(scan: Scan, eos_id: int | None, unk_id: int | None) -> list[str]:
    """What is wrong with a corpus, a line each; empty for one that can be text.

    Args:
        scan: of all its shards: more tokens with one id than `MAX_SHARE`, less entropy than
            `MIN_ENTROPY_BITS`, fewer different ids than `MIN_DISTINCT_IDS` and more repeated windows than
            `MAX_REPEATED_SHARE` are wrong.
        eos_id: the id that ends a text, or None where it is not known; at most `MAX_EOS_SHARE` of all.
        unk_id: the id that stands for unknown text, or None where there is none; at most
            `MAX_UNKNOWN_SHARE` of all.
    """
    if not scan.most_frequent:
        return ["no id is one that a vocabulary has: shards hold little-endian ids of 32 bits"]
    if scan.total_tokens < MIN_TOKENS:
        return []
    found = []
    token, count = scan.most_frequent[0]
    share = count / scan.total_tokens
    if share > MAX_SHARE:
        kind = " (unknown text)" if token == unk_id else " (end of text)" if token == eos_id else ""
        found.append(f"id {token}{kind} is {share:.2%} of all tokens, in text none is over {MAX_SHARE:.0%}")
    if scan.entropy_bits < MIN_ENTROPY_BITS:
        found.append(f"{scan.entropy_bits:.3f} bits a token, text has over {MIN_ENTROPY_BITS:g}")
    if scan.distinct_ids < MIN_DISTINCT_IDS and scan.total_tokens >= MIN_TOKENS_FOR_DISTINCT:
        found.append(f"{scan.distinct_ids} different ids, text has {MIN_DISTINCT_IDS} at least")
    if scan.repeated_share > MAX_REPEATED_SHARE and scan.windows >= MIN_WINDOWS:
        found.append(
            f"{scan.repeated_share:.0%} of the windows of 64 ids are repeats, over {MAX_REPEATED_SHARE:.0%}: "
            "the same text again and again"
        )
    for what, special, limit in (
        ("unknown text", unk_id, MAX_UNKNOWN_SHARE),
        ("ends of text", eos_id, MAX_EOS_SHARE),
    ):
        # Where it is the most frequent id of all, that has been said.
        if limit < scan.share(special) and not (special == token and share > MAX_SHARE):
            found.append(f"{what} (id {special}): {scan.share(special):.2%} of all tokens, over {limit:.0%}")
    return found
