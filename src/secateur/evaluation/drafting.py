"""`secateur bench --draft`: a pruned model proposes tokens, its dense parent takes or refuses them.

Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192) through transformers' assisted generation: greedy, so
the text is the target's own, and what counts is how many proposals the target would have written itself.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from ..config.speed import BenchConfig
from ..data.tokens import evaluation_tokens
from ..models.benchmark import evaluating, parameter_count
from ..models.devices import autocast, device_of, dtype_of, name_of, widened
from ..models.loading import load_config, load_model
from ..models.source import resolve_model
from ..models.tokenizers import load_tokenizer
from ..system.errors import InputError
from ..system.machine.devices import wait_for
from ..system.output import check_output_file
from ..system.progress import Progress
from ..system.quiet import quiet_transformers
from ..system.records import environment, write_told
from ..system.terminal.tables import Table, Words

PROMPT = 64
LINEARS_7B, HEAD_7B = 6_476_005_376, 131_072_000
"""Parameters of LLaMA-7B that a step of decoding reads: its layers' linears, and its head."""
MOST_DRAFTED = 16


@dataclass
class Rounds:
    """What happened in assisted generation, a round being one forward pass of the target."""

    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def acceptance(self) -> float:
        """Share of the proposed tokens that were taken."""
        return sum(self.accepted) / max(1, sum(self.proposed))

    @property
    def each(self) -> float:
        """Chance that the next proposal is taken where those before it were (α of the paper): later ones in a round
        that was refused were never judged."""
        judged = sum(a + (a < p) for p, a in zip(self.proposed, self.accepted, strict=True))
        return sum(self.accepted) / max(1, judged)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a forward pass of the target yields: those taken, and its own next one."""
        return (sum(self.accepted) + len(self.accepted)) / max(1, len(self.accepted))


def speed_up(each: float, drafted: int, cost: float) -> float:
    """By theorem 3.8 of the paper: (1 - α^(γ+1)) / ((1 - α)(γc + 1)).

    Args:
        each: α, chance that a proposal is taken.
        drafted: γ, tokens proposed in a round.
        cost: c, time of a step of the draft over one of the target.
    """
    tokens = drafted + 1 if each >= 1 else (1 - each ** (drafted + 1)) / (1 - each)
    return tokens / (drafted * cost + 1)


def best_speed_up(each: float, cost: float) -> tuple[int, float]:
    """The number of tokens to propose that gives the most, and what it gives; 0 where proposing none is best."""
    return max(((drafted, speed_up(each, drafted, cost)) for drafted in range(MOST_DRAFTED + 1)), key=lambda x: x[1])


def cost_at_7b(draft: PreTrainedModel, target: PreTrainedModel) -> float:
    """Bytes that a step of decoding reads in a draft of LLaMA-7B over those in the target, the same part of the layers'
    parameters gone: decoding at batch 1 waits for them."""
    kept = _layers(draft) / _layers(target)
    return (kept * LINEARS_7B + HEAD_7B) / (LINEARS_7B + HEAD_7B)


def _layers(model: PreTrainedModel) -> int:
    """Parameters that are not those of the embeddings and of the head."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    tables = {id(module.weight): cast(torch.Tensor, module.weight).numel() for module in ends}
    return parameter_count(model) - sum(tables.values())


