"""A plan as text for a terminal."""

from typing import Any

from ..system.progress import human_bytes, human_seconds
from ..system.terminal.tables import Table, Words, spaced

Blocks = list[str | Table]

PARTS = (
    "weights", "unpacked", "lora", "gradients", "optimizer", "activations", "logits", "teacher", "scoring", "moments",
    "masks", "allocator", "refit", "search", "total",
)  # fmt: skip
OPTIONAL = {
    "unpacked": "the largest linear, as the backward pass multiplies by it",
    "teacher": "the dense model's logits, which the loss compares with",
    "scoring": "gradients of the weights, kept until the step is scored",
    "search": "the model's logits before the first cut, which the search compares with",
    "refit": "what a cut that refits in sequence holds, beyond what a step does",
    "moments": "second moments of the inputs of o and down: averages, and the step's own",
    "masks": "what masks are put on, beside what they make of it: they learn from both",
}
"""Parts that most runs do not have."""
DEVICE_PARTS = ("weights", "gathered", *PARTS[1:])


def plan_text(record: dict[str, Any]) -> Words:
    """What goes, sizes, memory and time."""
    head = (
        f"{record['model']}: {record['sparsity']:.2%} of {record['prunable_parameters']:,} prunable parameters go "
        f"({record['target']['words']})"
    )
    blocks: list[Blocks] = [[head], _asked_time(record), _units(record), _sizes(record)]
    blocks.append(_memory(record) if record["devices"]["count"] == 1 else _devices(record))
    blocks += [_time(record["time"]), _warning(record)]
    return spaced(blocks)


def _units(record: dict[str, Any]) -> Blocks:
    lines: Blocks = []
    for kind, found in record["units"].items():
        sizes = " or ".join(map(str, found["units_per_layer"]))
        lines.append(
            f"  {found['layers']} layers x {sizes} {kind} units of {found['parameters_per_unit']:,} parameters"
        )
    if record["layers"]:
        lines.append(f"  {record['layers']}")
    if record["legal_kv_heads"]:
        heads = ", ".join(map(str, record["legal_kv_heads"]))
        lines.append(f"  KV heads that a stock checkpoint may have: {heads}")
    if record["ffn_widths"]["multiple_of"]:
        lines.append(f"  FFN widths: {record['ffn_widths']['words']}")
    return lines


def _asked_time(record: dict[str, Any]) -> Blocks:
    """What a target in time takes, by the cost table."""
    if not (found := record.get("speed")):
        return []
    lines: Blocks = [
        f"{found['at']}: {found['dense_ms']:.4g} ms -> {found['pruned_ms']:.4g} ms, {found['speedup']:.3g}x "
        f"({found['table']})",
        *(f"  {line}" for line in found["layers"]),
    ]
    return lines


def _sizes(record: dict[str, Any]) -> Blocks:
    before, after = record["before"], record["after"]
    rows = [
        ("parameters", f"{before['parameters']:,}", f"{after['parameters']:,}"),
        ("weights on disk", human_bytes(before["bytes"]), human_bytes(after["bytes"])),
        ("decoder, a prompt", _flops(before["decoder_flops"]), _flops(after["decoder_flops"])),
    ]
    return [Table(("", "before", "after"), rows)]


def _memory(record: dict[str, Any]) -> Blocks:
    memory = record["memory"]
    rows = [(f"  {name}", human_bytes(memory[name])) for name in PARTS if name not in OPTIONAL or memory[name]]
    return [
        f"Memory at the peak of a {_step(record)} step ({memory['device']}, {memory['dtype']}), about:",
        Table(("", ""), rows),
        *_held(record),
        *_export(record),
    ]


def _step(record: dict[str, Any]) -> str:
    return "training" if record["time"]["trains"] else "scoring"


def _export(record: dict[str, Any]) -> list[str]:
    """What writing the result takes, and how it takes less."""
    found, total = record["export"], record["memory"]["total"]
    line = f"  writing the result takes about {human_bytes(found['bytes'])}, on the device and the host together"
    if found["bytes"] <= max(total, found["streamed_bytes"]):
        return [line]
    return [f"{line}: more than training.", f"  --stream-export takes about {human_bytes(found['streamed_bytes'])}."]


