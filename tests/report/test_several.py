"""Several runs on one page: the curves are the records', options are those that differ, links lead to the runs."""

import json
import re
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote

import pytest

from secateur.cli import main
from secateur.report import curves, plots, write_report
from secateur.report.recipe import differing
from secateur.report.runs import load_runs
from secateur.report.several import page_address
from secateur.report.sizes import HEIGHT, Point, label_heights
from tests.report.test_browser import adapted
from tests.report.test_report import HOSTILE, Page, records, unfinished, write_run


def with_metrics(folder: Path, *, per_step: float | None, losses: list[float], noted: bool = True) -> Path:
    """A run with these losses; the tokens of a step are in its record, or in the speed of each step alone."""
    result = records()
    if noted and per_step:
        result["data"]["tokens_per_step"] = per_step
    write_run(folder, result)
    speed = {"tokens_per_s": per_step / 0.37, "seconds": 0.37} if per_step else {}
    lines = [{"step": i, "loss": loss, "sparsity": i / 100, **speed} for i, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_curves_are_over_tokens(tmp_path) -> None:
    folders = [
        with_metrics(tmp_path / "a", per_step=512, losses=[4.0, 3.0, 2.0]),
        with_metrics(tmp_path / "b", per_step=2048, losses=[4.5, 3.5], noted=False),
    ]
    runs = load_runs([str(folder) for folder in folders])
    (a, b), over = curves.curves_of(runs, curves.KINDS[1])
    assert over == "tokens"
    assert (a.x, a.y) == ([512, 1024, 1536], [0.01, 0.02, 0.03])
    assert (b.x, b.y) == ([2048, 4096], [0.01, 0.02])
    assert [b.at(x) for x in (2047, 2048, 4095, 4096, 4097)] == [None, 0.01, 0.01, 0.02, None]
    with_metrics(tmp_path / "c", per_step=None, losses=[5.0])
    found, over = curves.curves_of(load_runs([*map(str, folders), str(tmp_path / "c")]), curves.KINDS[0])
    assert over == "optimiser steps", "one of them does not say how many tokens a step has"
    assert [curve.x for curve in found] == [[1, 2, 3], [1, 2], [1]]
    assert [curve.y for curve in found] == [[4.0, 3.0, 2.0], [4.5, 3.5], [5.0]]


def test_what_is_seen_is_said_and_in_a_table(tmp_path) -> None:
    folders = [
        with_metrics(tmp_path / "a", per_step=1000, losses=[4.0, 3.0, 2.0]),
        with_metrics(tmp_path / "b", per_step=500, losses=[4.5, 3.5]),
    ]
    [path] = write_report([str(folder) for folder in folders], tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "a from 4.000 to 2.000 at 3.0k; b from 4.500 to 3.500 at 1.0k." in page.source
    assert "Training loss at the end (running mean) 2.000 3.500" in page.text
    caption, rows = curves.numbers(load_runs(list(map(str, folders))))[0]
    assert caption == "Training loss, nats per token (running mean), after so many tokens"
    assert rows == [("500", "–", "4.500"), ("1.1k", "4.000", "–"), ("1.8k", "4.000", "–"), ("2.4k", "3.000", "–"),
                    ("3.0k", "2.000", "–")]  # fmt: skip
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.source.count('role="img"') == page.tags.count("figure")
    assert len(page.ids) == len(set(page.ids))


def test_links_lead_to_the_runs_pages(tmp_path) -> None:
    one, other = write_run(tmp_path / "runs" / "ä b#?%"), write_run(tmp_path / "runs" / "none")
    write_report([str(one)])
    place = tmp_path / "pages" / "all.html"
    place.parent.mkdir()
    [path] = write_report([str(one), str(other)], place)
    source = path.read_text(encoding="utf-8")
    (link,) = re.findall(r'href="(?!#)(.*?)"', source)
    assert (place.parent / unquote(link)).resolve() == (one / "report.html").resolve()
    assert link.startswith("./../runs/")
    assert f"secateur report {other}" in source
    assert page_address(tmp_path / "javascript:x" / "report.html", tmp_path / "a.html").startswith("./javascript%3Ax/")


def test_only_options_that_differ(tmp_path) -> None:
    first, second, third = (records() for _ in range(3))
    second["config"] |= {"lr": 0.002}
    third["config"] = {"model": "m", "rank": 8, "later": 3}
    del first["config"]["shrink"]  # an older version's
    runs = load_runs([str(write_run(tmp_path / str(i), r)) for i, r in enumerate((first, second))])
    assert differing(runs) == [("--lr", ["0.0005", "0.002"]), ("--shrink", ["", "no"])]
    first["config"]["shrink"], second["config"]["lr"] = False, 5e-4
    second["config"]["seed"] = 0  # at its default, which is what a run without it had
    runs = load_runs([str(write_run(tmp_path / f"again {i}", r)) for i, r in enumerate((first, second))])
    assert differing(runs) == []


def test_runs_of_all_kinds_stand_side_by_side(tmp_path) -> None:
    common = {"status": "done", "config": records()["config"], "environment": records()["environment"]}
    cell = {"name": "cell", "kind": "dense+lora", "parameters": 134515008, "perplexity": {}, **common}
    failing = unfinished(tmp_path / "failing")
    reason = json.dumps({"reason": f"the loss is NaN {HOSTILE}"})
    (tmp_path / "failing.run" / "failure.json").write_text(reason)
    folders = [
        write_run(tmp_path / "run"), *adapted(tmp_path / "adapter"), unfinished(tmp_path / "working"), failing,
        write_run(tmp_path / "cell", cell, with_units=False, with_metrics=False),
        write_run(tmp_path / "empty", {"config": {}}, with_units=False, with_metrics=False),
    ]  # fmt: skip
    [path] = write_report([str(folder) for folder in folders], tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "6 runs compared" in page.text
    assert "State done done no result failed done done" in page.text
    assert "Adapter's mean rank – 3 – – – –" in page.text
    assert "a baseline of compare (dense+lora)" in page.text
    assert "working: This run has no result: its records end at step 37." in page.text
    assert "script" not in page.tags


def test_a_page_that_is_there_stays(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(write_run(tmp_path / name)) for name in ("a", "b")]
    (tmp_path / "comparison.html").write_text("mine")
    assert main(["report", *runs]) == 2
    assert "--output comparison.html exists: pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "comparison.html").read_text() == "mine"
    assert main(["report", *runs, "--overwrite"]) == 0
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_no_two_of_many_runs_look_alike() -> None:
    looks = [(plots.SERIES[i % 6], plots.style_number(i)) for i in range(36)]
    assert len(set(looks)) == 36
    assert len(plots.STYLES) == len(plots.DASHES) == len(plots.SERIES)


SEEN = {  # Machado, Oliveira and Fernandes 2009, of full severity, in linear RGB
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanopia": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def linear(colour: str) -> list[float]:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def lab(colour: str, seen: tuple[tuple[float, ...], ...]) -> list[float]:
    """CIELAB of a colour as somebody with that deficiency sees it."""
    red, green, blue = (min(1, max(0, sum(a * b for a, b in zip(row, linear(colour), strict=True)))) for row in seen)
    xyz = ((0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505, 0.2126 * red + 0.7152 * green + 0.0722 * blue,
           (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.0888)  # fmt: skip
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in xyz)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


@pytest.mark.parametrize("seen", SEEN)
def test_colours_are_told_apart(seen) -> None:
    """On both grounds, by every kind of eye: a difference of 10 is plain to see; and 3:1 against the ground."""
    style = (Path(plots.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = (re.findall(r"--series-\d: (#[0-9a-f]{6})", part) for part in style.split("}")[:2])
    assert tuple(light) == plots.SERIES
    for colours, ground in ((light, "#ffffff"), (dark, "#12161c")):
        assert len(colours) == 6
        for one, other in combinations(colours, 2):
            apart = sum((a - b) ** 2 for a, b in zip(lab(one, SEEN[seen]), lab(other, SEEN[seen]), strict=True)) ** 0.5
            assert apart > 10, (one, other)
        for colour in colours:
            shades = sorted(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(c), strict=True))
                            for c in (colour, ground))  # fmt: skip
            assert (shades[1] + 0.05) / (shades[0] + 0.05) >= 3, colour


def test_names_beside_points_do_not_cover_each_other() -> None:
    points = [Point(str(i), 80e6 + i, 50.0 + i / 10, i) for i in range(5)] + [Point("far", 200e6, 10.0, None)]
    heights = label_heights(points)
    places = [point.value / 40.4 + height / HEIGHT for point, height in zip(points, heights, strict=True)]
    assert heights[-1] == 6
    assert min(abs(one - other) for one, other in combinations(places[:-1], 2)) >= 0.09
