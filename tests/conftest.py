"""Shared settings of the tests: one thread (tiny matrices only lose by sharing), our warnings are errors."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from zygote import read_back  # noqa: E402

from secateur.checkpoint import verify  # noqa: E402
from secateur.report import plots  # noqa: E402

FROM_NOTHING = verify.run_python


@pytest.fixture(autouse=True, scope="session")
def what_was_imported_is_no_garbage() -> None:
    """Trainer collects garbage once a run, which goes through all that the libraries made: 0.4 s for any run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def imports_made_once() -> Iterator[None]:
    """What is read back is read by a fork of a process that has the libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "run_python", read_back)
        yield


@pytest.fixture(autouse=True, scope="session")
def plots_have_no_fitted_margins() -> Iterator[None]:
    """Every run draws its report's plots, and fitting margins takes longer than drawing: that is tests/report's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "LAYOUT", "none")
        yield


@pytest.fixture
def from_nothing(monkeypatch) -> None:
    """What is read back is read as a user's is, by a process that makes its own imports."""
    monkeypatch.setattr(verify, "run_python", FROM_NOTHING)


@pytest.fixture(autouse=True)
def the_real_model_is_read_back_as_a_users_is(request) -> None:
    if request.node.get_closest_marker("slow"):
        request.getfixturevalue("from_nothing")


@pytest.fixture
def data_dir() -> Path:
    """The evaluation and training sets named by $SECATEUR_DATA, or a skip that says so."""
    folder = os.environ.get("SECATEUR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the data sets: set SECATEUR_DATA to their folder")
    return Path(folder)
