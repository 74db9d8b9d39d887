"""`secateur bench`: models side by side, taking turns; medians, spread and ratios."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.sizes import DECODE, Timed
from ..config.speed import BenchConfig
from ..models.adapter import load_adapter, read_adapter
from ..models.benchmark import both_sides, forward_flops, forward_latency, parameter_count
from ..models.devices import autocast, device_of, dtype_of, name_of, widened
from ..models.files import check_checkpoint, source_bytes
from ..models.loading import load_config, load_model
from ..models.memory import peak_bytes, reset_peak
from ..models.source import resolve_model
from ..speed.timing import decode_latency
from ..system.errors import InputError
from ..system.machine.devices import peak_allocated
from ..system.output import check_output_file
from ..system.progress import Progress, human_bytes, phase
from ..system.records import counted, environment, write_told
from ..system.terminal.tables import Table, Words

PROMPT = 64
"""Tokens before those that are generated."""


def bench(config: BenchConfig) -> str:
    """Measure, write the JSON record if asked, and return the table.

    Raises:
        InputError: a model cannot be loaded, the prompt is longer than its positions, the output exists.
    """
    device, dtype = device_of(config), dtype_of(config)
    output = Path(config.output) if config.output else None
    if output is not None:
        inputs = {"--model": config.model, "--against": config.against, "--adapter": config.adapter}
        check_output_file("--output", output, overwrite=config.overwrite, inputs=inputs)
    names = [name for name in (config.against, config.model) if name is not None]
    if len(set(names)) < len(names):
        raise InputError(f"--model and --against are both {config.model}: give two models.")
    if config.adapter:
        read_adapter(config.adapter)
    for name in names:
        _check(name, config)
    memory = {name: peak_memory(name, config) for name in names} if config.memory else {}
    models = load_all(config, names)
    measured = measure_all(models, config, dtype)
    for name, bytes_ in memory.items():
        measured[name]["peak_memory_bytes"] = bytes_
    record = {"environment": environment(device), "dtype": name_of(dtype), "models": measured}
    if output is not None:
        write_told(output, record, table(record, names[0]))
    return table(record, names[0])


def load_all(config: BenchConfig, names: list[str]) -> dict[str, nn.Module]:
    """Label -> model on the device that is asked for, the reference first."""
    models: dict[str, nn.Module] = {}
    for name in names:
        model = load_model(resolve_model(name), trust_remote_code=config.trust_remote_code)
        models[name] = nn.Module.to(widened(model, dtype_of(config)), device_of(config))
    if config.adapter:
        models |= with_adapter(config)
    return models


def _check(name: str, config: BenchConfig) -> None:
    """Refuse a model that cannot be measured, before any is loaded."""
    source = resolve_model(name)
    check_checkpoint(source)
    model_config = load_config(source, trust_remote_code=config.trust_remote_code, encoder_decoders=True)
    if model_config.is_encoder_decoder and config.adapter:
        raise InputError(
            f"--adapter {config.adapter}: {name} is an encoder-decoder, whose adapter is not timed: leave it out."
        )
    longest = getattr(model_config, "max_position_embeddings", 0)
    needed = max(config.seq_len, PROMPT + config.decode_tokens)
    if longest and needed > longest:
        raise InputError(f"{name}: {needed} tokens are more than its {longest} positions: lower --seq-len.")


def with_adapter(config: BenchConfig) -> dict[str, nn.Module]:
    """The model with its adapter, beside the linears and merged into them."""
    found: dict[str, nn.Module] = {}
    for label in ("LoRA unmerged", "LoRA merged"):
        base = load_model(resolve_model(config.model), trust_remote_code=config.trust_remote_code)
        model = load_adapter(widened(base, dtype_of(config)), str(config.adapter))
        found[label] = nn.Module.to(model if "unmerged" in label else model.merge_and_unload(), device_of(config))
    return found


def measure_all(models: Mapping[str, nn.Module], config: BenchConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Label -> sizes, prefill latency per batch size, decoding speed."""
    record: dict[str, Any] = {}
    for name, model in models.items():
        own = name in (config.model, config.against)
        record[name] = {
            "parameters": parameter_count(model),
            "bytes_on_disk": source_bytes(resolve_model(name)) if own else None,
            "flops_per_prompt": forward_flops(model, config.seq_len),
            "prefill": {},
        }
    for size in map(int, config.batch_sizes):
        told = Progress(0).counting(f"timing {counted(size, 'prompt')} at once", "turns")
        found = forward_latency(
            models, batch=size, seq_len=config.seq_len, repeats=config.repeats, dtype=dtype, told=told
        )
        for name, latency in found.items():
            record[name]["prefill"][str(size)] = latency.to_dict()
    if config.decode_tokens:
        at = Timed(DECODE, 1, PROMPT, config.decode_tokens)
        told = Progress(0).counting("timing decoding", "turns")
        for name, latency in decode_latency(models, at, repeats=config.repeats, dtype=dtype, told=told).items():
            record[name]["decode"] = latency.to_dict() | {
                "tokens_per_s": config.decode_tokens / latency.median_ms * 1e3
            }
    return record


