"""What a run says at its end, as plain text."""

from typing import Any

from ..checkpoint.serving.engines import serving_words
from ..config.formats import FORMATS, STOCK, convertible
from ..data.packing import scored_words
from ..system.progress import human_bytes, human_seconds
from ..system.records import counted
from ..system.terminal.tables import Table, Words

LATER = f"needs trust_remote_code=True, or export --format {' or '.join(convertible(of_pruned=True))}"
NEEDS = {"uniform": FORMATS[STOCK].reader, "protected": LATER, "global": LATER, "search": LATER}


def run_summary(result: dict[str, Any]) -> Words:
    """Before and after, and what the other allocations would have removed."""
    alternatives = ["", *_alternatives(result)] if result["alternatives"] else []
    return Words("", _before_and_after(result), "", *_notes(result), *alternatives)


def adapt_summary(result: dict[str, Any]) -> str:
    """What an adapter run came to."""
    adapter, export, data = result["adapter"], result["export"], result["data"]
    lines = [
        "",
        f"rank {adapter['init_rank']} -> {adapter['mean_rank']:.4g}, {adapter['parameters']:,} parameters, "
        f"{human_bytes(export['bytes'])}; trained on {data['trained_tokens']:,} tokens in "
        f"{data['trained_steps']} steps",
    ]
    if measured := result["adapted"]["perplexity"]:
        before = result["dense"]["perplexity"]
        lines.append(
            f"perplexity {before['perplexity']:.2f} -> {measured['perplexity']:.2f} on {data['evaluation']['data']}"
        )
    if held := result.get("quantised"):
        lines.append(_quantised_note(held))
    lines.append(
        f"verified: read by a fresh process, logits within {export['max_logit_difference']:.2g} of those in memory"
    )
    return "\n".join(lines)


def sparsify_summary(result: dict[str, Any]) -> str:
    """What zeros by a pattern came to."""
    config, zeros, data, export = result["config"], result["zeros"], result["data"], result["export"]
    lines = [
        "",
        f"{config['method']}, {config['pattern']}: {zeros['share']:.2%} of the weights of {zeros['linears']} linears "
        f"are zero ({zeros['of_model']:.1%} of the model)",
    ]
    if measured := result["pruned"]["perplexity"]:
        steps = [result["dense"]["perplexity"], zeros["perplexity_before_training"], measured]
        words = " -> ".join(f"{found['perplexity']:.2f}" for found in steps if found)
        lines.append(f"perplexity {words} on {data['evaluation']['data']}")
    if data["trained_steps"]:
        lines.append(f"trained on {data['trained_tokens']:,} tokens in {data['trained_steps']} steps")
    lines.append(
        f"verified: read by a fresh process, logits within {export['max_logit_difference']:.2g} of those in memory"
    )
    return "\n".join(lines)


def loading_lines(result: dict[str, Any]) -> str:
    """Where the checkpoint is and how to load it."""
    export = result["export"]
    what = "adapter" if export["format"] == "adapter" else "checkpoint"
    return f"\nThe {what} is in {export['folder']}. To load it:\n\n{_loading(export)}\n"


def export_summary(report: dict[str, Any]) -> str:
    """What an export wrote."""
    if "words" in report:
        return str(report["words"])
    return (
        f"{report['folder']}: {report['format']}, {report['parameters']:,} parameters, "
        f"{human_bytes(report['bytes'])}; read back in a fresh process, "
        f"logits within {report['max_logit_difference']:.2g}.\n\n"
        f"{_loading(report)}"
    )


def _loading(export: dict[str, Any]) -> str:
    """What reads a result, and what serves it, of the engines that are known to."""
    serves = export.get("serves_with")
    words = f"\n\nTo serve it:\n\n{_indent(serving_words(serves))}" if serves else ""
    return _indent(export["loads_with"]) + words


