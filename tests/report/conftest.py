"""Reports as users have them."""

from collections.abc import Iterator

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG
from unrendered import Unrendered

from secateur.report import plots


@pytest.fixture(autouse=True, scope="module")
def plots_are_rendered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "LAYOUT", "constrained")
        patch.setattr(plots, "FigureCanvasSVG", FigureCanvasSVG)
        yield


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Where what stands beside the plots is looked at."""
    monkeypatch.setattr(plots, "LAYOUT", "none")
    monkeypatch.setattr(plots, "FigureCanvasSVG", Unrendered)
