"""Sizes and times in words: `80M` parameters, `24GB` of memory, `1.5x` the speed. Importing it imports no torch."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..system.errors import InputError
from .options import Options, flag, option

BYTES = {
    "B": 1,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "kiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
COUNTS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
TARGETS = ("sparsity", "target_params", "target_bytes", "target_speedup", "target_latency")
"""Ways to say how far a model is pruned, of which a run has one."""
PREFILL, DECODE = "prefill", "decode"
SPEED_AT = f"{PREFILL}:1x512"
"""What is timed where nothing else is asked for."""


def parse_bytes(words: str | int, option: str) -> int:
    """`24GB` or `1.5 GiB` -> bytes.

    Args:
        option: the flag that the error names.
    Raises:
        InputError: no number with a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]i?B|KiB|B)\s*", str(words))
    if not found:
        raise InputError(f"{option} is {words!r}: give a number with a unit, such as 24GB or 80GiB.")
    return round(float(found[1]) * BYTES[found[2]])


def parse_count(words: str | int, option: str) -> int:
    """`80M`, `1.3B` or `80000000` -> a whole number.

    Args:
        option: the flag that the error names.
    Raises:
        InputError: no number, or an unknown suffix.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMBT]?)\s*", str(words).upper())
    if not found:
        raise InputError(f"{option} is {words!r}: give a number, such as 80M, 1.3B or 80000000.")
    return round(float(found[1]) * COUNTS[found[2]])


def parse_speedup(words: str | float, option: str) -> float:
    """`1.5x` or `1.5` -> how many times as fast.

    Args:
        option: the flag that the error names.
    Raises:
        InputError: no number, or none above 1.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[xX×]?\s*", str(words))
    if not found or float(found[1]) <= 1:
        raise InputError(f"{option} is {words!r}: give how many times as fast, above 1, such as 1.5x.")
    return float(found[1])


def parse_duration(words: str, option: str) -> float:
    """`40ms` or `1.2s` -> milliseconds.

    Args:
        option: the flag that the error names.
    Raises:
        InputError: no number with a unit, or zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s)\s*", str(words))
    if not found or not float(found[1]):
        raise InputError(f"{option} is {words!r}: give a time above 0 with its unit, such as 40ms or 1.2s.")
    return float(found[1]) * MILLISECONDS[found[2]]


@dataclass(frozen=True)
class Timed:
    """What is timed: the pass over a prompt, or greedy tokens one after the other behind it (its own pass not)."""

    kind: str
    """`prefill` or `decode`."""
    batch: int
    """Sequences at once."""
    prompt: int
    """Tokens of each."""
    generated: int = 0
    """Tokens that follow in each (`decode`)."""
    times: float = 1.0
    """How often it counts in the mixture."""

    @property
    def name(self) -> str:
        """As it is given, without how often it counts."""
        return f"{self.kind}:{self.batch}x{self.prompt}" + (f"+{self.generated}" if self.generated else "")


def parse_speed_at(words: str, option: str = "--speed-at") -> tuple[Timed, ...]:
    """`prefill:1x512`, `decode:1x512+128`, or several with commas between them, each with or without `3*` before it.

    Args:
        option: the flag that the error names.
    Raises:
        InputError: it is not of this form, or the same thing is there twice.
    """
    found = []
    for part in words.split(","):
        form = rf"\s*(?:(\d+(?:\.\d+)?)\s*\*\s*)?({PREFILL}|{DECODE}):(\d+)x(\d+)(?:\+(\d+))?\s*"
        match = re.fullmatch(form, part)
        batch, prompt, generated = (int(match[n] or 0) if match else 0 for n in (3, 4, 5))
        times = float((match and match[1]) or 1)
        if not match or not batch * prompt * times or (match[2] == DECODE) != (generated > 0):
            raise InputError(
                f"{option} is {words!r}: give {SPEED_AT} (one prompt of 512 tokens), decode:1x512+128 (128 tokens "
                "after it), or both with a comma between them, 3* before one that counts three times."
            )
        found.append(Timed(match[2], batch, prompt, generated, times))
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise InputError(f"{option} is {words!r}: {max(names, key=names.count)} is there twice: put 2* before one.")
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class TimeOptions(Options):
    """A target in time, and where the times come from."""

    target_speedup: str | int | float | None = option(
        "instead of --sparsity: how many times as fast the pruned model shall be, such as 1.5x, by the time that heads "
        "and widths take here; measured once, then kept",
        None,
        group="pruning",
    )
    target_latency: str | None = option(
        "instead of --sparsity: the time that the pruned model shall take, such as 40ms, of what --speed-at says",
        None,
        group="pruning",
    )
    speed_at: str = option(
        "what --target-speedup and --target-latency time: a prompt (prefill:1x512), tokens after it "
        "(decode:1x512+128), or a sum (prefill:1x512,decode:1x512+128)",
        SPEED_AT,
        group="pruning",
    )
    cost_table: str | None = option(
        "take the times from this file, which secateur bench --cost-table wrote, on another machine perhaps; default: "
        "measured on this one",
        None,
        group="pruning",
        metavar="FILE",
    )

    @property
    def by_time(self) -> bool:
        """Whether the target is a time."""
        return self.target_speedup is not None or self.target_latency is not None


def size_faults(config: Any, name: str, parse: Callable[[Any, str], Any]) -> list[str]:
    """The fault of an option that holds a size or a time, if it has one."""
    try:
        if (words := getattr(config, name)) is not None:
            parse(words, flag(name))
    except InputError as error:
        return [str(error)]
    return []


def target_faults(config: Any) -> list[str]:
    """Faults of `TARGETS`, of which a run has one, and of what goes with times alone."""
    given = [f"{flag(name)} {value}" for name in TARGETS if (value := getattr(config, name)) is not None]
    parsers: dict[str, Callable[[Any, str], Any]] = {
        "target_params": parse_count, "target_bytes": parse_bytes, "target_speedup": parse_speedup,
        "target_latency": parse_duration, "speed_at": parse_speed_at,
    }  # fmt: skip
    found = [fault for name, parse in parsers.items() for fault in size_faults(config, name, parse)]
    if config.sparsity is not None and not 0 < config.sparsity < 1:
        found.append(
            f"--sparsity is {config.sparsity}: it is the fraction of parameters to remove, "
            "so give a number between 0 and 1, such as 0.2."
        )
    if len(given) > 1:
        found.append(f"{' and '.join(given)} each say how small the model gets: leave all but one out.")
    return found + _speed_faults(config)


def _speed_faults(config: Any) -> list[str]:
    """What does not go with a target in time, or without one."""
    if config.target_speedup is None and config.target_latency is None:
        given = ["--cost-table"] * (config.cost_table is not None) + ["--speed-at"] * (config.speed_at != SPEED_AT)
        return [f"{name} goes with --target-speedup or --target-latency: add one, or leave it out." for name in given]
    found = []
    if config.allocation == "search":
        found.append(
            "--allocation search keeps to a number of parameters, and a time is asked for: use --allocation global."
        )
    if config.allocation == "global" and config.attention_sparsity is not None:
        found.append(
            "--attention-sparsity parts a budget of parameters, and a time is asked for: with --allocation global "
            "leave it out."
        )
    return found