def _before_and_after(result: dict[str, Any]) -> Table:
    dense, pruned, speed = result["dense"], result["pruned"], result["speed"]
    rows = [
        ("parameters", f"{dense['parameters']:,}", f"{pruned['parameters']:,}",
         _change(dense["parameters"], pruned["parameters"])),
        ("weights on disk", human_bytes(dense["bytes"]), human_bytes(pruned["bytes"]),
         _change(dense["bytes"], pruned["bytes"])),
    ]  # fmt: skip
    if "dense" in speed:
        before, after = f"{speed['dense']['median_ms']:.1f} ms", f"{speed['pruned']['median_ms']:.1f} ms"
        ratio = speed["speedup"]
        rows.append(
            ("forward pass", before, after, f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower")
        )
    elif "pruned" in speed:
        rows.append(("forward pass", "not loaded", f"{speed['pruned']['median_ms']:.1f} ms", ""))
    if pruned["perplexity"] and not dense["perplexity"]:
        rows.insert(0, ("perplexity", "not loaded", f"{pruned['perplexity']['perplexity']:.2f}", ""))
    if dense["perplexity"]:
        before, after = dense["perplexity"]["perplexity"], pruned["perplexity"]["perplexity"]
        rows.insert(0, ("perplexity", f"{before:.2f}", f"{after:.2f}", f"{after / before:.3f} x"))
    return Table(("", "before", "after", "change"), rows)


def _notes(result: dict[str, Any]) -> list[str]:
    """The conditions without which the figures are no figures."""
    sparsity, data = result["sparsity"], result["data"]
    notes = [
        f"removed: {_layers(result)}{sparsity['reached']:.2%} of the prunable parameters "
        f"({sparsity['model']:.1%} of the model), " + _training(result),
    ]
    if speed := result["speed"].get("pruned"):
        notes.append(
            f"forward pass: batch {speed['batch']} x {speed['seq_len']} tokens, {speed['dtype']}, median of "
            f"{speed['repeats']}, alternating; by FLOPs {result['speed']['flop_speedup']:.2f}x"
        )
    else:
        notes.append(f"the result was not measured: {result['not_measured']}")
    if measured := result["pruned"]["perplexity"]:
        notes.append(
            f"perplexity: {data['evaluation']['data']}, {measured['tokens_scored']:,} tokens {scored_words(measured)}, "
            f"{measured['dtype']}"
        )
    if held := result.get("quantised"):
        notes.append(_quantised_note(held))
    if result["target"]["parameters"] is not None:
        notes.append(
            f"asked for {result['target']['words']}: {result['pruned']['parameters']:,} parameters, "
            f"{human_bytes(result['pruned']['bytes'])} on disk"
        )
    notes += _time(result)
    if search := result.get("search"):
        notes.append(
            f"layers' shares: searched among {search['candidates']} candidates on {search['tokens']:,} tokens in "
            f"{human_seconds(search['seconds'])}; KL to the model before the cut {search['starts']['global']:.3g} "
            f"(global) -> {search['kl']:.3g} nats per token, before training made up for it"
        )
    if stored := result["dense"].get("stored_bytes"):
        notes.append(
            f"weights on disk: both in {result['dense']['dtype']}; the files of the model that was pruned take "
            f"{human_bytes(stored)}"
        )
    export = result["export"]
    notes.append(
        f"verified: read by a fresh process, logits within {export['max_logit_difference']:.2g} of those in memory"
    )
    return notes


def _time(result: dict[str, Any]) -> list[str]:
    """Asked, predicted and measured speed-up, where a time was asked for."""
    if not (found := result.get("time")):
        return []
    asked, predicted, measured = found["asked"], found["predicted"], found["measured"]
    words = f"not measured ({asked['at']})"
    if "speedup" in measured:
        words = (
            f"measured {measured['speedup']:.3g}x ({asked['at']}: {measured['dense_ms']:.4g} -> "
            f"{measured['pruned_ms']:.4g} ms, medians of {measured['repeats']}, alternating)"
        )
    return [f"asked for {asked['words']} ({asked['speedup']:.3g}x): predicted {predicted['speedup']:.3g}x, {words}"]


def _layers(result: dict[str, Any]) -> str:
    """Which layers are gone, where whole ones are."""
    gone = [str(number) for number, shape in enumerate(result["shapes"]) if not any(shape.values())]
    return f"layers {', '.join(gone)} of {len(result['shapes'])} (counted from 0), " if gone else ""


def _training(result: dict[str, Any]) -> str:
    data = result["data"]
    if (tokens := data.get("calibration_tokens")) is not None:
        return f"no training: {counted(result['config']['cuts'], 'cut')} by {tokens:,} tokens each"
    return f"trained on {data['trained_tokens']:,} tokens in {data['trained_steps']} steps"


def _quantised_note(held: dict[str, Any]) -> str:
    """What was trained on, where the base was quantised; all other figures are of weights that are not."""
    had = f" (perplexity {held['perplexity']['perplexity']:.2f})" if held["perplexity"] else ""
    return f"trained on the base in {held['load_in']}{had}; before and after are of weights that are not quantised"


def _alternatives(result: dict[str, Any]) -> list[str | Table]:
    chosen = result["config"]["allocation"]
    rows = [
        (f"  {name}", f"{lost:.2%}" if isinstance(lost, float) else "n/a",
         NEEDS[name] + ("  <- this run" if name == chosen else ""))
        for name, lost in result["alternatives"].items()
    ]  # fmt: skip
    words = "Importance that each allocation removes at this sparsity (from the scores, not trained):"
    return [words, Table(("", "", ""), rows, align="lrl")]


def _change(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}"


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
