"""What someone at a terminal sees of a command: its phases with their seconds, and stretches without a sign.

Each command runs in a pseudo-terminal of 110 columns. What it writes is followed as a terminal shows it: a live line is
there while the cursor is hidden. Silent is when there is none.

    python benchmarks/cost/phases.py build/phases            # all cases, some minutes each
    python benchmarks/cost/phases.py build/phases plan eval  # some

Adds each case to `--record` (docs/results/phases.json, with `--small` phases-small.json), and prints the tables of
docs/results/terminal.md. A case that is recorded is not run again, unless it is named. Tasks need `SECATEUR_DATA`, GGUF
the Python of an environment with llama.cpp (`SECATEUR_LLAMA_CPP`).
"""

import argparse
import codecs
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte

COLUMNS, LINES = 110, 50
SILENT_SECONDS = 2.0
MODEL = "smollm2-135m-instruct"
DATA = "--data stdlib-docs:train --eval-data stdlib-docs:held-out --eval-tokens 1024"
SHORT = f"--model {{model}} {DATA} --seq-len 128 --batch-size 4 --overwrite"
CASES = {
    "plan": "plan --model {model} --sparsity 0.2 --steps 100",
    "quickstart": "quickstart --steps 12 --output {out}/quickstart --overwrite",
    "prune": f"prune {SHORT} --sparsity 0.5 --steps 4 --schedule one-shot --prune-start 2 --criterion gate "
    "--allocation search --search-evaluations 6 --compensate sequential --calibration-tokens 1024 --output {out}/prune",
    "adapt": f"adapt {SHORT} --init-rank 16 --rank 8 --steps 4 --output {{out}}/adapt",
    "sparsify": f"sparsify {SHORT} --pattern 2:4 --method sparsegpt --calibration-tokens 1024 --steps 4 "
    "--output {out}/sparsify",
    "compare": "compare --model {model} --data stdlib-docs:train --evaluate-on stdlib-docs:held-out "
    "--eval-tokens 1024 --seq-len 128 --batch-size 4 --criterion gate,magnitude --sparsity 0.2 --steps 4 --frequency 2 "
    "--overwrite --output {out}/compare",
    "eval": "eval --model {out}/quickstart --against {model} --data stdlib-docs:held-out --max-tokens 2048 "
    "--seq-len 512 --tasks arc_easy,piqa --task-data {data} --limit 8",
    "bench": "bench --model {out}/quickstart --against {model} --repeats 1 --batch-sizes 1 --seq-len 128 "
    "--decode-tokens 8",
    "sample": "sample --model {out}/quickstart --against {model} --prompts Why? --max-new-tokens 24",
    "report": "report {out}/quickstart {out}/prune",
    "padded": "export --model {out}/prune --format padded --output {out}/padded --overwrite",
    "int4": "export --model {out}/quickstart --format compressed-tensors --quantise int4 --output {out}/q4 --overwrite",
    "gguf": "export --model {out}/quickstart --format gguf --quantise Q4_K_M --engine {engine} "
    "--output {out}/q.gguf --overwrite",
}
"""Name -> a command; `{out}` is the folder of the results, `{model}` the model, `{data}` the folder of the tasks' rows,
`{engine}` a Python with llama.cpp."""
SMALL = {
    "quickstart": f"prune {SHORT} --sparsity 0.2 --steps 12 --frequency 4 --attention none --output {{out}}/quickstart",
}
"""What takes the place of a case whose model is fixed."""


def started(arguments: list[str], terminal: int, environment: dict[str, str]) -> Callable[[], int]:
    """A command in a terminal; what waits for its exit code."""
    command = [sys.executable, "-m", "secateur", *arguments]
    return subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment).wait


def frames(
    arguments: list[str],
    columns: int = COLUMNS,
    lines: int = LINES,
    start: Callable[[list[str], int, dict[str, str]], Callable[[], int]] = started,
    **environment: str,
) -> Iterator[tuple[float, pyte.Screen]]:
    """Run a command in a terminal: again and again the seconds since the start, and the screen as it is from then on.

    At the end, the screen's `exit_code`.
    """
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    own = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    own |= {"TERM": "xterm-256color"} | environment
    begun = time.perf_counter()
    wait = start(arguments, writer, own)
    os.close(writer)
    screen = pyte.Screen(columns, lines)
    stream, decoder = pyte.Stream(screen), codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        ready, _, _ = select.select([reader], [], [], 0.1)
        if ready:
            try:
                stream.feed(decoder.decode(os.read(reader, 65536)))
            except OSError:  # the other end is closed
                break
        yield time.perf_counter() - begun, screen
    os.close(reader)
    screen.exit_code = wait()
    yield time.perf_counter() - begun, screen


def watch(arguments: list[str]) -> tuple[int, list[tuple[str, float]]]:
    """Exit code, and what was shown for how long: a live line's words, or nothing."""
    stretches: list[tuple[str, float]] = []
    last, shown, code = 0.0, "", 0
    for now, screen in frames(arguments):
        if stretches and stretches[-1][0] == shown:
            stretches[-1] = (shown, stretches[-1][1] + now - last)
        else:
            stretches.append((shown, now - last))
        last, shown, code = now, live(screen), getattr(screen, "exit_code", 0)
    if code:
        print("\n".join(line.rstrip() for line in screen.display if line.strip()))
    return code, stretches


