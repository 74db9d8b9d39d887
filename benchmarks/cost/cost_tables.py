"""The tables of cost.py."""

from typing import Any

from cost_cases import NOTES

from secateur.system.progress import human_bytes
from secateur.system.records import markdown_table


def tables(known: dict[str, Any]) -> str:
    """Markdown of all parts that a file holds."""
    blocks = []
    for title, parts in known.items():
        blocks.append(f"## {title}")
        if "steps" in parts:
            memory = parts.get("memory", {}).get("rows", {})
            blocks.append(steps_table(parts["steps"]["rows"], memory))
        if "memory" in parts:
            blocks.append(memory_table(parts["memory"]["rows"]))
        for name, make in (("schedule", schedule_table), ("ranks", ranks_table), ("inference", inference_table)):
            if name in parts:
                blocks.append(make(parts[name]["rows"]))
        if "profile" in parts:
            blocks.append(profile_table(parts["profile"]["rows"]))
    return "\n\n".join(blocks)


def steps_table(rows: dict[str, Any], memory: dict[str, Any]) -> str:
    """One row per case; ratios to LoRA alone are medians of pairs of neighbouring steps."""
    lines = []
    for name, row in rows.items():
        peak = row.get("peak_bytes", memory.get(name, {}).get("peak_bytes"))
        weights = row.get("weight_bytes")
        if "failed" in row:
            lines.append((noted(name), row["failed"], "–", "–", "–", "–"))
            continue
        lines.append(
            (
                noted(name),
                f"{row['seconds']:.3f} ± {row['spread'] / 2:.3f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['over_plain']:.3f}" if "over_plain" in row else "–",
                human_bytes(peak) if peak else "not measured",
                f"{peak / weights:.2f}" if peak and weights else "–",
            )
        )
    return markdown_table(lines, ("", "s/iter", "tokens/s", "over plain LoRA", "peak memory", "over the weights"))


def memory_table(rows: dict[str, Any]) -> str:
    """Peaks by case; of a whole run, also of its cuts."""
    lines = []
    for name, row in rows.items():
        if "failed" in row:
            lines.append((noted(name), row["failed"], "–", "–", "–"))
            continue
        apart = [row.get(key) for key in ("peak_of_steps_bytes", "peak_of_cuts_bytes")]
        over = f"{row['peak_bytes'] / row['weight_bytes']:.2f}"
        peak = human_bytes(row["peak_bytes"])
        lines.append((noted(name), peak, over, *(human_bytes(value) if value else "–" for value in apart)))
    return markdown_table(lines, ("", "peak memory", "over the weights", "of steps", "of cuts"))


def noted(name: str) -> str:
    """A row's name, with what has to be known of the case."""
    case = max((case for case in NOTES if name == case or name.startswith(f"{case}, ")), key=len, default=None)
    return f"{name} ({NOTES[case]})" if case else name


def schedule_table(found: dict[str, Any]) -> str:
    """Masked against shrinking over a whole run."""
    lines = [
        (name, f"{found['total_seconds'][name]:.1f} s", f"{flops / 1e12:.1f} TFLOP",
         f"{min(found['seconds'][name][-3:]):.2f} s")
        for name, flops in found["flops"].items()
    ]  # fmt: skip
    saved = found["saved"]
    words = (
        f"{found['steps']} steps to {found['sparsity']:.1%}, cuts at {found['cuts']}: shrinking saves "
        f"{saved['time']:.1%} of the time and {saved['flops']:.1%} of the FLOPs ({saved['ratio']:.2f})."
    )
    return markdown_table(lines, ("", "whole run", "FLOPs", "a step at the end")) + "\n\n" + words


def ranks_table(rows: dict[str, Any]) -> str:
    """Adapters by rank."""
    lines = [
        (name, f"{row['seconds']:.3f} ± {row['spread'] / 2:.3f}", human_bytes(row["state_bytes"]))
        for name, row in rows.items()
        if name != "ratios"
    ]
    words = "; ".join(f"{name} {value:.3f}" for name, value in rows["ratios"].items())
    return markdown_table(lines, ("", "s/iter", "LoRA, gradients, moments")) + f"\n\n{words}."


def inference_table(rows: dict[str, Any]) -> str:
    """Prefill of dense, merged and unmerged."""
    lines = [
        (name, f"{row['median_ms']:.1f} ± {row['spread_ms'] / 2:.1f}", f"{row['time_over_dense']:.3f}",
         f"{row['flops_over_dense']:.3f}", f"{row['time_over_dense'] / row['flops_over_dense']:.2f}")
        for name, row in rows.items()
    ]  # fmt: skip
    return markdown_table(lines, ("prefill, batch 1", "ms", "over dense", "FLOPs over dense", "time over FLOPs"))


def profile_table(rows: dict[str, Any]) -> str:
    """Shares of a step by kind of operator."""
    kinds = list(next(iter(rows.values()))["shares"])
    lines = [(kind, *(f"{row['shares'][kind]:.1%}" for row in rows.values())) for kind in kinds]
    lines.append(("all operators", *(f"{row['operator_seconds']:.2f} s" for row in rows.values())))
    return markdown_table(lines, ("operators of a step", *rows))
