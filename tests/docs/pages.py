"""The pages of docs/ as the tests read them: blocks of code with their marks, links, anchors, sentences."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LANGUAGES = ("bash", "python")
"""Of the blocks that must say whether they are run."""
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[a-z]+)(?:: (?P<words>[^\n]*?))? -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment above it: `run`, `skip: why`, or `file: name`, which later blocks read."""

    line: int
    language: str
    code: str
    mark: str
    words: str


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    return [
        Block(
            text.count("\n", 0, found.start("code")),
            found["language"],
            found["code"],
            found["mark"] or "",
            found["words"] or "",
        )
        for found in FENCE.finditer(text)
    ]


def commands(code: str) -> Iterator[str]:
    """The lines of a shell block, continued ones joined."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def prose(text: str) -> Iterator[str]:
    """Paragraphs, list items and cells of tables, without code blocks and comments."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("\n", text), flags=re.S)
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|>#]|\d+\.)\s)", text):
        if part.lstrip().startswith("|"):
            yield from (cell for cell in re.split(r"(?<!\\)\|", part) if cell.strip())
        elif part.strip() and not part.startswith("#"):
            yield " ".join(part.split())


def sentences(text: str) -> Iterator[str]:
    for part in prose(text):
        yield from re.split(r"(?<=[.!?:])(?:\*\*)?\s+(?=[^a-z])", part)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M):
        plain = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        found.add(
            slug if slug not in found else next(f"{slug}_{n}" for n in range(1, 99) if f"{slug}_{n}" not in found)
        )
    return found


def links(text: str) -> Iterator[tuple[str, str]]:
    """(target, anchor) of the links that stay within the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor
