"""The project's own files agree with the code: the version, the issue forms, the order of the packages."""

import re
import tomllib
from pathlib import Path

import yaml

from secateur.system.version import VERSION

ROOT = Path(__file__).parents[2]


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == VERSION
    urls = [reference["url"] for reference in citation["references"]]
    assert urls == ["https://arxiv.org/abs/2305.18403", "https://arxiv.org/abs/2510.00192"]
    assert VERSION in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_bug_form_asks_for_versions_and_hardware() -> None:
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert forms.keys() == {"bug", "feature"}
    for form in forms.values():
        assert form.keys() >= {"name", "description", "body"}
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
    asked = {field["id"]: field for field in forms["bug"]["body"]}["versions"]
    assert "secateur --version --verbose" in asked["attributes"]["label"]
    assert asked["validations"]["required"]


def test_notes_for_agents_list_the_packages_in_order() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    listed = re.search(r"lowest first: ([\w,\s]+)\.", (ROOT / "AGENTS.md").read_text(encoding="utf-8"))
    assert listed
    assert re.findall(r"\w+", listed[1]) == layers[::-1]


def test_links_between_the_projects_files_lead_somewhere() -> None:
    for name in ("CONTRIBUTING.md", "AGENTS.md", "examples/README.md"):
        page = ROOT / name
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        assert links
        assert [link for link in links if not (page.parent / link).exists()] == [], name
