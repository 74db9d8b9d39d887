"""benchmarks/README.md has a line for every script and grid, under its subject, and for no other."""

import re
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_script_is_listed_once() -> None:
    listed, subject = [], ""
    for line in (BENCHMARKS / "README.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## (\w+):", line):
            subject = heading[1]
        if row := re.match(r"\| `([\w.-]+)` \|", line):
            listed.append(f"{subject}/{row[1]}")
    there = [f"{path.parent.name}/{path.name}" for path in BENCHMARKS.glob("*/*") if path.suffix in (".py", ".yaml")]
    assert len(there) > 20
    assert sorted(listed) == sorted(there)


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (BENCHMARKS / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 15
    assert [link for link in links if not (BENCHMARKS / link).exists()] == []
