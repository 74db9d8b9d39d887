"""Which engines take which results, and how each is started: data, of what was run (docs/results/deploy.json)."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...architecture.stock import is_whole
from ...config.formats import FORMATS, LAYERED, PADDED, STOCK, VLLM
from .layouts import SAME, heads_are_gone


@dataclass(frozen=True)
class Engine:
    """A server of models, and what it is known to compute right."""

    name: str
    note: str
    """What is known of it: the version that was tried."""
    takes: dict[str, frozenset[str]]
    """Format of a result (padded ones are stock) -> model types."""
    command: str
    """`{model}`: the folder, `{file}` and `{name}`: a GGUF file beside it and its name, as a shell has them; `{trust}`:
    ` --trust-remote-code` where the folder brings code, or nothing."""

    gone: frozenset[str] = frozenset()
    """Formats in which it takes layers without attention or FFN."""

    def started_with(self, folder: Path | str, format: str) -> str:
        """The command for one result."""
        folder = str(folder).rstrip("/")
        places = {"model": folder, "file": f"{folder}.gguf", "name": Path(folder).name}
        trust = " --trust-remote-code" if FORMATS[format].trust else ""
        return self.command.format(trust=trust, **{key: shlex.quote(place) for key, place in places.items()})


_VLLM = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2"}
    | {"phi", "phi3", "gpt_neox", "opt"}
)
_BY_WIDTH = frozenset({"qwen2"})
"""Model types whose classes in vLLM take the size of a head from the width, whatever `head_dim` says."""
_LLAMA = frozenset(SAME)
_LLAMA_CPP = _LLAMA | {"qwen3", "gemma3_text", "gpt_neox", "mixtral"}
_TO_GGUF = "secateur export --model {model} --format gguf --output {file}\n"
VLLM_ENGINE = Engine(
    "vLLM",
    "0.32 was tried",
    {STOCK: _VLLM | {"mixtral", "qwen3_moe"}, LAYERED: _VLLM, VLLM: _LLAMA},
    "vllm serve {model}{trust}",
    frozenset({VLLM}),
)
ENGINES = (
    VLLM_ENGINE,
    Engine(
        "llama.cpp",
        "the export tries it",
        {STOCK: _LLAMA_CPP, LAYERED: _LLAMA},
        f"{_TO_GGUF}llama-server -m {{file}}",
        frozenset({LAYERED}),
    ),
    Engine(
        "Ollama",
        "it runs llama.cpp's files; not tried",
        {STOCK: _LLAMA_CPP},
        f'{_TO_GGUF}echo "FROM $(realpath {{file}})" > Modelfile\nollama create {{name}} -f Modelfile',
    ),
)
TAKE_IT = "Engines that take results like this one:"


def serving(folder: Path | str, config: PreTrainedConfig, format: str) -> dict[str, str]:
    """Engine, and what is known of it -> the command that serves a result; none that is not known to."""
    kind = STOCK if format == PADDED else format
    return {
        f"{engine.name} ({engine.note})": engine.started_with(folder, format) + _option(engine, config, kind)
        for engine in ENGINES
        if config.model_type in engine.takes.get(kind, ()) and (kind in engine.gone or is_whole(config))
    }


def _option(engine: Engine, config: PreTrainedConfig, format: str) -> str:
    """What a stock result needs in addition where heads are gone, which vLLM's own class does not expect."""
    own = engine is VLLM_ENGINE and format == STOCK and config.model_type in _BY_WIDTH
    return " --model-impl transformers" if own and heads_are_gone(config) else ""


def serving_block(export: dict[str, Any]) -> list[str]:
    """Of a card: the commands of an `ExportReport.to_dict`, with the folder's name in the place of its path."""
    folder = export["folder"].rstrip("/")
    words = serving_words(export.get("serves_with") or {})
    for end in ("", ".gguf"):
        words = words.replace(shlex.quote(f"{folder}{end}"), shlex.quote(f"{Path(folder).name}{end}"))
    return ["", TAKE_IT, "", "```sh", words, "```"] if words else []


def serving_words(commands: dict[str, str]) -> str:
    """The commands as a shell block has them, each under its engine's name."""
    return "\n".join(f"# {name}\n{command}" for name, command in commands.items())
