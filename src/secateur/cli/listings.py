"""The commands that print what there is, without a model: recipes, families, criteria."""

from ..config.files.recipes import RecipesConfig, recipes_text
from ..config.formats import FORMATS


def recipes(config: RecipesConfig) -> int:
    print(recipes_text(config.names))
    return 0


def families(_: None) -> int:
    from ..architecture.families import FAMILIES

    for name, family in FAMILIES.items():
        units = "; ".join(f"{kind} ({', '.join(formats)})" for kind, formats in family.formats.items())
        print(f"{name:12} {units}")
        for note in family.notes:
            print(f"{'':12} {note}")
    print("\nkind of unit (formats in which a model without some of them can be written)")
    print("; ".join(f"{name}: {format.reader}" for name, format in FORMATS.items() if format.of_pruned))
    return 0


def criteria(_: None) -> int:
    from ..criteria import CRITERIA

    for name, criterion in CRITERIA.items():
        needs = ", ".join(sorted(criterion.needs)) or "nothing"
        print(f"{name:19} {criterion.summary} (needs {needs})")
    return 0
