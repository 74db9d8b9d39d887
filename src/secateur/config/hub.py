"""The options of a result's way to the hub: of `push`, and of the runs that end with it. Imports no torch."""

import re
from dataclasses import dataclass

from .options import Options, choice_faults, flag, option

BASE_HELP = (
    "hub id of the model that the result comes of, for the card (and for an adapter, to load it); default: --model of "
    "the run, where that is a hub id"
)
HUB_PART = r"[A-Za-z0-9_][\w.-]{0,95}"


def hub_name_faults(name: str, given: str) -> list[str]:
    """A fault where a name cannot be one of the hub's.

    Args:
        given: the option, or the argument, that it was given with.
    """
    fits = re.fullmatch(rf"({HUB_PART}/)?{HUB_PART}", name, re.ASCII)
    if fits and not re.search(r"--|\.\.|\.git$|[.-]$|[.-]/", name):
        return []
    return [
        f"{given} {name!r}: a name on the hub is NAME or OWNER/NAME, of letters, digits, '-', '_' and '.', with no "
        "'--' or '..' in it and none of '-', '.' and '.git' at its end: choose another."
    ]


@dataclass(frozen=True, kw_only=True)
class HubOptions(Options):
    """Where on the hub the result of a run goes, too."""

    push_to_hub: str | None = option(
        "also put the result there, as OWNER/NAME or NAME; token, right and name are checked before the run",
        None,
        group="hub",
    )
    private: bool = option("with --push-to-hub: make the repository private", False, group="hub")
    base_model: str | None = option(BASE_HELP, None, group="hub")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        if self.push_to_hub is None:
            return [
                f"{flag(name)} is said of a result on the hub: add --push-to-hub, or leave it out."
                for name in ("private", "base_model")
                if getattr(self, name)
            ]
        found = hub_name_faults(self.push_to_hub, "--push-to-hub")
        return found + (hub_name_faults(self.base_model, "--base-model") if self.base_model else [])


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Everything that `secateur push` can be told."""

    folder: str = option(
        "what to upload: a result's folder, or a GGUF file", group="hub", metavar="FOLDER", positional=True
    )
    name: str = option("where to: OWNER/NAME, or NAME", group="hub", metavar="NAME", positional=True)
    private: bool = option("make the repository private", False, group="hub")
    base_model: str | None = option(BASE_HELP, None, group="hub")
    overwrite: bool = option("replace what the repository has by this folder's files", False, group="hub")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = choice_faults(self) + hub_name_faults(self.name, "NAME")
        return found + (hub_name_faults(self.base_model, "--base-model") if self.base_model else [])
