"""The times of a model's layers by their heads and channels, as a file holds them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..system.errors import InputError
from ..system.reading import parse_json, read_text

FORMAT = 1
"""Version of the file's layout; a newer one is refused."""


@dataclass(frozen=True)
class Heads:
    """The time of a layer that has so many heads, and all of its channels."""

    heads: int
    kv_heads: int
    ms: float


@dataclass(frozen=True)
class Channels:
    """The time of a layer that has so many FFN channels, and all of its heads."""

    channels: int
    ms: float


@dataclass(frozen=True)
class LayerTimes:
    """Of layers that are alike. The largest size in each list is the dense layer; 0 is a block that is gone."""

    layers: tuple[int, ...]
    """Their numbers, from 0."""
    heads: tuple[Heads, ...]
    channels: tuple[Channels, ...]


@dataclass(frozen=True)
class Times:
    """Of one thing that is timed, such as `prefill:1x512`; layers that are gone take none."""

    rest_ms: float
    """Embeddings, the last norm, the output layer and whatever else is no layer."""
    layers: tuple[LayerTimes, ...]


@dataclass(frozen=True)
class CostTable:
    """What was measured, and on what.

    Attributes:
        times: what was timed -> its times.
        width_step: FFN widths that are multiples of this are fast; others are not chosen.
        about: model, device, threads, precision and versions. A table whose `about` is another is another machine's.
        source: where it comes from, in words.
    """

    times: Mapping[str, Times]
    width_step: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def record(self) -> dict[str, Any]:
        """What a file holds."""
        return {"cost_table_format": FORMAT, **asdict(self)}


def read_table(path: Path, option: str = "--cost-table") -> CostTable:
    """The table of a file.

    Raises:
        InputError: there is no such file, or it holds no cost table.
    """
    place = f"{option} {path}"
    record = parse_json(read_text(path, place), place, "give what secateur bench --cost-table wrote")
    try:
        return table_of(record)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def table_of(record: Any) -> CostTable:
    """The table that a record holds.

    Raises:
        InputError: it holds none, is of a newer version, or has a time that cannot be.
    """
    if not isinstance(record, dict) or "cost_table_format" not in record:
        raise InputError("it is no cost table: secateur bench --cost-table writes one.")
    if record["cost_table_format"] != FORMAT:
        raise InputError(
            f"its layout is {record['cost_table_format']!r}, this version knows {FORMAT}: update secateur."
        )
    try:
        times = {str(name): _times(found) for name, found in record["times"].items()}
        table = CostTable(times, int(record["width_step"]), dict(record["about"]), str(record["source"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a part of it is missing or of another kind ({type(error).__name__}: {error}).") from None
    if table.width_step < 1 or not times:
        raise InputError("it has no times, or a width_step below 1.")
    return table


def _times(record: Any) -> Times:
    layers = tuple(
        LayerTimes(
            tuple(map(int, each["layers"])),
            tuple(Heads(int(one["heads"]), int(one["kv_heads"]), _ms(one["ms"])) for one in each["heads"]),
            tuple(Channels(int(one["channels"]), _ms(one["ms"])) for one in each["channels"]),
        )
        for each in record["layers"]
    )
    return Times(_ms(record["rest_ms"]), layers)


def _ms(value: Any) -> float:
    found = float(value)
    if isinstance(value, str | bool) or not 0 <= found < float("inf"):
        raise ValueError(f"{value!r} is no time in milliseconds")
    return found