def small_model(folder: Path) -> str:
    """The real model's tokenizer and shape, narrower and of 6 layers, with random weights."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    from secateur.data.embedded import embedded_model_dir

    real = embedded_model_dir()
    config = AutoConfig.from_pretrained(real)
    config.update({"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32})
    config.update({"intermediate_size": 512, "num_hidden_layers": 6})
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(real).save_pretrained(folder)
    return str(folder)


def live(screen: pyte.Screen) -> str:
    """The name of what a live line shows, without spinner, bar and figures; nothing where there is none."""
    if not screen.cursor.hidden:
        return ""
    lines = [line for line in screen.display[: screen.cursor.y + 1] if line.strip()]
    bar_or_spinner = "[━╸╺\u2800-\u28ff]"
    if len(lines) > 1 and re.match("[━╸╺]", lines[-2]) and not re.match(bar_or_spinner, lines[-1]):
        lines.pop()  # figures below a bar
    words = re.sub(r"^[^\w(]+", "", lines[-1]) if lines else ""
    words = re.split(r"  |\s\d+ of \d+|\s+\d+/\d+", words.strip())[0]
    return {"step": "training: step, loss, time left"}.get(words, words) or "?"


def joined(stretches: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """Each phase once, in the order in which it came first; silence with its longest stretch."""
    found: dict[str, dict[str, Any]] = {}
    for words, seconds in stretches:
        words = words.replace(str(Path.home()), "~")
        entry = found.setdefault(words, {"phase": words or None, "seconds": 0.0, "longest": 0.0, "times": 0})
        entry["seconds"] = round(entry["seconds"] + seconds, 2)
        entry["longest"] = round(max(entry["longest"], seconds), 2)
        entry["times"] += 1
    return list(found.values())


def silences(stretches: list[tuple[str, float]]) -> list[str]:
    """Where there was no live line for so long: what was there before and after."""
    names = ["the start", *(words for words, _ in stretches), "the end"]
    return [
        f"{seconds:.1f} s between {names[number]} and {names[number + 2]}"
        for number, (words, seconds) in enumerate(stretches)
        if not words and seconds >= SILENT_SECONDS
    ]


def table(records: dict[str, dict[str, Any]]) -> str:
    """What docs/results/terminal.md says: phases of two seconds and more, the longest stretch without a live line."""
    rows = [
        "| command | seconds | longest without a line | phases over two seconds, in seconds |",
        "|---|---:|---:|---|",
    ]
    for name, record in records.items():
        phases = [
            f"{entry['phase'].removesuffix(' ...')} {entry['seconds']:.0f}"
            for entry in record["phases"]
            if entry["phase"] and entry["seconds"] >= SILENT_SECONDS
        ]
        rows.append(f"| {name} | {record['seconds']:.0f} | {record['longest_silence']:.1f} | {'; '.join(phases)} |")
    commands = [f"- {name}: `secateur {record['command']}`" for name, record in records.items()]
    return "\n".join([*rows, "", *commands])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder for the results")
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--small", action="store_true", help="a small random model in the real one's place")
    parser.add_argument("--record", help="where they go (docs/results/phases.json, or phases-small.json)")
    given = parser.parse_args()
    Path(given.out).mkdir(parents=True, exist_ok=True)
    path = Path(given.record or f"docs/results/phases{'-small' if given.small else ''}.json")
    subprocess.run(
        [sys.executable, "-m", "secateur", "--help"], check=True, stdout=subprocess.DEVNULL
    )  # is compiled now
    model = small_model(Path(given.out) / "model") if given.small else MODEL
    for name, command in (CASES | (SMALL if given.small else {})).items():
        if given.cases and name not in given.cases:
            continue
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        places = {"out": given.out, "model": model, "data": os.environ.get("SECATEUR_DATA", "data")}
        places["engine"] = os.environ.get("SECATEUR_LLAMA_CPP", sys.executable)
        shown = command.format(out="OUT", model=model.replace(given.out, "OUT"), data="$SECATEUR_DATA", engine="PYTHON")
        done = known.get(name, {})
        if not given.cases and (done.get("command"), done.get("exit_code")) == (shown, 0):
            continue
        code, stretches = watch(command.format(**places).split())
        record = {
            "command": shown,
            "exit_code": code,
            "seconds": round(sum(seconds for _, seconds in stretches), 1),
            "longest_silence": round(max((s for words, s in stretches if not words), default=0.0), 2),
            "silences": silences(stretches),
            "phases": joined(stretches),
        }
        known |= {name: record}
        text = json.dumps(known, indent=2, ensure_ascii=False).replace(given.out, "OUT")
        path.write_text(text + "\n", encoding="utf-8")
        print(table({name: record}), f"\nexit code {code}\n", flush=True)
    print(table(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
