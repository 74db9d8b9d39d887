"""Latency, FLOPs and sizes of models."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..architecture.experts import chosen_of, expert_lists
from ..architecture.quantised import entries
from ..data.chat import Chat
from ..data.encoding import encode
from ..data.endings import ending_ids
from ..data.pairs import source_ids
from ..system.errors import InputError, out_of_memory
from ..system.machine.devices import clock_of, own_randomness, wait_for
from .devices import autocast

LONGEST_SIDE = 4096


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass: the processor's, where one thread of a CPU computes."""

    median_ms: float
    spread_ms: float
    """Between the first and the third quartile."""
    repeats: int
    batch: int
    seq_len: int
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def forward_latency(
    models: Mapping[str, nn.Module],
    *,
    batch: int,
    seq_len: int,
    repeats: int,
    dtype: torch.dtype,
    warmup: int = 2,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Latency]:
    """Time models against each other, alternating, so that drift of the machine hits all alike.

    Args:
        models: label -> language model; all on the same device.
        batch, seq_len: of the token ids, drawn with a fixed seed from what the smallest vocabulary holds; of an
            encoder-decoder those of a source and of a target.
        warmup: turns that are not timed.
        told: is called between turns, with those that are over and all of them.
    Raises:
        InputError: nothing to time.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}: time at least 1 forward pass.")
    vocabulary = min(model.get_input_embeddings().weight.shape[0] for model in models.values())  # type: ignore[operator]
    ids = torch.randint(vocabulary, (batch, seq_len), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(warmup + repeats):
        told(turn, warmup + repeats)
        for name, model in models.items():
            taken = _time_forward(model, ids, dtype)
            if turn >= warmup:
                seconds[name].append(taken)
    told(warmup + repeats, warmup + repeats)
    found = {}
    for name, taken_s in seconds.items():
        quartiles = statistics.quantiles(taken_s, n=4, method="inclusive") if repeats > 1 else [taken_s[0]] * 3
        found[name] = Latency(
            median_ms=statistics.median(taken_s) * 1e3,
            spread_ms=(quartiles[2] - quartiles[0]) * 1e3,
            repeats=repeats,
            batch=batch,
            seq_len=seq_len,
            dtype=str(dtype).removeprefix("torch."),
        )
    return found


def forward_flops(model: nn.Module, seq_len: int, *, attention_width: Sequence[float] | None = None) -> int:
    """FLOPs of the linear layers (LoRA's and the output head included) for one sequence: 2·in·out a token.

    Norms and activations are left out, and so are attention's own products unless their width is given.

    Args:
        seq_len: tokens of the sequence, T.
        attention_width: per layer, `LayerShape.attention_width`. Adds scores and weighted values,
            2·2·width·T² a layer: the full square, though a causal kernel may skip half of it.
    """
    linears = sum(rows * columns * share for rows, columns, share in linears_in_use(model).values())
    return 2 * seq_len * round(linears) + round(4 * seq_len**2 * sum(attention_width or ()))


def linears_in_use(model: nn.Module) -> dict[str, tuple[int, int, float]]:
    """Path of each linear -> (out, in), and the share of tokens that go through it: of an expert's as is chosen."""
    found, shares = dict[str, tuple[int, int, float]](), dict[nn.Module, float]()
    for experts in expert_lists(model).values():
        shares |= dict.fromkeys(experts.modules(), chosen_of(model.config) / len(experts))  # type: ignore[arg-type]
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):  # not its weight's shape: 4-bit weights are stored packed
            sides = ("nf", "nx") if isinstance(module, Conv1D) else ("out_features", "in_features")
            found[path] = (getattr(module, sides[0]), getattr(module, sides[1]), shares.get(module, 1.0))
    return found


def matmul_flops_per_s(
    shapes: Sequence[tuple[int, int]], *, tokens: int, dtype: torch.dtype, device: torch.device, budget_s: float = 1.0
) -> float:
    """What this machine reaches in products of activations and weights, measured for about `budget_s`.

    Args:
        shapes: (out, in) of the weights; sides above 4,096 are cut to it, which changes the speed little.
        tokens: rows of the activations, at most; fewer where that many would take too long.
    """
    sides = {(min(rows, LONGEST_SIDE), min(columns, LONGEST_SIDE)) for rows, columns in shapes}
    weights = [torch.randn(side, device=device).to(dtype) for side in sides]
    best, rows, started = 0.0, min(16, tokens), time.perf_counter()
    with torch.inference_mode():
        while True:
            inputs = [torch.randn(rows, weight.shape[1], device=device).to(dtype) for weight in weights]
            for _ in range(2):  # the first time around, kernels are chosen
                wait_for(device)
                begun = time.perf_counter()
                for x, weight in zip(inputs, weights, strict=True):
                    torch.nn.functional.linear(x, weight)
                wait_for(device)
                taken = time.perf_counter() - begun
            best = max(best, 2 * rows * sum(weight.numel() for weight in weights) / taken)
            rows *= 2
            if rows > tokens or time.perf_counter() - started + 4 * taken > budget_s:
                return best


