"""Libraries that speak while a live line is on the terminal, or of what is not a user's."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr


@contextmanager
def deprecations_unheard() -> Iterator[None]:
    """PEFT and transformers tell each other about their deprecations; there is nothing a user could do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
        yield


class _Kept(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@contextmanager
def quiet_transformers(*, gguf: bool = False) -> Iterator[list[str]]:
    """transformers without progress bars and log lines, which would break our live line; -> what it said meanwhile.

    `gguf`: standard error is swallowed too, for the bar of dequantisation cannot be switched off.
    """
    from transformers.utils import logging as its

    bars, logger, kept = its.is_progress_bar_enabled(), logging.getLogger("transformers"), _Kept()
    level, handlers, propagates = logger.level, logger.handlers, logger.propagate
    its.disable_progress_bar()
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [kept], False
    try:
        with redirect_stderr(io.StringIO()) if gguf else nullcontext():
            yield kept.told
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagates
        if bars:
            its.enable_progress_bar()


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """`datasets` and the hub's client without their bars: a line of ours says what lasts."""
    import datasets.utils
    import huggingface_hub.utils

    talking = [each for each in (datasets.utils, huggingface_hub.utils) if not each.are_progress_bars_disabled()]
    for each in talking:
        each.disable_progress_bars()
    try:
        yield
    finally:
        for each in talking:
            each.enable_progress_bars()
