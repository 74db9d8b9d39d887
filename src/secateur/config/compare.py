"""The options of `secateur compare` beside those of `prune`. Importing this module imports no torch."""

from dataclasses import dataclass

from .options import choice_faults, option


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What `secateur compare` can be told beside the options of `prune`, which may have several values each."""

    evaluate_on: tuple[str, ...] = option("texts to measure perplexity on, after each run", group="comparison")
    output: str = option("folder for the cells' records, the tables and the plot", group="comparison")
    cells: tuple[str, ...] = option(
        "more runs, each as 'name: option=value option=value', once for every value of the axes that it leaves out; "
        "axes that say conditions alone (lr, seed, sparsity, steps, ...) then make no runs of their own; with method= "
        "or pattern= a run of sparsify",
        (),
        group="comparison",
    )
    reference: str | None = option(
        "with several seeds: the cell that the others are compared with, seed by seed; default: the first one pruned",
        None,
        group="comparison",
    )
    baselines: tuple[str, ...] = option(
        "what to compare with: dense (untrained), dense+lora (trained, not pruned)",
        ("dense", "dense+lora"),
        group="comparison",
    )
    keep_checkpoints: bool = option("write each cell's checkpoint, verified", False, group="comparison")
    allow_different: bool = option("compare cells of different data, steps or budget", False, group="comparison")

    def faults(self) -> list[str]:
        """All faults that can be known from the options alone."""
        found = choice_faults(self)
        for name in self.baselines:
            if name not in ("dense", "dense+lora"):
                found.append(f"--baselines {name}: choose from dense, dense+lora.")
        return found