def parameter_count(model: nn.Module) -> int:
    """Parameters; a tied one counts once, a quantised one as what it stands for."""
    return sum(map(entries, model.parameters()))


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    dtype: torch.dtype,
    chat: bool = True,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The continuation of a prompt, without the prompt: greedy, or sampled at a `temperature` above 0.

    Args:
        chat: put the prompt into the tokenizer's chat template, if it has one; what ends a reply in it ends this one,
            also where the model's own settings do not name it.
        top_p, seed: of sampling; the global random state is left as it was.
    """
    pairs = model.config.is_encoder_decoder
    encoded = encode_prompt(tokenizer, prompt, chat=chat, source=pairs)
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in encoded.items()}
    options = _settings(model, tokenizer, enders := ending_ids(tokenizer) if chat and not pairs else [])
    if temperature > 0:
        # top_k is 50 unless it is turned off: what was not asked for must not count.
        options |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with (
        evaluating(model),
        torch.inference_mode(),
        autocast(device.type, dtype),
        own_randomness(device),
    ):
        torch.manual_seed(seed)
        output = _generated(model, inputs, max_new_tokens=max_new_tokens, **options)
    said = output[0, 1 if pairs else inputs["input_ids"].shape[1] :].tolist()  # an answer begins with a start token
    return str(tokenizer.decode(said[:-1] if said[-1:] == enders else said, skip_special_tokens=True))


def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    dtype: torch.dtype,
) -> list[str]:
    """Greedy continuations of several prompts, without the prompts and what ends them.

    Args:
        inputs: `input_ids` and `attention_mask`, (prompts, tokens), padded on the left, on the model's device.
    """
    device = inputs["input_ids"].device
    options = _settings(model, tokenizer, ending_ids(tokenizer))
    with evaluating(model), torch.inference_mode(), autocast(device.type, dtype):
        output = _generated(model, inputs, max_new_tokens=max_new_tokens, **options)
    said = output[:, inputs["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(said, skip_special_tokens=True)]


def _settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, enders: list[int]) -> dict[str, Any]:
    """Greedy; how a cache is laid out and what else is returned is no part of an answer."""
    options: dict[str, Any] = {"do_sample": False, "cache_implementation": None, "return_dict_in_generate": False}
    options["pad_token_id"] = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if getattr(model.generation_config, "stop_strings", None):
        options["tokenizer"] = tokenizer
    if enders:
        known = model.generation_config.eos_token_id
        options["eos_token_id"] = [*enders, *(known if isinstance(known, list) else [known] * (known is not None))]
    return options


def _generated(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """What `generate` gives; what it says of the model's own settings is one line.

    Raises:
        InputError: generation_config.json has keys that it cannot follow; names them.
    """
    try:
        output: torch.Tensor = model.generate(**inputs, **options)  # type: ignore[operator]
    except Exception as error:  # of many classes
        settings = model.generation_config.to_diff_dict() if model.generation_config else {}
        own = sorted(key for key in settings if not key.endswith(("_token_id", "_version")) and key[0] != "_")
        if out_of_memory(error) or not own:
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"model {model.config._name_or_path!r}: generation_config.json cannot be followed ({type(error).__name__}: "
            f"{reason}): take out of it what asks for that ({', '.join(own)})."
        ) from error
    return output


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool, source: bool = False
) -> Mapping[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (1, tokens), of a prompt, with `chat` as the user's turn of the template; or as
    the source of an encoder-decoder, which has none.

    Raises:
        InputError: the template cannot be rendered.
    """
    if source:
        ids = torch.tensor([source_ids(tokenizer, prompt)], dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    chat = chat and bool(tokenizer.chat_template)
    if chat:
        prompt = _rendered(tokenizer, prompt)
    # A rendered template holds its own special tokens.
    ids = torch.tensor([encode(tokenizer, prompt, special=not chat)], dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    try:
        return Chat(tokenizer).write([{"role": "user", "content": prompt}], {}, prompt=True)
    except MemoryError:
        raise
    except Exception as error:  # jinja2's, transformers', and whatever an expression of the template raises
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise InputError(
            f"the tokenizer's chat template cannot be rendered ({type(error).__name__}: {reason}): mend it "
            "(chat_template.jinja, or chat_template in tokenizer_config.json), or pass --no-chat."
        ) from None


def _time_forward(model: nn.Module, ids: torch.Tensor, dtype: torch.dtype) -> float:
    device = next(model.parameters()).device
    ids = ids.to(device)
    with evaluating(model), torch.inference_mode(), autocast(device.type, dtype):
        wait_for(device)
        started = (clock := clock_of(device))()
        model(**both_sides(model, ids), use_cache=False)
        wait_for(device)
        return clock() - started


def both_sides(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model is called with on these tokens; an encoder-decoder reads them on both sides."""
    pairs = bool(getattr(model.config, "is_encoder_decoder", False))
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if pairs else {})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the earlier mode after."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