def bench_draft(config: BenchConfig) -> str:
    """Measure, write the JSON record if asked, and return the table.

    Raises:
        InputError: models of different vocabularies, too little text, the output exists.
    """
    assert config.draft is not None
    assert config.against is not None
    device, dtype = device_of(config), dtype_of(config)
    output = Path(config.output) if config.output else None
    if output is not None:
        inputs = {"--draft": config.draft, "--against": config.against}
        check_output_file("--output", output, overwrite=config.overwrite, inputs=inputs)
    sources = {name: resolve_model(name) for name in (config.draft, config.against)}
    sizes = {
        name: load_config(source, trust_remote_code=config.trust_remote_code).get_text_config().vocab_size
        for name, source in sources.items()
    }
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"--draft {config.draft} has {sizes[config.draft]:,} tokens and --against {config.against} "
            f"{sizes[config.against]:,}: a draft shares its target's tokenizer, as a pruned model does its parent's."
        )
    tokenizer = load_tokenizer(sources[config.against])
    needed = PROMPT * config.prompts
    ids, info = evaluation_tokens(config.prompt_data, tokenizer)
    if len(ids) < needed:
        raise InputError(
            f"--prompt-data {config.prompt_data} has {len(ids)} tokens: --prompts {config.prompts} takes {needed}."
        )
    starts = torch.arange(config.prompts) * (len(ids) // config.prompts)
    prompts = torch.stack([ids[start : start + PROMPT] for start in starts])
    draft, target = (
        nn.Module.to(widened(load_model(source, trust_remote_code=config.trust_remote_code), dtype), device)
        for source in sources.values()
    )
    record: dict[str, Any] = {
        "environment": environment(device),
        "dtype": name_of(dtype),
        "draft": config.draft,
        "against": config.against,
    }
    record |= {"data": info, "prompts": config.prompts, "tokens": config.draft_tokens, "drafted": config.drafted}
    record |= measure(cast(PreTrainedModel, draft), cast(PreTrainedModel, target), prompts, config, dtype)
    words = table(record)
    if output is not None:
        write_told(output, record, words)
    return words


def measure(
    draft: PreTrainedModel, target: PreTrainedModel, prompts: torch.Tensor, config: BenchConfig, dtype: torch.dtype
) -> dict[str, Any]:
    """Acceptance over all prompts, and tokens per second with and without the draft, taking turns, prompt by prompt.

    Args:
        prompts: (prompts, tokens)
    """
    rounds = Rounds()
    taken: dict[str, list[float]] = {"alone": [], "drafted": []}
    written = {"alone": 0, "drafted": 0}
    agreed = 0
    with drafting(draft, target, config.drafted), evaluating(draft), evaluating(target):
        generate(target, None, prompts[:1], 4, dtype)  # warms up
        generate(target, draft, prompts[:1], 8, dtype)
        told = Progress(0).counting("drafting", "prompts")
        for number, prompt in enumerate(prompts):
            told(number, len(prompts))
            texts = {}
            for name in taken:
                started = time.perf_counter()
                if name == "drafted":
                    with counted(draft, target, rounds, len(prompt)) as finish:
                        texts[name] = generate(target, draft, prompt[None], config.draft_tokens, dtype)
                        finish(texts[name].shape[1])
                else:
                    texts[name] = generate(target, None, prompt[None], config.draft_tokens, dtype)
                wait_for(target.device)
                taken[name].append(time.perf_counter() - started)
                written[name] += texts[name].shape[1] - len(prompt)
            agreed += int(torch.equal(texts["alone"], texts["drafted"]))
        told(len(prompts), len(prompts))
    speed = {name: written[name] / sum(taken[name]) for name in taken}
    ratios = [one / other for one, other in zip(taken["alone"], taken["drafted"], strict=True)]
    cost = cost_at_7b(draft, target)
    best, gain = best_speed_up(rounds.each, cost)
    return {
        "acceptance": rounds.acceptance,
        "acceptance_each": rounds.each,
        "tokens_per_target_step": rounds.tokens_per_step,
        "rounds": len(rounds.accepted),
        "tokens_per_s": speed,
        "speed_up": statistics.median(ratios),
        "same_text": agreed,
        "parameters": {"draft": parameter_count(draft), "target": parameter_count(target)},
        "cost_at_7b": cost,
        "speed_up_at_7b": speed_up(rounds.each, config.drafted, cost),
        "best_at_7b": {"drafted": best, "speed_up": gain},
    }


def generate(
    target: PreTrainedModel, draft: PreTrainedModel | None, prompt: torch.Tensor, count: int, dtype: torch.dtype
) -> torch.Tensor:
    """(1, tokens) the prompt and `count` greedy tokens, end tokens among them."""
    settings = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    helper = {"assistant_model": draft} if draft is not None else {}
    prompt = prompt.to(target.device)
    with torch.inference_mode(), autocast(target.device.type, dtype), quiet_transformers():
        found = cast(Any, target).generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, **helper
        )
    return cast(torch.Tensor, found)


@contextmanager
def drafting(draft: PreTrainedModel, target: PreTrainedModel, count: int) -> Iterator[None]:
    """The draft proposes `count` tokens in every round, however sure it is of them; neither stops at an end token."""
    before = [(model, model.generation_config) for model in (draft, target)]
    target.generation_config = GenerationConfig()
    draft.generation_config = GenerationConfig(
        num_assistant_tokens=count, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    try:
        yield
    finally:
        for model, settings in before:
            model.generation_config = settings


@contextmanager
def counted(draft: nn.Module, target: nn.Module, rounds: Rounds, prompt: int) -> Iterator[Any]:
    """Add the rounds of one generation: the draft runs once for each proposal, the target once a round.

    Gives a function that is told the length of the whole text at the end.
    """
    proposals = 0
    lengths: list[int] = []
    proposed: list[int] = []

    def one(module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        nonlocal proposals
        proposals += 1

    def judge(module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        nonlocal proposals
        lengths.append(prompt if not lengths else options["past_key_values"].get_seq_length() + 1)
        proposed.append(proposals)
        proposals = 0

    def finish(length: int) -> None:
        ends = [*lengths[1:], length]
        rounds.proposed.extend(proposed)
        rounds.accepted.extend(after - before - 1 for before, after in zip(lengths, ends, strict=True))

    hooks = [
        draft.register_forward_pre_hook(one, with_kwargs=True),
        target.register_forward_pre_hook(judge, with_kwargs=True),
    ]
    try:
        yield finish
    finally:
        for hook in hooks:
            hook.remove()


def table(record: dict[str, Any]) -> Words:
    """Aligned text."""
    best, speed = record["best_at_7b"], record["tokens_per_s"]
    rows = [
        ("proposals that the target takes", f"{record['acceptance']:.1%}"),
        ("the next one, where those before it were taken", f"{record['acceptance_each']:.1%}"),
        ("tokens per step of the target", f"{record['tokens_per_target_step']:.2f}"),
        ("the target alone", f"{speed['alone']:.1f} tokens/s"),
        ("with the draft", f"{speed['drafted']:.1f} tokens/s"),
        ("speed-up measured here", f"{record['speed_up']:.2f}x"),
        (f"at a 7B pair's costs (a step of the draft {record['cost_at_7b']:.0%} of one of the target)",
         f"{record['speed_up_at_7b']:.2f}x"),
        (f"the same with the best number of proposals ({best['drafted']})", f"{best['speed_up']:.2f}x"),
    ]  # fmt: skip
    words = (
        f"{record['draft']} drafts for {record['against']}: {record['drafted']} proposals a round, "
        f"{record['prompts']} prompts of {PROMPT} tokens of {record['data']['data']}, {record['tokens']} greedy tokens "
        f"each, {record['dtype']}; {record['same_text']} of {record['prompts']} texts are the target's own to the token"
    )
    return Words(words, "", Table(("", ""), rows))
