"""Reports in a real browser: nothing is fetched, nothing complains, the figures shown are those of the records."""

import json
import os
import sys
import time

import pytest
from browser import CHROMIUM, Browser

from secateur.report import write_report
from tests.report.test_report import HOSTILE, records, unfinished, with_tasks, write_run

REQUIRED = bool(os.environ.get("SECATEUR_REQUIRE_BROWSER"))
pytestmark = pytest.mark.skipif(
    not CHROMIUM and not REQUIRED, reason="no Chromium on this machine: the reports are not looked at in a browser"
)
HEADLINE = {  # record -> how the page writes it
    ("dense", "parameters"): lambda n: f"{n / 1e6:.1f}M",
    ("pruned", "parameters"): lambda n: f"{n / 1e6:.1f}M",
    ("dense", "bytes"): lambda n: f"{n / 1e6:.1f} MB",
    ("pruned", "bytes"): lambda n: f"{n / 1e6:.1f} MB",
    ("dense", "perplexity", "perplexity"): lambda n: f"{n:.2f}",
    ("pruned", "perplexity", "perplexity"): lambda n: f"{n:.2f}",
    ("speed", "dense", "median_ms"): lambda n: f"{n:.1f} ms",
    ("speed", "pruned", "median_ms"): lambda n: f"{n:.1f} ms",
    ("sparsity", "reached"): lambda n: f"{n:.2%}",
}


@pytest.mark.parametrize("name", ["smollm2", HOSTILE])
def test_a_report_from_disk(tmp_path, name) -> None:
    folder = write_run(tmp_path / "run", records(name))
    [page] = write_report([str(folder)], tmp_path / "report.html")
    with Browser() as browser:
        browser.open(page)
        text = browser.evaluate("document.body.innerText")
        scripts = browser.evaluate("document.scripts.length")
        wide = browser.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert {url.split(":")[0] for url in browser.requests} == {"file"}
        assert browser.requests == [page.resolve().as_uri()]
        assert browser.complaints == []
    assert scripts == 0
    assert not wide, "the page scrolls sideways"
    result = json.loads((folder / "result.json").read_text())
    for path, shown in HEADLINE.items():
        value = result
        for key in path:
            value = value[key]
        assert shown(value) in text, path


def adapted(folder):
    ranks = {f"model.layers.{n}.self_attn.q_proj": 8 for n in range(3)}
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({
        "kind": "adapt", "config": {"model": "m"}, "adapter": {"init_rank": 8, "mean_rank": 3.0, "parameters": 4096},
        "dense": {"perplexity": {"perplexity": 20.5}}, "adapted": {"perplexity": {"perplexity": 10.25}},
    }))  # fmt: skip
    cuts = [{"step": 5, "ranks": dict(zip(ranks, (2, 5, 2), strict=True))}]
    (folder / "ranks.json").write_text(json.dumps({"start": ranks, "cuts": cuts}))
    return [folder]


def failed(folder):
    unfinished(folder)
    reason = json.dumps({"reason": f"the loss is NaN {HOSTILE}"})
    (folder.with_name(folder.name + ".run") / "failure.json").write_text(reason)
    return [folder]


