"""The commands that print what there is, without a model: recipes, families, criteria."""

from ..config.files.listings import FamiliesConfig
from ..config.files.recipes import RecipesConfig, recipes_text
from ..config.formats import FORMATS
from ..system.progress import STARTING, phase
from ..system.terminal.tables import Table, Words, tell


def recipes(config: RecipesConfig) -> int:
    tell(recipes_text(config.names))
    return 0


def families(config: FamiliesConfig) -> int:
    with phase(STARTING):
        from ..architecture.families import FAMILIES, REFUSED

    rows = []
    for name, family in sorted(FAMILIES.items()):
        alike: dict[tuple[str, ...], list[str]] = {}
        for kind, formats in family.formats.items():
            alike.setdefault(formats, []).append(kind)
        notes = ["; ".join(family.notes), *[""] * len(alike)]
        rows += [
            (name, ", ".join(kinds), ", ".join(formats), note)
            for (formats, kinds), note in zip(alike.items(), notes, strict=False)
        ]
    readers = [(name, format.reader) for name, format in FORMATS.items() if format.of_pruned]
    more: tuple[str | Table, ...] = ()
    if config.all:
        from ..architecture.nested import whole_types

        refused = sorted((name, why) for name, why in REFUSED.items() if name not in FAMILIES)
        more = (
            "",
            Table(("holds a text model, which is taken out", "family"), list(whole_types().items()), align="ll"),
            "",
            Table(("refused", "why"), refused, align="ll"),
        )
    tell(
        Words(
            Table(("family", "units", "result without some of them", "to know"), rows, align="llll"),
            "",
            Table(("format", "read by"), readers, align="ll"),
            *more,
        )
    )
    return 0


def criteria(_: None) -> int:
    with phase(STARTING):
        from ..criteria import CRITERIA

    rows = [
        (name, criterion.summary, ", ".join(sorted(criterion.needs)) or "nothing")
        for name, criterion in CRITERIA.items()
    ]
    tell(Words(Table(("criterion", "scores by", "needs"), rows, align="lll")))
    return 0
