"""Records of a comparison's cells, kept without private paths, and put back where `secateur compare` looks for them.

    python benchmarks/criteria/comparison_records.py keep runs/criteria-50 docs/results/criteria-50
    python benchmarks/criteria/comparison_records.py restore runs/criteria-50 docs/results/criteria-50

SECATEUR_DATA is the folder that records do not name. A cell whose record is there again is not run again.
`keep` adds the training's last losses: iterative cells of one seed see the same batches in the same steps; a one-shot
cell, which scores on the first ones and then starts with them again, is that much behind.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from secateur.comparison.recorded import RECORD, read_record
from secateur.system.records import write_json

LEFT_OUT = ("checkpoint", "units")
"""What is of use only beside the run's own files, and which units went: megabytes of each cell."""
LAST_PART = 4
"""The last fourth of the steps is after the last cut, whatever the order."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("keep", "restore"))
    parser.add_argument("runs", type=Path, help="the comparison's --output")
    parser.add_argument("records", type=Path, help="folder with one CELL.json each")
    given = parser.parse_args()
    data = os.environ.get("SECATEUR_DATA") or sys.exit("set SECATEUR_DATA to the folder of the data sets")
    data = data.rstrip("/")
    if given.way == "restore":
        restore(given.runs, given.records, data)
    else:
        keep(given.runs, given.records, data)


def keep(runs: Path, records: Path, data: str) -> None:
    """One file a cell; those of cells that `runs` does not have stay."""
    records.mkdir(parents=True, exist_ok=True)
    for path in sorted(runs.glob(f"*/{RECORD}")):
        record = {key: value for key, value in read_record(path).items() if key not in LEFT_OUT}
        record |= last_losses(path.parent, record)
        kept = records / f"{path.parent.name}.json"
        write_json(kept, record)
        kept.write_text(kept.read_text().replace(data, "$SECATEUR_DATA"))


def last_losses(cell: Path, record: dict[str, Any]) -> dict[str, float]:
    """Mean training loss of the last steps, in nats a token; none where a teacher's logits are a part of it."""
    path = cell / "metrics.jsonl"
    if not path.is_file() or record["config"].get("distill"):
        return {}
    losses = [json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()]
    steps = record["config"].get("steps") or len(losses)
    return {"last_losses": mean(losses[-(steps // LAST_PART) :])}


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Cell -> record, of cells that came to their end: of kept records, or of a comparison's own folder."""
    found = {path.stem: read_record(path) for path in folder.glob("*.json") if not path.stem.startswith("comparison")}
    found |= {path.parent.name: read_record(path) for path in folder.glob(f"*/{RECORD}")}
    return {name: found[name] for name in sorted(found) if found[name]["status"] == "done"}


def restore(runs: Path, records: Path, data: str) -> None:
    """A folder a cell; what `runs` has already stays as it is."""
    for kept in sorted(records.glob("*.json")):
        path = runs / kept.stem / RECORD
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(kept.read_text().replace("$SECATEUR_DATA", data))


if __name__ == "__main__":
    main()