@phase("measuring memory in a fresh process")
def peak_memory(name: str, config: BenchConfig) -> int:
    """Bytes above an empty process that loading a model and one forward pass of the largest batch take at most."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak_memory_here, args=(name, config, sender))
    process.start()
    sender.close()
    try:
        peak = receiver.recv()
    except EOFError:
        peak = None
    process.join()
    if isinstance(peak, tuple):
        raise InputError(*peak)
    if not isinstance(peak, int):
        raise InputError(f"the memory of {name} could not be measured ({peak or 'its process died'}): try --no-memory.")
    return peak


def _peak_memory_here(name: str, config: BenchConfig, sender: Any) -> None:
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the first process shows what is going on
    try:
        dtype, device = dtype_of(config), device_of(config)
        before = reset_peak()
        model = load_model(resolve_model(name), trust_remote_code=config.trust_remote_code)
        nn.Module.to(widened(model, dtype), device)
        ids = torch.zeros(max(map(int, config.batch_sizes)), config.seq_len, dtype=torch.long, device=device)
        with torch.inference_mode(), autocast(device.type, dtype):
            model(**both_sides(model, ids), use_cache=False)
        peak = peak_allocated(device)
        sender.send(peak_bytes() - before if peak is None else peak)
    except InputError as error:
        sender.send((str(error),))
    except Exception as error:
        sender.send(" ".join(str(error).split())[:300])


def table(record: dict[str, Any], reference: str) -> Words:
    """Aligned text: a row a figure, a column a model, ratios to the reference in brackets."""
    models = record["models"]
    rows: list[tuple[str, ...]] = []

    def add(label: str, values: dict[str, float | None], show: Any) -> None:
        base = values[reference]
        cells = []
        for name, value in values.items():
            text = show(value) if value is not None else "-"
            cells.append(f"{text} ({value / base:.2f})" if value is not None and base and name != reference else text)
        if any(value is not None for value in values.values()):
            rows.append((label, *cells))

    add("parameters", {n: m["parameters"] for n, m in models.items()}, lambda v: f"{v:,}")
    add("bytes on disk", {n: m["bytes_on_disk"] for n, m in models.items()}, human_bytes)
    add("peak memory", {n: m.get("peak_memory_bytes") for n, m in models.items()}, human_bytes)
    for size in next(iter(models.values()))["prefill"]:
        found = {n: m["prefill"][size] for n, m in models.items()}
        spread = max(f["spread_ms"] / f["median_ms"] for f in found.values())
        tokens = next(iter(found.values()))["seq_len"]
        label = f"prefill {size} x {tokens} (spread {spread:.0%})"
        add(label, {n: f["median_ms"] for n, f in found.items()}, lambda v: f"{v:.1f} ms")
    add("FLOPs of a prompt", {n: m["flops_per_prompt"] for n, m in models.items()}, lambda v: f"{v / 1e9:.1f} G")
    if any("decode" in m for m in models.values()):
        found = {n: m["decode"] for n, m in models.items()}
        spread = max(f["spread_ms"] / f["median_ms"] for f in found.values())
        label = f"decoding (spread {spread:.0%})"
        add(label, {n: f["tokens_per_s"] for n, f in found.items()}, lambda v: f"{v:.1f} tokens/s")
    return Words(Table(("", *models), rows))
