"""Pictures of what someone at a terminal sees, as SVG for the documentation (docs/images/terminal-*.svg).

    python benchmarks/cost/screens.py build/screens docs/images         # all, some minutes
    python benchmarks/cost/screens.py build/screens docs/images plan    # some

In terminals of 60, 80 and 140 columns, and in one of 80 with NO_COLOR. The end of a quickstart is what its record
(docs/results/quickstart.json) says; training and the comparison are runs of a small model with random weights.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pyte
from phases import MODEL, frames, small_model
from rich.console import Console
from rich.style import Style
from rich.text import Text

import secateur.runs.prune  # noqa: F401 - once for all commands
from secateur.cli import main as main_of_secateur
from secateur.runs.summary import loading_lines, run_summary
from secateur.system.terminal.tables import tell

SIZES = ((60, ""), (80, ""), (140, ""), (80, "1"))
"""Columns, and NO_COLOR."""
LINES = 120
RECORD_TEXT = (Path(__file__).parents[2] / "docs/results/quickstart.json").read_text(encoding="utf-8")
TRAIN = "--data stdlib-docs:train --eval-tokens 1024 --seq-len 128 --batch-size 4 --sparsity 0.2 --attention none"
COMMANDS = {
    "error": f"prune --model {MODEL} --data notes.txt --output small --sparsty 0.2",
    "plan": f"plan --model {MODEL} --sparsity 0.2 --steps 100 --device-tflops 1",
    "quickstart": "",
    "training": f"prune --model ./model {TRAIN} --steps 12 --frequency 4 --output small --overwrite",
    "compare": f"compare --model ./model {TRAIN} --evaluate-on stdlib-docs:held-out --criterion gate,magnitude "
    "--steps 4 --frequency 2 --output grid",
}
"""Name -> the command; nothing: what a quickstart says at its end."""


def forked(arguments: list[str], terminal: int, environment: dict[str, str]) -> Callable[[], int]:
    """`phases.started` in a process that has made its imports already."""
    if child := os.fork():
        return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        for number in range(3):
            os.dup2(terminal, number)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        code = main_of_secateur(arguments) if arguments else ended()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended() -> int:
    """What a quickstart says at its end."""
    result = json.loads(RECORD_TEXT)
    tell(run_summary(result))
    print(loading_lines(result))
    return 0


FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""
"""Rich's own, without the fonts that it has a reader's browser fetch."""


def style_of(char: pyte.screens.Char) -> Style:
    """How a character looks."""
    colour = {"brown": "yellow", "default": None}.get(char.fg, char.fg)
    if colour and len(colour) == 6 and all(letter in "0123456789abcdef" for letter in colour):
        colour = f"#{colour}"
    return Style(color=colour, bold=char.bold, italic=char.italics)


def picture(screen: pyte.Screen, title: str) -> str:
    """An SVG of what stands on a screen."""
    rows = [number for number, line in enumerate(screen.display) if line.strip()]
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(
            record=True, width=screen.columns, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        for number in range(rows[-1] + 1):
            line = Text(no_wrap=True)
            for style, chars in groupby((screen.buffer[number][column] for column in range(screen.columns)), style_of):
                line.append("".join(char.data for char in chars), style)
            line.rstrip()
            console.print(line, soft_wrap=True)
    return console.export_svg(title=title, code_format=FORMAT, unique_id="terminal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="folder to work in")
    parser.add_argument("images", help="folder for the pictures")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(COMMANDS)}")
    given = parser.parse_args()
    images = Path(given.images).absolute()
    for folder in (given.work, images):
        Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    if not Path("model").exists():
        small_model(Path("model"))
    for name in given.names or COMMANDS:
        arguments = COMMANDS[name].split()
        title = f"secateur {arguments[0] if arguments else name}"
        if name == "compare":  # the first time it trains; then it says what is recorded
            list(frames(arguments, 80, LINES, forked))
        for columns, colourless in SIZES:
            taken = ""
            for _, screen in frames(arguments, columns, LINES, forked, NO_COLOR=colourless):
                if name == "training" and not taken and any("7/12" in line for line in screen.display):
                    taken = picture(screen, title)
            label = f"{columns}-plain" if colourless else str(columns)
            text = taken or picture(screen, title)
            (images / f"terminal-{name}-{label}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
