"""Which engines take which results, and how each is started: data, of what was run (docs/results/deploy.json)."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...config.formats import FORMATS, LAYERED, PADDED, STOCK, VLLM


@dataclass(frozen=True)
class Engine:
    """A server of models, and what it was seen to compute right."""

    name: str
    version: str
    """That was tried."""
    takes: dict[str, frozenset[str]]
    """Format of a result (padded ones are stock) -> model types."""
    command: str
    """`{model}`: the folder, as a shell has it; `{trust}`: ` --trust-remote-code` where it brings code, or nothing."""

    def started_with(self, folder: Path | str, format: str) -> str:
        """The command for one result."""
        trust = " --trust-remote-code" if FORMATS[format].trust else ""
        return self.command.format(model=shlex.quote(str(folder)), trust=trust)


_BOTH = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2"}
    | {"phi", "phi3", "gpt_neox", "opt"}
)
VLLM_ENGINE = Engine(
    "vLLM",
    "0.32",
    {STOCK: _BOTH, LAYERED: _BOTH, VLLM: frozenset({"llama", "mistral", "qwen2"})},
    "vllm serve {model}{trust}",
)
ENGINES = (VLLM_ENGINE,)


TRIED = "Engines that were tried with results like this one:"


def serving(folder: Path | str, config: PreTrainedConfig, format: str) -> dict[str, str]:
    """Engine (and its version that was tried) -> the command that serves a result; none that is not known to."""
    kind = STOCK if format == PADDED else format
    return {
        f"{engine.name} {engine.version}": engine.started_with(folder, format)
        for engine in ENGINES
        if config.model_type in engine.takes.get(kind, ())
    }


def serving_block(export: dict[str, Any]) -> list[str]:
    """Of a card: the commands of an `ExportReport.to_dict`, with the folder's name in the place of its path."""
    folder = export["folder"]
    words = serving_words(export.get("serves_with") or {})
    words = words.replace(shlex.quote(folder), shlex.quote(Path(folder).name))
    return ["", TRIED, "", "```sh", words, "```"] if words else []


def serving_words(commands: dict[str, str]) -> str:
    """The commands as a shell block has them, each under its engine's name."""
    return "\n".join(f"# {name}\n{command}" for name, command in commands.items())
