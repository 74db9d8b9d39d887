"""What the launcher (`torchrun`, `accelerate launch`) told this process, known before any communication."""

import os


def rank() -> int:
    """This process's number."""
    return int(os.environ.get("RANK", "0"))


def own_device() -> int:
    """Which of the machine's devices is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))
