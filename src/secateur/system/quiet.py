"""Libraries that speak while a live line is on the terminal."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr


@contextmanager
def quiet_transformers(*, gguf: bool = False) -> Iterator[None]:
    """transformers without progress bars and below-error log lines: they would break our live line.

    `gguf`: standard error is swallowed too, for the bar of dequantisation cannot be switched off.
    """
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()) if gguf else nullcontext():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