def _held(record: dict[str, Any]) -> list[str]:
    """What there is to know of a quantised base, and of parts that most runs do not have."""
    words = [f"  {record[key]}" for key in ("held", "no_refit") if record.get(key)]
    return words + [f"  {name}: {what}" for name, what in OPTIONAL.items() if record["memory"][name]]


def _devices(record: dict[str, Any]) -> Blocks:
    devices, memory, available = record["devices"], record["memory"], human_bytes(record["available_bytes"])
    ways = [devices["replicated"], devices["sharded"]]
    parts = [name for name in DEVICE_PARTS if name not in OPTIONAL or memory[name]]
    rows = [(f"  {name}", *(human_bytes(way[name]) for way in ways)) for name in parts]
    rows.append((f"  fits in {available}", *("yes" if way["fits"] else "no" for way in ways)))
    sent = devices["sent_bytes_per_step"]
    rows.append(("  sent per step: LoRA's gradients", *(human_bytes(sent[way]["all_reduce"]) for way in sent)))
    rows.append(("  sent per step: weights", "0 B", human_bytes(sent["sharded"]["all_gather"])))
    seconds = devices["seconds"]
    rows += [
        (f"  {words}", *(_seconds(seconds[way][key]) for way in sent))
        for key, words in (("first_step", "first step"), ("run", record["time"]["words"]))
        if key in seconds["sharded"]
    ]
    lines: Blocks = [
        f"Memory of each of {devices['count']} devices at the peak of a {_step(record)} step ({memory['dtype']}), "
        "about:",
        Table(("", "replicated", "sharded"), rows),
        "  replicated: every device holds the whole model, as the commands do; sharded: each holds a share of the "
        "frozen base (FSDP2), as secateur.parallel.shard_base does in a loop of your own",
        f"  seconds: each device its own batch, and traffic at {human_bytes(devices['link_bytes_per_s'])}/s "
        "(--link-bandwidth) on top of it, none of it hidden",
    ]
    if devices["not_sharded"]:
        lines.append(f"  {devices['not_sharded']} is not sharded, so the second column is not to be had")
    lines += _held(record)
    if memory["allocator"]:
        lines.append("  allocator: seen on CPUs; a GPU has no such part")
    return lines


def _time(time: dict[str, Any]) -> Blocks:
    flops, seconds = time["flops"], time["seconds"]
    names = {
        "first_step": "first step",
        "last_step": "last step",
        "cut": "a cut",
        "search": "the search",
        "run": time["words"],
    }
    rows = [(f"  {words}", _flops(flops[key]), _seconds(seconds[key])) for key, words in names.items() if key in flops]
    where, how = f"this machine ({time['device']})", "just measured in products of the model's shapes"
    if not time["measured"]:
        where, how = "a device", "as --device-tflops says"
    lines: Blocks = [
        f"Time on {where} ({time['dtype']}), a rough estimate:",
        Table(("", "", ""), rows),
        f"  from {time['matmul_flops_per_s'] / 1e9:,.0f} GFLOP/s, {how}, and {time['training_efficiency']:.0%} of that "
        "while training, as one CPU had it: half or twice the time is possible. Loading, evaluation, writing and "
        "traffic between devices come on top.",
    ]
    return lines if "run" in flops else [*lines, "  Give --steps for the whole run."]


def _warning(record: dict[str, Any]) -> Blocks:
    devices, available = record["devices"], human_bytes(record["available_bytes"])
    if devices["replicated"]["fits"] or (devices["count"] > 1 and devices["sharded"]["fits"]):
        return []
    return [
        f"WARNING: that is more than the {available} at hand. Raise --accumulation "
        "(smaller micro-batches), lower --seq-len or add --gradient-checkpointing."
    ]


def _flops(count: float) -> str:
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e6:.1f} MFLOP"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else human_seconds(seconds)
