"""The README is for five minutes: its size, its sentences, its tables, and what it links to."""

import re
from pathlib import Path

import pytest

from secateur.cli.commands import COMMANDS
from secateur.config import PlanConfig, PruneConfig
from secateur.config.options import known_options

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^(\||    |#).*$", "", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), flags=re.MULTILINE)


def sentences(prose: str) -> list[str]:
    """Sentences of paragraphs and of the items of lists, each with its markup."""
    blocks = re.split(r"\n\s*\n|\n- ", prose)
    return [s for block in blocks for s in re.split(r"(?<=[.:?!])\s+", " ".join(block.split())) if s]


def test_it_is_read_in_five_minutes() -> None:
    assert 8_000 <= len(TEXT.encode()) <= 12 * 1024


def test_sentences_are_short() -> None:
    counted = {s: len(re.sub(r"\]\([^)]*\)", "]", s).split()) for s in sentences(PROSE)}
    assert len(counted) > 30
    assert {s: words for s, words in counted.items() if words > 40} == {}


def test_tables_are_short() -> None:
    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", TEXT, flags=re.MULTILINE)]
    assert len(tables) >= 3
    assert [len(table) - 2 for table in tables if len(table) - 2 > 12] == []


def test_links_lead_somewhere() -> None:
    """A relative link to a file that is there, and to a heading that it has."""
    found = re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", TEXT)
    assert len(found) > 20
    for path, anchor in found:
        target = ROOT / (path or "README.md")
        assert target.is_file() or (target.is_dir() and not anchor), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = ["#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, (path, anchor)


@pytest.mark.parametrize("line", re.findall(r"^secateur .*$", TEXT, flags=re.MULTILINE))
def test_commands_have_the_flags_that_it_gives_them(line: str) -> None:
    command, *rest = line.split("#")[0].split()[1:]
    classes = COMMANDS[command].options
    known = {"--" + name.replace("_", "-") for cls in classes for name in known_options(cls)}
    assert {word for word in rest if word.startswith("--")} <= known | {"--recipe"}


def test_flags_in_the_text_are_there() -> None:
    known = {"--" + name.replace("_", "-") for cls in (PruneConfig, PlanConfig) for name in known_options(cls)}
    assert set(re.findall(r"`(--[a-z-]+)", TEXT)) <= known | {"--recipe"}
