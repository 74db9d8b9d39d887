"""Pruned models as drafts of their dense parent: acceptance, tokens per step, speed here and at a 7B pair's costs.

    python benchmarks/deploy/drafting.py docs/results/drafting 0.20=OUT20 0.35=OUT35 0.50=OUT50 --against DENSE

Each result is measured by `secateur bench --draft` with 2, 4 and 8 proposals a round; a record that is there is not
measured again, so it can be stopped and started. Then the table is printed. Takes about 4 minutes a record on one core.
"""

import argparse
import json
from pathlib import Path

from secateur.config.options import build
from secateur.config.speed import BenchConfig
from secateur.evaluation.drafting import bench_draft
from secateur.system.records import markdown_table

DRAFTED = (2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the records")
    parser.add_argument("results", nargs="+", help="LABEL=FOLDER of each pruned model")
    parser.add_argument("--against", required=True, help="the dense model")
    parser.add_argument("--prompts", default="16")
    parser.add_argument("--data", default="stdlib-docs:held-out")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for label, folder in (result.split("=", 1) for result in given.results):
        for drafted in DRAFTED:
            place = given.output / f"{label}-{drafted}.json"
            if not place.is_file():
                options = {"draft": folder, "against": given.against, "drafted": str(drafted), "output": str(place)}
                bench_draft(build(BenchConfig, options | {"prompts": given.prompts, "prompt_data": given.data}))
            record = json.loads(place.read_text(encoding="utf-8"))
            best = record["best_at_7b"]
            rows.append(
                (
                    label,
                    str(drafted),
                    f"{record['acceptance']:.1%}",
                    f"{record['acceptance_each']:.1%}",
                    f"{record['tokens_per_target_step']:.2f}",
                    f"{record['speed_up']:.2f}",
                    f"{record['cost_at_7b']:.2f}",
                    f"{record['speed_up_at_7b']:.2f}",
                    f"{best['speed_up']:.2f} ({best['drafted']})",
                )
            )
    header = ("gone", "proposals", "taken", "each", "tokens per step", "here", "cost at 7B", "at 7B", "best at 7B")
    print(markdown_table(rows, header))


if __name__ == "__main__":
    main()
