"""`secateur sample`: what a model writes after given prompts, or two models side by side."""

import textwrap
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..config.evaluation import SampleConfig
from ..models.benchmark import encode_prompt, generate_text
from ..models.devices import device_of, dtype_of, widened
from ..models.files import check_checkpoint
from ..models.loading import load_config, load_model
from ..models.source import ModelSource, resolve_model
from ..models.tokenizers import load_tokenizer
from ..system.errors import InputError, all_faults
from ..system.output import check_output_file
from ..system.progress import Progress
from ..system.reading import parse_json, read_text
from ..system.records import environment, write_told
from ..system.terminal.streams import safe
from .perplexity import token_faults


def sample_models(config: SampleConfig) -> str:
    """Answers of one model or two to the same prompts; returns what to print, writes `--output`.

    Each model is asked with its own tokenizer and chat template; one is in memory at a time.

    Raises:
        InputError: a prompt that cannot be read or is too long for a model, an output that exists.
    """
    device, dtype = device_of(config), dtype_of(config)
    if config.output:
        inputs = {"--prompt-file": config.prompt_file, "--model": config.model, "--against": config.against}
        check_output_file("--output", Path(config.output), overwrite=config.overwrite, inputs=inputs)
    prompts = read_prompts(config)
    names = [*([config.against] if config.against else []), config.model]
    sources = {name: resolve_model(name) for name in names}
    tokenizers = {name: _open(name, source, prompts, config) for name, source in sources.items()}
    answers: list[dict[str, str]] = [{} for _ in prompts]
    for name, source in sources.items():
        model = load_model(source, trust_remote_code=config.trust_remote_code)
        nn.Module.to(widened(model, dtype), device)
        told = Progress(0).counting(f"{name} answers", "prompts")
        for number, (prompt, said) in enumerate(zip(prompts, answers, strict=True)):
            told(number, len(prompts))
            said[name] = generate_text(
                model,
                tokenizers[name],
                prompt,
                max_new_tokens=config.max_new_tokens,
                dtype=dtype,
                chat=config.chat,
                temperature=config.temperature,
                top_p=config.top_p,
                seed=config.seed,
            )
        told(len(prompts), len(prompts))
        del model
    samples = [{"prompt": prompt, "answers": said} for prompt, said in zip(prompts, answers, strict=True)]
    if config.output:
        templates = {name: bool(config.chat and tokenizers[name].chat_template) for name in sources}
        record = {"config": config, "samples": samples, "chat_template": templates, "environment": environment(device)}
        write_told(Path(config.output), record, shown(samples))
    return shown(samples)


def read_prompts(config: SampleConfig) -> list[str]:
    """The prompts given as options, then those of the file.

    Raises:
        InputError: a file that cannot be read, a row without a prompt, an empty prompt.
    """
    prompts = [*config.prompts, *(_prompts_of(Path(config.prompt_file)) if config.prompt_file else [])]
    if not all(prompt.strip() for prompt in prompts):
        raise InputError(f"prompt {[bool(p.strip()) for p in prompts].index(False) + 1} is empty: leave it out.")
    return prompts


def shown(samples: list[dict[str, Any]]) -> str:
    """Prompts and answers as plain text, control sequences taken out."""
    lines: list[str] = []
    for sample in samples:
        lines += ["", "prompt", textwrap.indent(safe(sample["prompt"]), "    ")]
        for name, answer in sample["answers"].items():
            lines += [safe(name), textwrap.indent(safe(answer).strip() or "(nothing)", "    ")]
    return "\n".join(lines[1:])


def _prompts_of(path: Path) -> list[str]:
    lines = read_text(path, f"--prompt-file {path}").split("\n")
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"--prompt-file {path} has no prompt: write one on each line.")
    if path.suffix.lower() != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{path}:{i}") for i, line in numbered]


def _prompt_of(line: str, place: str) -> str:
    row = parse_json(line, place, "expected rows like {'prompt': ...}.")
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(f"{place} has no text under `prompt`.")
    return str(row["prompt"])


def _encoded(tokenizer: PreTrainedTokenizerBase, prompt: str, config: SampleConfig, model_config: Any) -> Any:
    source = model_config.is_encoder_decoder
    return encode_prompt(tokenizer, prompt, chat=config.chat, source=source)["input_ids"][0]


def _open(name: str, source: ModelSource, prompts: list[str], config: SampleConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, once it is known that every prompt with its answer fits into the model."""
    model_config = load_config(source, trust_remote_code=config.trust_remote_code, encoder_decoders=True)
    check_checkpoint(source)
    tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
    longest = getattr(model_config, "max_position_embeddings", None)
    for number, prompt in enumerate(prompts, 1):
        try:
            ids = _encoded(tokenizer, prompt, config, model_config)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        if not len(ids):
            raise InputError(f"prompt {number} gives no tokens with the tokenizer of {name}: write another.")
        all_faults(token_faults(ids, getattr(model_config.get_text_config(), "vocab_size", None), name))
        tokens = len(ids)
        apart = model_config.is_encoder_decoder  # prompt and answer have positions of their own
        needed = max(tokens, 1 + config.max_new_tokens) if apart else tokens + config.max_new_tokens
        if longest is not None and needed > longest:
            raise InputError(
                f"prompt {number} has {tokens} tokens, with --max-new-tokens {config.max_new_tokens} more than the "
                f"{longest} positions of {name}: shorten one of them."
            )
    return tokenizer
