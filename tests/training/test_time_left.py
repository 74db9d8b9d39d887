"""The time that a run says it has left."""

import pytest

from secateur.training.recording import TimeLeft


def test_a_cut_counts_once_and_as_often_as_it_comes() -> None:
    left = TimeLeft(cuts=2)
    assert [left(1.0, steps, 2) for steps in (9, 8, 7)] == [9.0, 8.0, 7.0]
    assert left(21.0, 6, 1) == pytest.approx(6 + 20)  # a step of a second, and one more such cut
    assert left(1.0, 5, 1) == pytest.approx(5 + 20)
    assert left(31.0, 4, 0) == pytest.approx(4)
    assert left(3.0, 3, 0) == pytest.approx(3)  # one slow step is not what steps usually take


def test_where_each_step_cuts_the_first_one_says_what_it_takes() -> None:
    left = TimeLeft(cuts=3)
    assert left(2.0, 2, 2) == pytest.approx(4)
    assert left(4.0, 1, 1) == pytest.approx(2 + 2)
