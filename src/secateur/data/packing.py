"""A run of tokens as the pieces that a model is given, each of which begins as it should."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..system.errors import InputError
from .encoding import around, start_of

PLAIN_SEGMENTS = "each segment begins with its own first token"
IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Piece:
    """One training sequence; the last one may be shorter than the others."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    """Beginning at 0 in each document; empty where documents are joined."""
    n_tokens: int
    """Of the data."""


def packed(ids: list[int], labels: list[int], starts: list[int], start: list[int], seq_len: int) -> Iterator[Piece]:
    """Pieces of `seq_len` tokens that all begin with `start`, which has no label where it is put there.

    Args:
        starts: where each token's document begins, or empty. A document that goes on in a piece goes on behind its
            `start`.
    """
    for first, last, put in started(ids, start, seq_len):
        more = start if put else []
        positions = [*range(len(more))] if starts else []
        for at in range(first, last) if starts else ():
            positions.append(at - starts[at] if starts[at] > first else at - first + len(more))
        yield Piece([*more, *ids[first:last]], [*[IGNORED] * len(more), *labels[first:last]], positions, last - first)


def segmented(ids: list[int], tokenizer: Any, seq_len: int, bos: str) -> tuple[list[int], str, int]:
    """A run of tokens that, cut into segments of `seq_len`, begins each as `bos` says; that in words; how many tokens
    of each are not scored.

    A model that was trained with a token before every text works badly without it. It takes one place of each segment
    and is not scored, so as many tokens of a segment are scored as without.
    """
    start, before = start_of(tokenizer, bos), around(tokenizer)[0]
    if before and ids[: len(before)] == before:
        ids = ids[len(before) :]
    if not start:
        return ids, PLAIN_SEGMENTS, 1
    found: list[int] = []
    for first, last, put in started(ids, start, seq_len):
        found += [*(start if put else []), *ids[first:last]]
    return found, f"each segment begins with {''.join(tokenizer.convert_ids_to_tokens(start))}", len(start)


def scored_words(measured: Mapping[str, Any]) -> str:
    """What the scored tokens of a perplexity were in, from its record."""
    if measured.get("pairs"):
        return f"of {measured['segments']:,} targets, given their sources"
    return f"in segments of {measured['seq_len']}"


def started(ids: list[int], start: list[int], length: int) -> Iterator[tuple[int, int, bool]]:
    """Cut a run of tokens into pieces of `length` that all begin with `start`.

    Yields for each, the last and shorter one too: first and last index (exclusive) in `ids`, and whether `start` is to
    be put before it. It is not where it stands there already.
    """
    if len(start) >= length:
        raise InputError(f"segments of {length} tokens have no room beside the {len(start)} that each begins with.")
    first = 0
    while first < len(ids):
        put = bool(start) and ids[first : first + len(start)] != start
        last = min(len(ids), first + length - (len(start) if put else 0))
        yield first, last, put
        first = last
