"""The schedule reaches 0 and the target exactly, whatever the run's length."""

from itertools import pairwise

import pytest

from secateur.config.schedule import ScheduleOptions
from secateur.pruning.schedule import Schedule, cuts_after, make_schedule
from secateur.system.errors import InputError


def schedule_of(kind: str, start: float | int, end: float | int, frequency: float | int, total: int) -> Schedule:
    options = ScheduleOptions(schedule=kind, prune_start=start, prune_end=end, frequency=frequency)
    return make_schedule(options, total)


@pytest.mark.parametrize("kind", ["cubic", "linear"])
@pytest.mark.parametrize("total", [7, 10, 33, 45, 97, 100, 1001])
@pytest.mark.parametrize("frequency", [1, 3, 5, 10, 64])
def test_endpoints_are_exact(kind: str, total: int, frequency: int) -> None:
    schedule = schedule_of(kind, 0.1, 0.6, frequency, total)
    assert schedule.progress(schedule.start) == 0.0
    assert schedule.progress(schedule.end) == 1.0
    cuts = schedule.cuts()
    assert cuts[-1] == schedule.end
    assert cuts == sorted(set(cuts))
    assert all(b - a <= frequency for a, b in pairwise(cuts))
    shares = [schedule.progress(step) for step in range(total + 1)]
    assert shares == sorted(shares)


def test_cubic_is_the_papers_formula() -> None:
    schedule = schedule_of("cubic", 10, 90, 10, 100)
    for t in range(10, 91):
        assert schedule.progress(t) == pytest.approx(1 - (1 - (t - 10) / 80) ** 3, abs=1e-12)


def test_one_shot_cuts_once() -> None:
    assert schedule_of("one-shot", 0.1, 0.6, 10, 100).cuts() == [10]
    assert schedule_of("one-shot", 0.0, 0.6, 10, 100).cuts() == [1]


def test_fractions_and_steps_are_told_apart() -> None:
    schedule = schedule_of("linear", 5, 0.5, 10, 40)
    assert (schedule.start, schedule.end) == (5, 20)


@pytest.mark.parametrize("total", [*range(40, 160), 700, 1000, 2929])
def test_a_frequency_may_be_a_fraction_of_the_run(total: int) -> None:
    """Three cuts whatever the run's length, no small one on top for what rounding left."""
    cuts = schedule_of("linear", 0.1, 0.6, 0.17, total).cuts()
    assert len(cuts) == 3
    assert cuts == schedule_of("linear", 0.1, 0.6, -(-17 * total // 100), total).cuts()
    assert schedule_of("linear", 0.1, 0.6, 1.0, total).cuts() == cuts[-1:]


def test_bad_bounds_name_the_steps() -> None:
    with pytest.raises(InputError, match=r"--prune-start 0.5 \(step 20\) is not before --prune-end 0.5 \(step 20\)"):
        schedule_of("cubic", 0.5, 0.5, 10, 40)
    with pytest.raises(InputError, match=r"--prune-end 41 is step 41 of a run of 40"):
        schedule_of("cubic", 0.1, 41, 10, 40)


@pytest.mark.parametrize("kind", ["cubic", "linear", "one-shot"])
@pytest.mark.parametrize("frequency", [1, 3, 4, 100])
def test_cuts_after_a_step_are_those_of_the_list(kind: str, frequency: int) -> None:
    options = ScheduleOptions(schedule=kind, prune_start=3, prune_end=14, frequency=frequency)
    schedule = make_schedule(options, 20)
    for step in range(20):
        assert cuts_after(schedule, step) == sum(cut > step for cut in schedule.cuts())
    assert cuts_after(None, 3) == 0
