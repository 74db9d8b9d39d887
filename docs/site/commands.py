"""Every command with its options, from what `secateur COMMAND --help-all` prints."""

import contextlib
import io
import os
import re
from dataclasses import fields
from importlib import import_module

from secateur.cli import main


def help_of(*command: str) -> str:
    """What `--help-all` prints, one line an option."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "4000"
    try:
        return printed_by(*command, "--help-all")
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def printed_by(*command: str) -> str:
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(command)
    return out.getvalue()


def commands() -> dict[str, str]:
    """Command -> what it says of itself."""
    found = re.findall(r"^    (\w[\w-]*)\s+(\S.*)$", help_of(), re.MULTILINE)
    assert found, "secateur --help lists commands"
    return dict(found)


def options(text: str) -> dict[str, list[tuple[str, str]]]:
    """Group -> (flags, what they do), from a command's help."""
    groups: dict[str, list[tuple[str, str]]] = {}
    group, flags = "", ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\w[\w ]*):", line):
            group = heading[1]
        elif (option := re.fullmatch(r"  (\S.*?)(?:  +(\S.*))?", line)) and group:
            flags, words = option.groups()
            if words:
                groups.setdefault(group, []).append((flags, words))
        elif group and flags and re.match(r"    +\S", line):
            groups.setdefault(group, []).append((flags, line.strip()))
    return groups


def cell(words: str) -> str:
    return words.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def section(command: str, summary: str) -> str:
    """A command's part of the page."""
    text = help_of(command)
    example = re.search(r"^example: (.*)$", text, re.MULTILINE)
    lines = [f"## {command} {{ #{command} }}", "", f"{summary[0].upper()}{summary[1:]}.", ""]
    if example and example[1].strip() != f"secateur {command}":
        lines += ["```bash", example[1].strip(), "```", ""]
    groups = options(text)
    if "options" in groups:  # what argparse lists first, though it matters least
        groups["any command"] = groups.pop("options")
    for group, rows in groups.items():
        rows = [row for row in rows if not row[0].startswith("-h")]
        if rows:
            lines += [f"### {group} {{ #{command}-{group.replace(' ', '-')} }}", "", "| option | what |", "|---|---|"]
            lines += [f"| `` {flags.replace('|', chr(92) + '|')} `` | {cell(words)} |" for flags, words in rows] + [""]
    return "\n".join(lines)


def page() -> str:
    """All commands."""
    return "\n".join(section(command, summary) for command, summary in commands().items())


def fields_of(place: str) -> str:
    """A table of a dataclass's options, `package.module:Class` in secateur: name, default, what it says as a flag."""
    module, _, name = place.partition(":")
    lines = ["| option | default | what |", "|---|---|---|"]
    for field in fields(getattr(import_module(f"secateur.{module}"), name)):
        words = field.metadata["help"]
        if field.metadata["choices"] and not all(choice in words for choice in field.metadata["choices"]):
            words += f" (one of {', '.join(field.metadata['choices'])})"
        lines.append(f"| `{field.name}` | `{field.default!r}` | {cell(words)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
