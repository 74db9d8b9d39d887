"""Shared settings of the tests: one thread (tiny matrices only lose by sharing), our warnings are errors."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture
def data_dir() -> Path:
    """The evaluation and training sets named by $SECATEUR_DATA, or a skip that says so."""
    folder = os.environ.get("SECATEUR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the data sets: set SECATEUR_DATA to their folder")
    return Path(folder)
