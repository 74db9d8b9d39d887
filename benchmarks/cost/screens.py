"""Pictures of what someone at a terminal sees, as SVG for the documentation (docs/images/terminal-*.svg).

    python benchmarks/cost/phases.py build/phases quickstart compare   # what is shown
    python benchmarks/cost/screens.py build/phases docs/images         # all, some minutes
    python benchmarks/cost/screens.py build/phases docs/images plan error

Each command runs in pseudo-terminals of 60, 80 and 140 columns, and in one of 80 with NO_COLOR. The quickstart is taken
twice: while it trains, and when it is done.
"""

import argparse
import shutil
from itertools import groupby
from pathlib import Path

import pyte
from phases import MODEL, frames
from rich.console import Console
from rich.style import Style
from rich.text import Text

SIZES = ((60, ""), (80, ""), (140, ""), (80, "1"))
"""Columns, and NO_COLOR."""
LINES = 120
COMMANDS = {
    "quickstart": "quickstart --steps 12 --output {work}/quickstart --overwrite",
    "plan": f"plan --model {MODEL} --sparsity 0.2 --steps 100 --device-tflops 1",
    "compare": f"compare --model {MODEL} --data stdlib-docs:train --evaluate-on stdlib-docs:held-out "
    "--eval-tokens 4096 --seq-len 128 --batch-size 4 --criterion gate,magnitude --sparsity 0.2 --steps 4 "
    "--frequency 2 --output {out}/compare",
    "error": f"prune --model {MODEL} --data notes.txt --output small --sparsty 0.2",
}
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
    parser.add_argument("out", help="folder of the results of phases.py")
    parser.add_argument("images", help="folder for the pictures")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(COMMANDS)}")
    given = parser.parse_args()
    work = Path(given.out) / "screens"
    work.mkdir(parents=True, exist_ok=True)
    Path(given.images).mkdir(parents=True, exist_ok=True)
    for name in given.names or COMMANDS:
        command = COMMANDS[name].format(out=given.out, work=work)
        title = "secateur " + COMMANDS[name].format(out="grids", work=".").split(" --output")[0]
        for columns, colourless in SIZES:
            label = f"{columns}-plain" if colourless else str(columns)
            middle = ""
            for _, screen in frames(command.split(), columns, LINES, NO_COLOR=colourless):
                if not middle and any("6/12" in line for line in screen.display):
                    middle = picture(screen, title)
            images = Path(given.images)
            (images / f"terminal-{name}-{label}.svg").write_text(picture(screen, title), encoding="utf-8")
            if middle:
                (images / f"terminal-training-{label}.svg").write_text(middle, encoding="utf-8")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
