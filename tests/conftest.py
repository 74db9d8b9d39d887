"""Shared settings of the tests: one thread (tiny matrices only lose by sharing), our warnings are errors.

What takes seconds to import is imported by fixtures: with `-n 2` pytest reads this file in a third process too, which
runs no test and which the two wait for.
"""

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def what_was_imported_is_no_garbage() -> None:
    """Trainer collects garbage once a run, which goes through all that the libraries made: 0.4 s for any run."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def read_back_by_a_fork() -> Iterator[Callable[..., Any]]:
    """What is read back is read by a fork of a process that has the libraries; gives what a user has."""
    from zygote import read_back

    from secateur.checkpoint import verify

    from_nothing = verify.run_python
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "run_python", read_back)
        patch.setattr(verify, "start_reader", lambda environment: None)
        yield from_nothing


@pytest.fixture(autouse=True, scope="session")
def plots_are_not_rendered() -> Iterator[None]:
    """Every run draws its report's plots, and rendering them takes as long as the run: that is tests/report's."""
    from unrendered import Unrendered

    from secateur.report import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "LAYOUT", "none")
        patch.setattr(plots, "FigureCanvasSVG", Unrendered)
        yield


@pytest.fixture(autouse=True, scope="session")
def gguf_names_are_made_once() -> Iterator[None]:
    """transformers makes the table of a model's GGUF names anew for each of its modules: 15 s for 32 layers."""
    import gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        yield


@pytest.fixture
def from_nothing(read_back_by_a_fork, monkeypatch) -> None:
    """What is read back is read as a user's is, by a process that makes its own imports."""
    monkeypatch.setattr("secateur.checkpoint.verify.run_python", read_back_by_a_fork)


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
