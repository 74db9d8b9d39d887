"""Sections of `benchmarks/gpu.sh`, each in processes of its own with a limit of time; one that fails leaves the rest.

    python benchmarks/cost/gpu.py build/gpu            # on the accelerator that PyTorch finds
    python benchmarks/cost/gpu.py --tiny build/gpu     # tiny shapes on the CPU: whether it runs, not what it costs

Writes FOLDER/report.md and FOLDER/report.json, after every section anew.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL = "smollm2-135m-instruct"
TASK = ["--seq-len", "256", "--batch-size", "8", "--eval-tokens", "8192"]
TINY_TASK = ["--seq-len", "64", "--batch-size", "2", "--eval-tokens", "512", "--eval-seq-len", "128"]


@dataclass(frozen=True)
class Place:
    """Where a section works, and how large."""

    folder: Path
    tiny: bool

    @property
    def cost(self) -> list[str]:
        shape = ["--shape", "tiny", "--batch", "1", "--seq-len", "16", "--rounds", "1"]
        real = ["--shape", "7b", "--batch", "1", "--seq-len", "512", "--rounds", "9"]
        return program("cost/cost.py", *(shape if self.tiny else real), "--json", str(self.folder / "cost.json"))

    @property
    def model(self) -> str:
        """The embedded model where it can be had, else one that is made."""
        made = self.folder / "model"
        return str(made) if made.is_dir() else MODEL

    def task(self, steps: int) -> list[str]:
        text = self.folder / "text.txt"
        data = ["--data", str(text)] if text.exists() else ["--data", "stdlib-docs:train"]
        held_out = [] if text.exists() else ["--eval-data", "stdlib-docs:held-out"]
        size = TINY_TASK if self.tiny else TASK
        steps = 4 if self.tiny else steps
        frequency = 1 if self.tiny else 5
        more = ["--steps", str(steps), "--frequency", str(frequency), "--overwrite"]
        return ["--model", self.model, *data, *held_out, *(size if held_out else size[:4]), *more]


@dataclass(frozen=True)
class Section:
    """What one part of the report is made of."""

    title: str
    limit_s: int
    command: Callable[[Place], list[str]]
    needs: str = ""
    """A package without which it is left out."""


def program(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE.parent / name), *arguments]


def secateur(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "secateur", *arguments]


def output(place: Place, name: str) -> list[str]:
    return ["--output", str(place.folder / name)]


def bench(place: Place) -> list[str]:
    tiny = ["--seq-len", "64", "--decode-tokens", "8", "--no-memory"]
    size = tiny if place.tiny else ["--seq-len", "512", "--decode-tokens", "64"]
    models = ["--model", str(place.folder / "pruned"), "--against", place.model]
    return secateur("bench", *models, *size, "--repeats", "5", "--overwrite", *output(place, "bench.json"))


STEPS = ["--parts", "steps", "--checkpointing", "off", "--cases", "plain LoRA", "lora", "gate"]
SECTIONS = {
    "machine": Section("The machine", 60, lambda place: secateur("--version", "--verbose")),
    "model": Section("A model to work on", 100, lambda place: program("cost/gpu.py", "--make", str(place.folder))),
    "prune": Section(
        "A whole run of prune",
        120,
        lambda place: secateur("prune", *place.task(60), "--sparsity", "0.5", *output(place, "pruned")),
    ),
    "bench": Section("Inference of its result", 90, bench),
    "adapt": Section(
        "A whole run of adapt",
        90,
        lambda place: secateur(
            "adapt", *place.task(40), "--init-rank", "64", "--rank", "16", *output(place, "adapter")
        ),
    ),
    "steps": Section(
        "Steps: seconds and peak memory", 120, lambda place: [*place.cost, *STEPS, "taylor", "taylor-accumulated"]
    ),
    "inference": Section("Prefill at half the size", 60, lambda place: [*place.cost, "--parts", "inference"]),
    "schedule": Section(
        "A run to 50 %, masked and shrinking",
        90,
        lambda place: [*place.cost, "--parts", "schedule", "--steps", "4" if place.tiny else "20"],
    ),
    "ranks": Section("Adapters of a high and a low rank", 60, lambda place: [*place.cost, "--parts", "ranks"]),
    "quantised": Section(
        "Quantised bases", 120, lambda place: [*place.cost, "--load-in", "8bit", "4bit", *STEPS], needs="bitsandbytes"
    ),
    "fsdp": Section(
        "FSDP2 on one device",
        60,
        lambda place: program("scale/one_device.py", "--json", str(place.folder / "fsdp.json")),
    ),
}
"""Name -> section, in the order in which they run: what matters most comes first."""
TOTAL_S = 570
"""No section starts after so many seconds, and none runs longer."""


def run(name: str, place: Place, left_s: float) -> dict[str, Any]:
    """What a section came to; its output goes into NAME.log."""
    section, began = SECTIONS[name], time.monotonic()
    found: dict[str, Any] = {"title": section.title, "seconds": 0.0}
    if section.needs and not importlib.util.find_spec(section.needs):
        return found | {"status": f"left out: {section.needs} is not installed"}
    limit = min(section.limit_s, left_s)
    if limit <= 0:
        return found | {"status": f"left out: {TOTAL_S} s are over"}
    command = section.command(place)
    with (place.folder / f"{name}.log").open("w", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command[1:])}\n")
        file.flush()
        status = finish(command, file, limit)
    return found | {"status": status, "seconds": round(time.monotonic() - began, 1)}


def finish(command: list[str], file: Any, limit_s: float) -> str:
    """Run a command, and end it with all that it started when its time is over."""
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "110"}
    process = subprocess.Popen(
        command,
        stdout=file,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {limit_s:.0f} s"
    return "done" if code == 0 else f"failed with exit code {code}"


def report(folder: Path, sections: dict[str, Any]) -> None:
    """What there is, as Markdown and as JSON."""
    places = {name: folder / f"{name}.json" for name in ("cost", "bench", "fsdp")}
    places |= {name: folder / name / "result.json" for name in ("pruned", "adapter")}
    records = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in places.items() if path.exists()}
    whole = {"sections": sections, "records": records}
    (folder / "report.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    rows = [f"| {each['title']} | {each['status']} | {each['seconds']:.0f} |" for each in sections.values()]
    blocks = ["# secateur on this machine", "\n".join(["| section | came to | seconds |", "|---|---|---:|", *rows])]
    for name, each in sections.items():
        log = folder / f"{name}.log"
        said = log.read_text(encoding="utf-8", errors="replace").replace(str(folder), "OUT") if log.exists() else ""
        if said and not (each["status"] == "done" and "cost.py" in said.split("\n")[0]):  # whose tables are below
            lines = [line.rstrip().rsplit("\r", 1)[-1] for line in said.strip().split("\n")]
            blocks.append("\n".join([f"## {each['title']}\n", "```", *lines[-45:], "```"]))
    if "cost" in records:
        sys.path.insert(0, str(HERE))
        from cost_tables import tables

        blocks.append(tables(records["cost"]))
    (folder / "report.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def make_model(folder: Path, tiny: bool) -> None:
    """Fetch the embedded model, or write one with random weights where that cannot be had."""
    from secateur.data.embedded import embedded_model_dir
    from secateur.system.errors import InputError

    try:
        if not tiny:
            print(f"{MODEL} is in {embedded_model_dir(progress=print)}")
            return
        print("a tiny model is made")
    except InputError as error:
        print(f"{MODEL} cannot be had ({error}): a model is made")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = re.findall(r"\w+", "a run says what the machine takes and what it costs to prune a model while it learns")
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unk>", *dict.fromkeys(words)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>", unk_token="<unk>")
    sizes = (128, 256, 2, 4) if tiny else (576, 1536, 30, 9)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=sizes[0], intermediate_size=sizes[1], num_hidden_layers=sizes[2],
        num_attention_heads=sizes[3], num_key_value_heads=sizes[3] // (2 if tiny else 3), max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = [" ".join(words[number % 7 :] + words[: number % 5]) for number in range(200 if tiny else 20_000)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/gpu"))
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--make", action="store_true", help="only fetch or make the model (a section does that)")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    tiny = given.tiny or "SECATEUR_GPU_TINY" in os.environ
    if given.make:
        make_model(folder, tiny)
        return 0
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    folder.mkdir(parents=True, exist_ok=True)
    if tiny:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "SECATEUR_GPU_TINY": "1"}
    began, done = time.monotonic(), {}
    for name in SECTIONS:
        if given.sections and name not in given.sections:
            continue
        done[name] = run(name, Place(folder, tiny), TOTAL_S - (time.monotonic() - began))
        print(f"{name}: {done[name]['status']} ({done[name]['seconds']:.0f} s)", flush=True)
        report(folder, done)
    print(f"{folder / 'report.md'}")
    return int(any(each["status"].startswith(("failed", "stopped")) for each in done.values()))


if __name__ == "__main__":
    sys.exit(main())
