"""The page of one run."""

from functools import partial

from ..report import facts, plots, quality, recipe, units
from .parts import FLAT, WIDE, Plot, environment, has, quality_plots, starting
from .runs import Run, text


def run_page(run: Run, found: dict[str, Plot]) -> str:
    """HTML of the page of one run."""
    measures = quality.measures(run)
    return environment().get_template("run.html").render(
        title=facts.title(run),
        subtitle=facts.subtitle(run),
        notices=[*run.notices, *quality.unmatched(run)],
        headline=facts.headline(run),
        measures=measures,
        leading=quality.headline(measures),
        warnings=quality.warnings(run),
        layers=units.layers(run),
        layers_over_time=units.layers_over_time(run),
        share_left=units.share_left,
        cuts=units.cuts(run),
        generations=facts.generations(run),
        command=recipe.command(run),
        options=recipe.options(run),
        load=text(run.result, "export", "loads_with"),
        data=facts.data_rows(run),
        environment=facts.environment(run),
        plots=found,
        score_plots=starting(found, "scores-"),
        quality_plots=starting(found, "quality-"),
    )  # fmt: skip


def run_plots(run: Run) -> dict[str, Plot]:
    """The plots for which the run has records, by name."""
    steps = [cut.step for cut in units.cuts(run)]
    found = []
    if has(run, "loss"):
        draw = partial(plots.training, run.metrics, steps)
        sinking = "rank" if has(run, "rank") else "sparsity"
        cuts = {0: "", 1: ", with its one cut"}.get(len(steps), f", with its {len(steps)} cuts")
        found.append(Plot("training", draw, WIDE, f"Loss and {sinking} over the run{cuts}."))
    if has(run, "eval_perplexity"):
        draw = partial(plots.evaluations, run.metrics)
        found.append(Plot("evaluations", draw, FLAT, "Perplexity measured while the run went on."))
    for kind in units.kinds(run):
        layers = [layer for layer in units.scores(run, kind) if layer.kept or layer.gone]
        if not any(value > 0 for layer in layers for value in layer.kept + layer.gone):
            continue
        word = units.words(kind)
        if any((layer.threshold or 0) > 0 and len(layer.kept + layer.gone) > plots.FEW_UNITS for layer in layers):
            caption = (
                f"Scores of {word} before the first cut. Had these alone decided, all that went would lie to the left "
                "of the threshold; later scores moved some. The outermost bars hold what lies beyond."
            )
            draw = partial(plots.score_histogram, layers, word)
            found.append(Plot(f"scores-{len(found)}", draw, FLAT, caption))
        draw = partial(plots.score_layers, layers, word)
        found.append(
            Plot(
                f"scores-{len(found)}",
                draw,
                FLAT,
                f"Scores of {word} before the first cut, layer by layer, on a logarithmic scale.",
            )
        )
    return {plot.name: plot for plot in [*found, *quality_plots([run])]}
