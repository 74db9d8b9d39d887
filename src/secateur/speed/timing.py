"""How long models take for what `--speed-at` says, taking turns so that the machine's drift hits all alike."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..config.sizes import PREFILL, Timed
from ..models.benchmark import Latency, both_sides, evaluating, forward_latency
from ..models.devices import autocast, name_of
from ..system.machine.devices import clock_of, wait_for

Told = Callable[[int, int], None]


def latency_at(
    models: Mapping[str, nn.Module], at: Timed, *, repeats: int, dtype: torch.dtype, told: Told = lambda done, of: None
) -> dict[str, Latency]:
    """Label -> time of what `at` names, the models taking turns; of decoding without the prompt's own pass.

    Args:
        models: label -> causal LM; all on the same device.
        told: is called between turns, with those that are over and all of them.
    """
    if at.kind == PREFILL:
        sizes = {"batch": at.batch, "seq_len": at.prompt}
        return forward_latency(models, **sizes, repeats=repeats, dtype=dtype, told=told)
    return decode_latency(models, at, repeats=repeats, dtype=dtype, told=told)


def decode_latency(
    models: Mapping[str, nn.Module], at: Timed, *, repeats: int, dtype: torch.dtype, told: Told = lambda done, of: None
) -> dict[str, Latency]:
    """Time of greedy tokens with the cache, models taking turns; the prompt's own pass not counted."""
    tables = [cast(PreTrainedModel, model).get_input_embeddings() for model in models.values()]
    vocabulary = min(cast(nn.Embedding, embedding).num_embeddings for embedding in tables)
    ids = torch.randint(vocabulary, (at.batch, at.prompt), generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(1 + repeats):
        told(turn, 1 + repeats)
        for name, model in models.items():
            seconds = Decoding(model, ids, dtype).seconds(at.generated)
            if turn:
                taken[name].append(seconds)
    told(1 + repeats, 1 + repeats)
    found = {}
    for name, values in taken.items():
        quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        found[name] = Latency(
            median_ms=statistics.median(values) * 1e3,
            spread_ms=(quarters[2] - quarters[0]) * 1e3,
            repeats=repeats,
            batch=at.batch,
            seq_len=at.generated,
            dtype=name_of(dtype),
        )
    return found


class Decoding:
    """A model with a prompt in its cache. A loop of our own: `generate` stops at end tokens.

    Args:
        ids: (sequences, tokens) of the prompt.
    """

    def __init__(self, model: nn.Module, ids: torch.Tensor, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        with evaluating(model), torch.inference_mode(), autocast(self.device.type, dtype):
            self._output: Any = model(**both_sides(model, ids.to(self.device)), use_cache=True)
        self._name, self._further = "input_ids", dict[str, Any]()
        if getattr(model.config, "is_encoder_decoder", False):
            self._name = "decoder_input_ids"
            self._further = {"encoder_outputs": (self._output.encoder_last_hidden_state,)}

    def seconds(self, count: int) -> float:
        """Of `count` more tokens."""
        with evaluating(self.model), torch.inference_mode(), autocast(self.device.type, self.dtype):
            wait_for(self.device)
            started = (clock := clock_of(self.device))()
            for _ in range(count):
                more = {self._name: self._output.logits[:, -1:].argmax(-1), **self._further}
                self._output = self.model(**more, past_key_values=self._output.past_key_values, use_cache=True)
            wait_for(self.device)
            return clock() - started
