"""Whether ids can be text at all, judged by their distribution before a training step is spent on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from apr.layout import remedy
from apr.plurals import counted

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
# Of ids drawn at random, each as often as the others, the entropy is below what is expected of them by 0.02
# bits at most from 1,024 tokens on. That of text is at least 0.4 bits lower whatever the vocabulary, that of
# amino acids 0.14.
MIN_BITS_BELOW_RANDOM, MIN_TOKENS_FOR_RANDOM = 0.1, 1024
# From this many tokens for each id on, the expected entropy has a simple form.
_MANY = 100


def corpus_problems(scan: Scan, eos_id: int | None, unk_id: int | None) -> list[str]:
    """Return why a corpus cannot be text, one line per reason; an empty list if it can be.

    Args:
        scan: of all shards. `MAX_SHARE`, `MIN_ENTROPY_BITS`, `MIN_DISTINCT_IDS`, `MAX_REPEATED_SHARE` and
            `MIN_BITS_BELOW_RANDOM` are its limits. A shard of another layout is the only thing reported.
        eos_id: the end-of-text id, at most `MAX_EOS_SHARE` of all tokens; None if it is not known.
        unk_id: the id of unknown text, at most `MAX_UNKNOWN_SHARE` of all tokens; None if there is none.
    """
    foreign = [shard for shard in scan.shards if shard.layout is not None]
    if foreign:
        # Whatever else is odd follows from this.
        others = f" (and {counted(len(foreign) - 1, 'other shard')})" if len(foreign) > 1 else ""
        return [
            f"{foreign[0].name}{others}: not little-endian 32-bit ids, but {foreign[0].layout}; "
            f"{remedy(str(foreign[0].layout), 'DIR')}"
        ]
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
        problems.append(
            f"only {counted(scan.distinct_ids, 'different id')}; text has at least {MIN_DISTINCT_IDS}"
        )
    if scan.repeated_share > MAX_REPEATED_SHARE and scan.windows >= MIN_WINDOWS:
        problems.append(
            f"{scan.repeated_share:.0%} of the 64-id windows are repeats, above the limit of "
            f"{MAX_REPEATED_SHARE:.0%}; the same text occurs many times"
        )
    below_random = _bits_below_random(scan)
    if below_random is not None and below_random < MIN_BITS_BELOW_RANDOM:
        problems.append(
            f"the entropy is {scan.entropy_bits:.2f} bits per token, as of {scan.distinct_ids:,} ids drawn "
            "at random; in text, some ids are far more frequent than others"
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


def _bits_below_random(scan: Scan) -> float | None:
    """Return by how many bits the entropy is below that of as many ids drawn at random; None if unknown.

    A sample has less entropy than the distribution that it is drawn from, and fewer different ids. So the
    comparison is with random ids of a vocabulary in which the same number of different ids is expected of the
    same number of tokens. The most frequent id is left out: ends of text or padding may be mixed in.
    """
    frequent = scan.most_frequent[0][1]
    tokens, distinct = scan.total_tokens - frequent, scan.distinct_ids - 1
    if tokens < MIN_TOKENS_FOR_RANDOM or distinct < MIN_DISTINCT_IDS:
        return None
    q = frequent / scan.total_tokens
    # The entropy of all is that of whether a token is the frequent one, and of the others for their share.
    of_choice = -(q * math.log2(q) + (1 - q) * math.log2(1 - q))
    entropy = (scan.entropy_bits - of_choice) / (1 - q)
    return _random_entropy(tokens, _vocabulary_of(tokens, distinct)) - entropy


def _vocabulary_of(tokens: int, distinct: int) -> float:
    """Return the number of equally frequent ids of which so many occur among so many tokens."""
    low, high = float(distinct), distinct * 1e9
    # The expected number is K (1 - exp(-N / K)), which grows with K: bisection of its logarithm.
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        if -middle * math.expm1(-tokens / middle) < distinct:
            low = middle
        else:
            high = middle
    return low


def _random_entropy(tokens: int, vocabulary: float) -> float:
    """Return the entropy in bits that is expected of tokens drawn at random from equally frequent ids."""
    mean = tokens / vocabulary
    if mean > _MANY:
        # Miller's correction (1955).
        return math.log2(vocabulary) - (vocabulary - 1) / (2 * tokens * math.log(2))
    # The number of times that an id occurs has Poisson's distribution, and an id that occurs n times
    # contributes n log2(n): the entropy is log2(N) less their sum over N.
    term, contribution = math.exp(-mean), 0.0
    for n in range(1, 4 * _MANY):
        term *= mean / n
        contribution += term * n * math.log2(n)
    return math.log2(tokens) - contribution / mean
