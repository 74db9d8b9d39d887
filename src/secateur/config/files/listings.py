"""What the commands that list what there is can be told. Imports no torch."""

from dataclasses import dataclass

from ..options import option


@dataclass(frozen=True, kw_only=True)
class FamiliesConfig:
    """What `secateur families` can be told."""

    all: bool = option(
        "list the types that hold a text model, too, and those that are refused, and why", False, group="options"
    )

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        return []
