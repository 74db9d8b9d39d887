"""A format is one entry: the choices, lists and readers of results follow from it."""

import re
import subprocess
import sys
from pathlib import Path

from secateur.architecture.families import FAMILIES
from secateur.config.formats import FORMATS, converter, convertible
from secateur.config.prune import PruneConfig
from secateur.config.ranks import RankOptions
from secateur.pruning.schedule import Schedule

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "secateur"
NEW = """
import sys
from secateur.config.formats import FORMATS, Format
FORMATS.register("mirror", Format("in a mirror", help="the other way round", converter="system.quiet:mirror"))
import secateur.system.quiet
secateur.system.quiet.mirror = lambda config: {
    "folder": config.output, "format": "mirror", "parameters": 1, "bytes": 1, "max_logit_difference": 0.0,
    "loads_with": "",
}
from secateur.config.prune import ExportConfig
from secateur.checkpoint import convert
print(convert.export_config(ExportConfig(model="m", output="o", format="mirror"))["format"])
from secateur.cli import main
main(["families"])
sys.exit(main(["export", "--help"]))
"""


def test_every_converter_is_there() -> None:
    assert convertible() == ("padded",)
    assert all(callable(converter(name)) for name in convertible())
    assert FAMILIES["llama"].formats == dict.fromkeys(("kv_group", "query_head", "ffn"), tuple(FORMATS))
    assert FAMILIES["gpt2"].formats["kv_group"] == ("layered", "padded")
    assert [name for name, format in FORMATS.items() if format.trust] == ["layered"]


def test_a_new_format_needs_its_entry_alone() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", NEW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("mirror\n")
    assert "padded, mirror" in done.stdout, "families"
    assert "mirror: in a mirror" in done.stdout
    assert "mirror: the other way round" in " ".join(done.stdout.split())


def test_formats_names_are_written_once() -> None:
    """Nowhere else is a result's form asked for by a bare string."""
    bare = re.compile(r"""["'](stock|layered|padded)["']""")
    places = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if bare.search(path.read_text())}
    assert places == {"config/formats.py"}


def test_the_page_of_defaults_tells_the_defaults() -> None:
    rows = re.findall(r"^\| (`--[^|]*) \|", (ROOT / "docs" / "defaults.md").read_text(), flags=re.M)
    told = [pair for row in rows for pair in re.findall(r"`--([a-z-]+) ([^`]+)`", row)]
    assert len(told) > 8
    config = PruneConfig(model="m", data=("d",), output="o")
    for name, value in told:
        default = getattr(config, name.replace("-", "_"))
        own = "rows" if name == "score-linears" else default  # what suits the criterion
        assert value in (str(own), f"{default:.0e}".replace("e-0", "e-") if isinstance(default, float) else ""), name


def test_a_default_is_written_once() -> None:
    assert Schedule("cubic", 1, 9).frequency == PruneConfig.frequency == RankOptions.frequency
    twice = re.compile(r"frequency: int = \d")
    assert not [path for path in SOURCE.rglob("*.py") if twice.search(path.read_text())]
