"""The pages of docs/: marked blocks, flags that exist, links that lead somewhere, a navigation, sentences to read."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator

import pytest
import yaml

import secateur
from tests.docs.pages import DOCS, LANGUAGES, PAGES, ROOT, anchors, blocks, commands, links, sentences, text_of

sys.path.insert(0, str(DOCS / "site"))

import commands as site_commands
import packages as site_packages

COMMANDS = {name: site_commands.help_of(name) for name in site_commands.commands()}
FLAGS = {name: set(re.findall(r"--[a-z][\w-]*", text)) for name, text in COMMANDS.items()}
OTHERS = {"--help-all", "--nproc-per-node", "--multi_gpu", "--num_processes", "--help", "--version"}
"""Of programs that the pages start secateur with."""
WORDS = 60
GUIDES = [page for page in PAGES if not page.startswith("results/") and page != "log.md"]
GUIDES_WORDS = 45


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_whether_it_is_run(page) -> None:
    for block in blocks(text_of(page)):
        where = f"docs/{page}, line {block.line}"
        assert block.language, f"{where}: name the block's language (text, where it is neither shell nor Python)"
        assert block.language not in ("sh", "shell", "console"), f"{where}: say bash"
        if block.language in LANGUAGES:
            assert block.mark in ("run", "skip"), f"{where}: put <!-- run --> or <!-- skip: why --> above it"
            assert block.mark == "run" or block.words, f"{where}: say why it is not run"


def shown() -> Iterator[tuple[str, str, list[str]]]:
    """(page, command, its words) of every command in a shell block, run or not."""
    for page in PAGES:
        for block in blocks(text_of(page)):
            for line in commands(block.code) if block.language == "bash" else ():
                if found := re.search(r"\bsecateur ((?:[a-z]+) .*)$", line):
                    words = shlex.split(found[1], comments=True)
                    yield page, words[0], words[1:]


def test_commands_and_flags_that_are_shown_exist() -> None:
    found = [*shown()]
    assert len(found) > 25
    for page, command, words in found:
        assert command in COMMANDS, f"docs/{page}: secateur {command}"
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= FLAGS[command], f"docs/{page}: secateur {command} has no {given - FLAGS[command]}"


@pytest.mark.parametrize("page", GUIDES)
def test_flags_that_a_sentence_names_exist(page) -> None:
    known = set.union(*FLAGS.values()) | OTHERS
    named = {flag for code in re.findall(r"`(--[^`]+)`", text_of(page)) for flag in re.findall(r"--[a-z][\w-]*", code)}
    assert named <= known, f"docs/{page}: no command has {named - known}"


def in_navigation(entries: list) -> Iterator[str]:
    for entry in entries:
        value = entry if isinstance(entry, str) else next(iter(entry.values()))
        yield from [value] if isinstance(value, str) else in_navigation(value)


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(in_navigation(site["nav"])) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page) -> None:
    for path, anchor in links(text_of(page)):
        target = (DOCS / page).parent / path if path else DOCS / page
        assert target.exists(), f"docs/{page}: {path}"
        if anchor:
            known = anchors(target.read_text(encoding="utf-8"))
            known |= set(COMMANDS) if target.name == "commands.md" else set()
            assert anchor in known, f"docs/{page}: {path}#{anchor} is none of {sorted(known)}"


@pytest.mark.parametrize("page", PAGES)
def test_sentences_can_be_read(page) -> None:
    most = GUIDES_WORDS if page in GUIDES else WORDS
    long = [sentence for sentence in sentences(text_of(page)) if len(sentence.split()) > most]
    assert not long, f"docs/{page}: {len(long[0].split())} words, at most {most}: {long[0]}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("results/") and page != "results/index.md"])
def test_a_page_of_results_begins_with_its_finding(page) -> None:
    first = text_of(page).split("\n\n")[1].replace("\n> ", " ")
    assert first.startswith("> **Finding.** ")
    assert len(re.split(r"\. ", first.removeprefix("> **Finding.** "))) == 2, "two sentences"
    assert f"]({page.removeprefix('results/')})" in text_of("results/index.md")


def test_the_table_of_packages_is_the_contract() -> None:
    text = text_of("how-it-is-built.md")
    table = text[text.index("| package |") :].split("\n\n")[0].splitlines()[2:]
    assert [re.findall(r"`([^`]+)`", row)[0] for row in table] == site_packages.layers()
    for path in set(re.findall(r"`(\w+/\w+\.py)`", text)):
        assert (ROOT / "src" / "secateur" / path).is_file(), path


def test_the_picture_of_packages_has_dots_below_the_diagonal_only() -> None:
    names = site_packages.layers()
    for number, name in enumerate(names):
        assert site_packages.imported(name, names) <= set(names[number + 1 :])
    picture = site_packages.picture()
    assert all(f">{name}</text>" in picture for name in names)
    assert "<title>cli imports config</title>" in picture


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(text_of(page) for page in PAGES if page.startswith("reference/"))
    for name in set(secateur.__all__) - {"__version__"}:
        assert f"secateur.{name}" in text, f"docs/reference/ says nothing of secateur.{name}"
    named = re.findall(r"^::: secateur\.([\w.]+)$", text, re.M)
    assert len(named) > 30
    for place in named:
        package, _, name = place.rpartition(".")
        module = importlib.import_module(f"secateur.{package}") if package else secateur
        assert name in module.__all__, f"secateur.{place} is no public name"


def test_every_option_is_on_the_page_of_commands() -> None:
    for name, text in COMMANDS.items():
        section = site_commands.section(name, "summary")
        listed = set(re.findall(r"--[a-z][\w-]*", " ".join(re.findall(r"^\| `` (.*?) ``", section, re.M))))
        described = set(re.findall(r"^  (?:-h, )?(--[a-z][\w-]*)", text, re.M)) - {"--help"}
        assert described <= listed, name
    assert {"--sparsity", "--criterion"} <= FLAGS["prune"]