PAGES = {  # kind of page -> its runs, what is to be read on it
    "prune": (lambda place: [with_tasks(write_run(place / "run"))],
              ["113.3M", "31.42", "33.0 %", "−7.0 points", "from 40.0 %", "20.02% of the prunable parameters"]),
    "comparison": (lambda place: [write_run(place / name, records(name)) for name in ("one", HOSTILE[:8].strip("<"))],
                   ["2 runs compared", "113.3M", "31.42", "226.6 MB", "248.9 ms"]),
    "adapt": (lambda place: adapted(place / "run"), ["3", "from 8", "÷ 2.67", "10.25", "4.1k"]),
    "unfinished": (lambda place: [unfinished(place / "run")], ["its records end at step 37", "Loss and sparsity"]),
    "failed": (lambda place: failed(place / "run"), ["This run failed after step 37: the loss is NaN <script>"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAGES)
def test_every_kind_of_page(kind, tmp_path) -> None:
    """Nothing is fetched or complained of, the figures can be read, by keyboard too, and print leaves nothing out."""
    make, shown = PAGES[kind]
    [page] = write_report([str(folder) for folder in make(tmp_path)], tmp_path / "report.html")
    with Browser() as browser:
        browser.open(page)
        text = browser.evaluate("document.body.innerText")
        for words in shown:
            assert words in text, words
        assert browser.evaluate("document.documentElement.scrollWidth > innerWidth") is False
        browser.press("Tab")
        assert browser.evaluate("document.activeElement.className") == "skip"
        assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "it comes into view"
        browser.press("Enter")
        assert browser.evaluate("document.activeElement.id") == "main"
        closed = browser.evaluate("document.querySelectorAll('details:not([open])').length")
        reached = []
        while len(reached) < 60 and (not reached or reached[-1] != "BODY"):
            browser.press("Tab")
            reached.append(browser.evaluate("document.activeElement.tagName"))
        assert reached.count("SUMMARY") == closed
        hidden = (
            "[...document.querySelectorAll('details table, details pre')]"
            ".filter(e => !e.checkVisibility({contentVisibilityAuto: true})).length"
        )
        inside = browser.evaluate("document.querySelectorAll('details table, details pre').length")
        assert browser.evaluate(hidden) == inside
        browser.ask("Emulation.setEmulatedMedia", media="print")
        until = time.monotonic() + 10
        while browser.evaluate(hidden) and time.monotonic() < until:  # laid out at the next frame
            time.sleep(0.05)
        assert browser.evaluate(hidden) == 0, "print shows what is folded away"
        assert browser.evaluate("getComputedStyle(document.querySelector('.skip')).display") == "none"
        assert browser.requests == [page.resolve().as_uri()]
        assert browser.complaints == []
    assert closed > 0 or kind in ("comparison", "adapt")


def test_enter_opens_details(tmp_path) -> None:
    [page] = write_report([str(write_run(tmp_path / "run"))], tmp_path / "report.html")
    with Browser() as browser:
        browser.open(page)
        browser.evaluate("document.querySelector('summary').focus()")
        browser.press("Enter")
        assert browser.evaluate("document.querySelectorAll('details[open]').length") == 1


def test_dark_and_phone(tmp_path) -> None:
    [page] = write_report([str(write_run(tmp_path / "run"))], tmp_path / "report.html")
    background = (
        "getComputedStyle(document.documentElement).backgroundColor + getComputedStyle(document.body).backgroundColor"
    )
    with Browser() as browser:
        browser.open(page)
        browser.screenshot(tmp_path / "light.png")
        light = browser.evaluate(background)
        browser.screenshot(tmp_path / "dark.png", scheme="dark")
        assert browser.evaluate(background) != light
        browser.screenshot(tmp_path / "phone.png", width=390)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def test_several_runs_in_the_dark_on_a_phone_and_by_keyboard(tmp_path) -> None:
    """A link leads to its run's page; nothing scrolls sideways but tables and plots in their frames."""
    folders = [write_run(tmp_path / name) for name in ("one", "a-run-with-a-name-that-is-rather-long-" * 2)]
    folders += adapted(tmp_path / "adapter")
    [own] = write_report([str(folders[0])])
    [page] = write_report([str(folder) for folder in folders], tmp_path / "all.html")
    seen = "[...document.querySelectorAll('.key line')].map(e => getComputedStyle(e).stroke).join()"
    with Browser() as browser:
        browser.open(page)
        browser.screenshot(tmp_path / "light.png")
        light = browser.evaluate(seen)
        assert len(set(light.split(", "))) > 3, light
        for width in (380, 1600):
            browser.screenshot(tmp_path / f"{width}.png", width=width, scheme="dark")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(seen) != light
        frames = "[...document.querySelectorAll('.scroll, .canvas, pre')].filter(e => e.tabIndex < 0).length"
        assert browser.evaluate(frames) == 0, "what scrolls can be reached by keyboard"
        said = browser.evaluate("[...document.querySelectorAll('[role=img]')].map(e => e.ariaLabel).join()")
        assert "Training loss, nats per token (running mean), over optimiser steps: one from 3.9" in said
        for _ in range(20):
            browser.press("Tab")
            if browser.evaluate("document.activeElement.textContent") == "one":
                break
        assert browser.evaluate("document.activeElement.href") == own.resolve().as_uri()
        assert browser.requests == [page.resolve().as_uri()]
        assert browser.complaints == []


def test_a_page_that_fetches_would_be_seen(tmp_path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='https://example.invalid/x.png'><script>console.error('no')</script>")
    with Browser() as browser:
        browser.open(page)
        assert "https://example.invalid/x.png" in browser.requests
        assert browser.complaints


def test_where_a_browser_is_required_there_is_one() -> None:
    """Set where it was installed: a skip would then hide that nothing was looked at."""
    assert CHROMIUM or not REQUIRED, "SECATEUR_REQUIRE_BROWSER is set and there is no Chromium"
    assert "browser" in sys.modules
