"""What the site has that no page in docs/ can hold: generated parts, and checks of the result.

- `<!-- generated: commands -->` and `<!-- generated: packages -->` are filled from the code, `<!-- output: COMMAND -->`
  with what the command prints, and `<!-- source: PATH -->` with a file of the repository.
- A folder of records that a page links to becomes a page that lists them.
- A link to a file of the repository that is no part of the site becomes its path.
- A page that would load something from another host fails the build.
"""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import commands
import packages

DOCS = Path(__file__).parents[1]
GENERATED = {
    "commands": commands.page,
    "packages": packages.picture,
    "options of Pruner": partial(commands.fields_of, "config.pruning:PruningOptions"),
    "options of RankPruner": partial(commands.fields_of, "config.ranks:RankOptions"),
}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(https?:)?//|<link\b(?=[^>]*stylesheet)[^>]*https?://"""
)
OUTPUT = re.compile(r"<!-- output: secateur ([a-z -]+) -->")
SOURCE = re.compile(r"<!-- source: (examples/\w+\.py) -->")
SHORT = re.compile(r"<code>([^<\n]{1,32})</code>")
RECORDS = "index.md"


def on_files(files: Files, config: Any) -> Files:
    """Add a list of the records in each folder of docs/results/."""
    for folder in sorted(path for path in (DOCS / "results").iterdir() if path.is_dir()):
        names = sorted(path.name for path in folder.glob("*.json"))
        listed = "\n".join(f"- [{name.removesuffix('.json')}](<{name}>)" for name in names)
        said = f"{len(names)} records of runs, as JSON. [Back to the results](../index.md)."
        text = f"# Records: {folder.name}\n\n{said}\n\n{listed}\n"
        files.append(File.generated(config, f"results/{folder.name}/{RECORDS}", content=text))
    return files


def on_config(config: Any) -> Any:
    """Pages of records are reached from the results, not from the navigation."""
    listed = [f"/results/{path.name}/{RECORDS}" for path in sorted((DOCS / "results").iterdir()) if path.is_dir()]
    import pathspec

    config.not_in_nav = pathspec.gitignore.GitIgnoreSpec.from_lines(listed)
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill generated parts; mend links to folders and to files outside the site."""
    place = (DOCS / page.file.src_uri).parent

    def mended(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = (place / target).resolve()
        if not path.exists():
            return found[0]  # mkdocs says what is wrong with it
        if not path.is_relative_to(DOCS):
            name = path.relative_to(DOCS.parent).as_posix()
            return words if words.strip("`") == name else f"{words} (`{name}`)"
        return f"[{words}]({target.rstrip('/')}/{RECORDS}{anchor})" if path.is_dir() else found[0]

    for name, make in GENERATED.items():
        if f"<!-- generated: {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- generated: {name} -->", make())
    markdown = OUTPUT.sub(lambda found: f"```text\n{commands.printed_by(*found[1].split())}```", markdown)
    markdown = LINK.sub(mended, markdown)  # before any file's own text is on the page
    return SOURCE.sub(lambda found: f"```python\n{(DOCS.parent / found[1]).read_text(encoding='utf-8')}```", markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Short code keeps to one line: a browser would break a flag after its dashes."""
    return SHORT.sub(r'<code class="short">\1</code>', html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that loads from another host."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} would load from another host: {found[0][:200]}")
    return output
