"""`secateur bench --cost-table`: measure what heads and widths cost here, for `prune --cost-table`."""

from pathlib import Path

import torch

from ..architecture.building import empty_model
from ..architecture.likeness import family_for
from ..config.sizes import parse_speed_at
from ..config.speed import BenchConfig
from ..models.devices import device_of, dtype_of
from ..models.loading import load_config
from ..models.source import resolve_model
from ..models.stored import checkpoint_dtype
from ..system.output import check_output_file
from ..system.records import write_told
from ..system.terminal.tables import Table, Words
from .find import measured_table
from .stack import Subject
from .table import CostTable


def bench_costs(config: BenchConfig) -> Words:
    """Measure a table, write it, and return it for a terminal.

    Raises:
        InputError: the file exists, or the model's layers cannot be timed by themselves.
    """
    output, device, dtype = Path(str(config.cost_table)), device_of(config), dtype_of(config)
    check_output_file("--cost-table", output, overwrite=config.overwrite, inputs={"--model": config.model})
    model_config = load_config(resolve_model(config.model), trust_remote_code=config.trust_remote_code)
    empty = empty_model(model_config, trust_remote_code=config.trust_remote_code)
    family = family_for(empty, model_config.model_type)
    weights = torch.float32 if dtype == torch.float32 else checkpoint_dtype(model_config)
    subject = Subject(model_config, family, device, dtype, weights, config.trust_remote_code)
    table = measured_table(subject, parse_speed_at(config.speed_at))
    words = cost_words(table)
    write_told(output, table.record(), str(words))
    return words


def cost_words(table: CostTable) -> Words:
    """A cost table for a terminal: a row a size, a column each thing that was timed."""
    names = list(table.times)
    rows: dict[tuple[int, int, int, int], dict[str, float]] = {}
    for name, times in table.times.items():
        for group in times.layers:
            for one in group.heads:
                rows.setdefault((group.layers[0], 0, one.heads, one.kv_heads), {})[name] = one.ms
            for each in group.channels:
                rows.setdefault((group.layers[0], 1, each.channels, 0), {})[name] = each.ms
    cells = []
    for (layer, channels, size, kv_heads), found in sorted(rows.items()):
        words = f"{size:,} channels" if channels else f"{size} heads, {kv_heads} KV heads"
        shown = (f"{found[name]:.4g} ms" if name in found else "-" for name in names)
        cells.append((f"  layer {layer} with", words, *shown))
    rest = ("  what is no layer", "", *(f"{table.times[name].rest_ms:.4g} ms" for name in names))
    head = f"{table.source}; FFN widths that are multiples of {table.width_step} are fast"
    return Words(head, Table(("", "", *names), [*cells, rest], align="ll" + "r" * len(names)))
