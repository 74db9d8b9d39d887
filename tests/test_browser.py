"""Reports in a real browser: nothing is fetched, nothing complains, the figures shown are those of the records."""

import json

import pytest
from browser import CHROMIUM, Browser
from test_report import HOSTILE, records, write_run

from secateur.report import write_report

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
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


def test_a_page_that_fetches_would_be_seen(tmp_path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='https://example.invalid/x.png'><script>console.error('no')</script>")
    with Browser() as browser:
        browser.open(page)
        assert "https://example.invalid/x.png" in browser.requests
        assert browser.complaints
