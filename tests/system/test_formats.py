"""A format is one entry: the choices, lists and readers of results follow from it."""

import re
from pathlib import Path

from secateur.architecture.families import FAMILIES
from secateur.checkpoint.convert import export_config
from secateur.cli import main
from secateur.config.formats import FORMATS, Format, converter, convertible
from secateur.config.options import known_options
from secateur.config.prune import ExportConfig, PruneConfig
from secateur.config.ranks import RankOptions
from secateur.pruning.schedule import Schedule
from secateur.system import quiet

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "secateur"


def test_every_converter_is_there() -> None:
    assert convertible() == ("padded", "text", "gguf", "adapter", "compressed-tensors", "vllm")
    assert all(callable(converter(name)) for name in convertible())
    assert FAMILIES["llama"].formats == dict.fromkeys(("kv_group", "query_head", "ffn"), ("stock", "layered", "padded"))
    assert FAMILIES["gpt2"].formats["kv_group"] == ("layered", "padded")
    assert [name for name, format in FORMATS.items() if format.trust] == ["layered", "vllm"]


def test_a_new_format_needs_its_entry_alone(monkeypatch, capsys) -> None:
    """Here of a converter that is in another module; `export`'s choices are made of the entries as they are read."""
    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS))
    FORMATS.register("mirror", Format("in a mirror", help="turned", converter="system.quiet:mirror"))
    monkeypatch.setattr(quiet, "mirror", lambda config: f"{config.output} turned", raising=False)
    assert convertible() == ("padded", "text", "gguf", "adapter", "compressed-tensors", "vllm", "mirror")
    assert export_config(ExportConfig(model="m", output="o", format="mirror")) == "o turned"
    assert main(["families"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^llama +kv_group, query_head, ffn +stock, layered, padded, mirror *$", said, re.MULTILINE)
    assert re.search(r"^mirror +in a mirror *$", said, re.MULTILINE)


def test_exports_choices_are_the_entries() -> None:
    told = known_options(ExportConfig)["format"].metadata
    assert told["choices"] == convertible()
    assert all(FORMATS[name].help in told["help"] for name in convertible())


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
