"""How commands run and say what came of it: under a phase, in the first of several processes."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..system.progress import phase
from ..system.terminal.tables import tell

if TYPE_CHECKING:
    from ..system.progress import Progress

CHECKING = "checking the run"


def rehearsed(config: Any, prepare: Callable[[Any], Any], run: Callable[[Any, "Progress"], str]) -> int:
    """A job without its training; of several processes the first one does it."""
    from ..runs.push import check_hub
    from ..system.launcher import rank
    from ..system.progress import Progress

    with phase(CHECKING):
        job = prepare(config)
    check_hub(config)
    if rank() == 0:
        return told("rehearsing", lambda: run(job, Progress(job.total_steps)))
    return 0


def told(doing: str, run: Callable[[], str]) -> int:
    """Run under a phase of that name, and print what comes of it."""
    with phase(doing):
        words = run()
    if words:
        tell(words)
    return 0


def trained(
    config: Any,
    prepare: Callable[[Any], Any],
    run: Callable[[Any, "Progress"], dict[str, Any]],
    words: Callable[[dict[str, Any]], str],
) -> int:
    """Check a run and run it, or say that it was done; of several processes the first one speaks."""
    from ..parallel.distributed import leave
    from ..runs.push import check_hub, closing_lines
    from ..runs.resumed import finished, going_on
    from ..system.launcher import rank
    from ..system.progress import Progress

    if (result := finished(config)) is not None:
        if rank() == 0:
            print(f"the result is complete in {config.output}: nothing is left to do")
            tell(words(result))
            print(closing_lines(result, config))
        return 0
    check_hub(config)
    with phase(CHECKING):
        job = prepare(going_on(config))
    if rank() > 0:
        with open(os.devnull, "w", encoding="utf-8") as silence:
            run(job, Progress(job.total_steps, silence))
        leave()
        return 0
    result = run(job, Progress(job.total_steps))
    leave()
    tell(words(result))
    print(closing_lines(result, config))
    return 0
