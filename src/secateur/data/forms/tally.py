"""What was left out of the data on its way to the model, counted: rows, turns, keys, files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

DROPPED, UNLABELLED, UNUSED = "dropped_rows", "unlabelled_turns", "unused_keys"
UNWRITTEN, ENDINGS, FILES = "left_out_by_template", "endings", "files_not_read"
SPLITS, NO_SPLIT, UNENDED, CUT = "splits", "files_in_no_split", "texts_without_end", "cut_rows"
WORDS = {
    DROPPED: "rows dropped: {}",
    UNLABELLED: "turns not labelled: {}",
    UNUSED: "keys that are not used: {}",
    UNWRITTEN: "the tokenizer's chat template does not write: {}",
    ENDINGS: "the tokenizer's chat template writes nothing at the end of a reply: {}",
    UNENDED: "nothing is put at the end of a text: {}",
    CUT: "rows cut: {}",
    FILES: "not read, no text or rows by their names: {}",
    SPLITS: "the split that is read: {}",
    NO_SPLIT: "not read, in no split that `datasets` finds there: {}",
}
NAMED = 12
"""Names in one sentence; the record has them all."""
UNCOUNTED = (FILES, SPLITS, NO_SPLIT)


@dataclass
class Tally:
    """Counts by kind and name, with the first place of each."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    first: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, kind: str, name: str, place: str, count: int = 1) -> None:
        names = self.counts.setdefault(kind, {})
        names[name] = names.get(name, 0) + count
        self.first.setdefault((kind, name), place)

    def count(self, kind: str) -> int:
        return sum(self.counts.get(kind, {}).values())

    def merge(self, others: Iterable["Tally"]) -> "Tally":
        for other in others:
            for kind, names in other.counts.items():
                for name, count in names.items():
                    self.add(kind, name, other.first[kind, name], count)
        return self

    def notes(self) -> list[str]:
        """A sentence for each kind."""
        return sentences(self.record(), "data", self.first)

    def record(self) -> dict[str, dict[str, int]]:
        """Kind -> name -> count; what was counted of, only."""
        return {kind: dict(self.counts[kind]) for kind in WORDS if kind in self.counts}


def sentences(record: Mapping[str, Mapping[str, int]], what: str, first: Mapping[tuple[str, str], str]) -> list[str]:
    """A sentence for each kind of `Tally.record`, with the first place of each name as far as `first` has it."""
    found = []
    for kind, names in record.items():
        shown = list(names)[:NAMED]
        words = shown if kind in UNCOUNTED else [_counted(name, names[name], first.get((kind, name))) for name in shown]
        rest = len(names) - len(shown)
        listed = ", ".join(words) + (f" and {rest} more" if rest else "")
        found.append(f"{what}: {WORDS[kind].format(listed)}.")
    return found


def _counted(name: str, count: int, place: str | None) -> str:
    return f"{name} ({count:,}" + (f", the first at {place})" if place else ")")
