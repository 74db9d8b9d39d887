"""Whether `run.yaml` repeats a run to the bit: the quickstart, then the same from the options that it wrote.

    python benchmarks/reliability/rerun.py build/rerun            # the quickstart as it is: twice 5 minutes, 2 cores
    python benchmarks/reliability/rerun.py build/rerun --steps 4  # a shorter one

Prints, and writes to `--record` (docs/results/rerun.json), the sha256 of every file of both checkpoints. A run that is
there already is not made again. Ends with 1 where weights or losses differ.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OF_A_CHECKPOINT = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "units.json")
OF_A_MACHINE = ("seconds", "tokens_per_s", "peak_memory_bytes")
"""Figures of a step that no run repeats."""


def run(arguments: list[str], output: Path) -> float:
    """Seconds that a command took, or 0 where its result is there."""
    if (output / "result.json").is_file():
        return 0.0
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "secateur", *arguments, "--output", str(output)], check=True)
    return time.perf_counter() - started


def sums(folder: Path) -> dict[str, str]:
    """File of a checkpoint -> its sha256."""
    found = sorted(path for pattern in OF_A_CHECKPOINT for path in folder.glob(pattern))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def steps(folder: Path) -> list[dict[str, Any]]:
    """What the run was at each step, without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_A_MACHINE} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for both runs")
    parser.add_argument("--steps", type=int, help="of the quickstart; by default its own")
    parser.add_argument("--record", type=Path, default=Path("docs/results/rerun.json"))
    given = parser.parse_args()
    first, second = given.out / "quickstart", given.out / "again"
    given.out.mkdir(parents=True, exist_ok=True)
    short = ["--steps", str(given.steps)] if given.steps else []
    seconds = [run(["quickstart", *short], first), run(["prune", "--config", str(first / "run.yaml")], second)]
    one, other = sums(first), sums(second)
    result = json.loads((first / "result.json").read_text(encoding="utf-8"))
    record = {
        "commands": [" ".join(["secateur quickstart", *short, "--output OUT"]),
                     "secateur prune --config OUT/run.yaml --output AGAIN"],
        "steps": result["data"]["steps"], "trained_tokens": result["data"]["trained_tokens"],
        "seconds": [round(each, 1) for each in seconds], "same_files": one == other,
        "same_steps": steps(first) == steps(second), "sha256": one, "environment": result["environment"],
    }  # fmt: skip
    record |= {} if one == other else {"sha256_again": other}
    given.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name in one.keys() | other.keys():
        print(f"{'same' if one.get(name) == other.get(name) else 'DIFFERS':8} {one.get(name)}  {name}")
    print(f"steps: {'same' if record['same_steps'] else 'DIFFER'}")
    weights = all(one.get(name) == other.get(name) for name in one | other if name.endswith(".safetensors"))
    sys.exit(0 if weights and record["same_steps"] else 1)


if __name__ == "__main__":
    main()
