"""Reports as users have them."""

from collections.abc import Iterator

import pytest

from secateur.report import plots


@pytest.fixture(autouse=True, scope="module")
def plots_have_fitted_margins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "LAYOUT", "constrained")
        yield
