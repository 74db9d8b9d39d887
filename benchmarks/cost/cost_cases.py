"""The steps that cost.py times: criteria, and one training step of each."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from cost_models import SHAPES, random_model
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur import Pruner, Scoring
from secateur.architecture.units import base_linear
from secateur.criteria import InputMoments
from secateur.models.devices import autocast, compute_dtype, default_device
from secateur.ranks import RankPruner
from secateur.sparsity.pst import Pst
from secateur.system.machine.devices import clock_of
from secateur.training.finetune import checkpoint_layers
from secateur.training.loss import causal_lm_loss

CASES: dict[str, dict[str, Any] | None] = {
    "plain LoRA": None,
    "lora": {"criterion": "lora"},
    "gate": {"criterion": "gate"},
    "magnitude": {"criterion": "magnitude"},
    "taylor": {"criterion": "taylor"},
    "taylor-accumulated": {"criterion": "taylor-accumulated"},
    "taylor-accumulated, off-loaded": {"criterion": "taylor-accumulated", "scoring": Scoring(offload=True)},
    "obs": {"criterion": "obs"},
    "gate + lstsq": {"criterion": "gate", "compensate": "lstsq"},
    "compresso": {"criterion": "compresso", "allocation": "global"},
    "PST": None,
}
"""Name -> options of the pruner that watches every step; None: LoRA alone, or PST's scores and masks beside it."""
NOTES = {
    "magnitude": "scored at cuts only",
    "obs": "second moments at every step, scored at cuts",
    "PST": "scores and masks of every weight at every step",
    "gate + lstsq": "second moments at every step",
}
"""What a case's steps do not have, or have beside the scores, in tables."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WHOLE_RUNS = ("masked", "shrinking")
"""Cases of the memory part: `lora` from the first step to 50 %, cuts and all."""
FAR = 10**6
"""Steps of a schedule whose cuts are never reached."""


@dataclass(frozen=True)
class Setup:
    """What all cases of a table have in common."""

    shape: str
    batch: int
    """Sequences of a micro-batch."""
    seq_len: int
    accumulation: int
    load_in: str
    checkpointing: bool
    rank: int = 8
    linears: tuple[str, ...] = LINEARS
    """What gets LoRA."""

    def with_(self, **changed: Any) -> Self:
        return replace(self, **changed)

    def of_ranks(self, highest: int) -> Self:
        """The same with LoRA only on linears that a rank fits: K and V are as narrow as the KV heads."""
        shape = SHAPES[self.shape]
        head_dim = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        narrow = ("k_proj", "v_proj") if shape["num_key_value_heads"] * head_dim < highest else ()
        return self.with_(linears=tuple(name for name in self.linears if name not in narrow))

    @property
    def label(self) -> str:
        """What a row's name says beyond its case's."""
        return ("" if self.load_in == "none" else f", {self.load_in}") + (
            ", checkpointed" if self.checkpointing else ""
        )

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len * self.accumulation


@dataclass(eq=False)
class Stepper:
    """A model in training, whose steps are timed."""

    setup: Setup
    model: PeftModel
    optimizer: torch.optim.Optimizer
    ids: Tensor
    """(sequences, tokens) of a micro-batch; the same at every step."""
    pruner: Pruner | RankPruner | None = None
    around_pruner_step: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def base(self) -> PreTrainedModel:
        return self.model.get_base_model()

    @property
    def weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for name, p in self.model.named_parameters() if "lora_" not in name)

    @property
    def state_bytes(self) -> int:
        """LoRA, its gradients and its moments."""
        return 4 * sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)

    def step(self) -> float:
        """One optimiser step with its scores; -> seconds."""
        wait()
        began = (clock := clock_of(self.ids.device))()
        for _ in range(self.setup.accumulation):
            with autocast(self.ids.device.type, compute_dtype("auto")), disable_input_dtype_casting(self.model):
                loss = causal_lm_loss(self.model(input_ids=self.ids), self.ids) / self.setup.accumulation
            loss.backward()
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if self.pruner:
            self.pruner.observe()
        self.optimizer.step()
        if self.pruner:
            with self.around_pruner_step():
                self.pruner.step(self.optimizer)
        self.optimizer.zero_grad()
        wait()
        return clock() - began

    def turn(self, name: str) -> tuple[float, int]:
        """One step of a case on this model, its hooks put on before and taken off after; -> seconds, peak bytes."""
        cuda = self.ids.device.type == "cuda"
        with self.watched(name):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            taken = self.step()
            return taken, torch.cuda.max_memory_allocated() if cuda else 0

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """Inside, the case's pruner scores the steps, which is checked at the end; afterwards its hooks are off."""
        options = CASES[name]
        if name == "PST":
            with self.scored():
                yield
            return
        self.pruner = pruner = make_pruner(self.model, options) if options else None
        try:
            yield
            if pruner:
                check_watched(pruner)
        finally:
            if pruner:
                pruner.close()
            self.pruner = None

    @contextmanager
    def scored(self) -> Iterator[None]:
        """Inside, PST masks half of the weights, by scores that are trained, too."""
        pst = Pst(self.model, 0.5)
        pst.now = pst.share
        self.optimizer.add_param_group({"params": pst.parameters()})
        try:
            yield
            assert any(self.optimizer.state[parameter] for parameter in pst.parameters()), "no score was trained"
        finally:
            for parameter in self.optimizer.param_groups.pop()["params"]:
                self.optimizer.state.pop(parameter, None)
            pst.close()

    def warm_up(self) -> None:
        """A step without pruner and without learning."""
        pruner, self.pruner = self.pruner, None
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.pruner = pruner

    def forget(self) -> None:
        """After running out of memory."""
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()


def make_stepper(setup: Setup, case: str, *, sparsity: float = 0.5, steps: int = FAR, shrink: bool = True) -> Stepper:
    """A model of the setup's shape with LoRA on all linears of its units, and the case's pruner."""
    torch.manual_seed(0)
    base = random_model(SHAPES[setup.shape], setup.load_in)
    lora = LoraConfig(
        r=setup.rank, lora_alpha=2 * setup.rank, target_modules=list(setup.linears), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)
    assert isinstance(model, PeftModel)
    if setup.checkpointing:
        checkpoint_layers(model)
    model.train()
    pruner: Pruner | RankPruner | None = None
    if case == "rank gradient":
        pruner = RankPruner(model, rank=4, total_steps=FAR)
    elif (options := CASES[case]) and steps != FAR:  # a single step's pruner is made by `watched`
        pruner = Pruner(
            model, sparsity=sparsity, total_steps=steps, prune_start=0.1, prune_end=0.6, frequency=2, shrink=shrink,
            **options,
        )  # fmt: skip
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(base.config.vocab_size, (setup.batch, setup.seq_len)).to(default_device())
    return Stepper(setup, model, optimizer, ids, pruner)


def make_pruner(model: nn.Module, options: dict[str, Any]) -> Pruner:
    """Scores at every step; cuts never come."""
    shrink = not getattr(model.get_base_model(), "is_loaded_in_4bit", False)
    pruner = Pruner(model, sparsity=0.5, total_steps=FAR, prune_start=0.5, shrink=shrink, **options)
    if "second_moments" in pruner.scorer.statistics.needs:  # as after a first step, whose averages need no mixing
        pruner.scorer.statistics.steps = 1
        for gate in (gate for pool in pruner.units.pools for gate in pool.gates):
            columns = weight_shape(pruner.modules[gate.linear])[1]
            first, second = torch.ones(columns), torch.ones(columns, columns)
            device = default_device()
            moments = InputMoments(1, first.to(device), first.clone().to(device), second.to(device))
            pruner.scorer.statistics.moments[gate.linear] = moments
    return pruner


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear with LoRA, quantised or not."""
    linear: Any = base_linear(module)
    return linear.out_features, linear.in_features


def check_watched(pruner: Pruner) -> None:
    """A case that watched nothing would cost nothing."""
    if pruner.scorer.criterion.changes:
        assert all(scores.any() for scores in pruner.scores.values()), "no scores were made"
    if "second_moments" in pruner.scorer.statistics.needs:
        assert pruner.scorer.statistics.steps > 1, "no moments were taken"


def inference_models(setup: Setup) -> dict[str, nn.Module]:
    """The dense shape; half of its heads (as many as can go) and of its FFN; the same with LoRA unmerged."""
    shape = SHAPES[setup.shape]
    dense = random_model(shape).eval()
    config = dense.config
    kept = max(n for n in range(1, config.num_key_value_heads) if config.num_key_value_heads // 2 <= n
               and config.hidden_size % (n * config.num_attention_heads // config.num_key_value_heads) == 0
               and n <= max(config.num_key_value_heads // 2, 2))  # fmt: skip
    heads = config.num_attention_heads * kept // config.num_key_value_heads
    per_head = config.hidden_size * config.head_dim * (2 + 2 * kept / heads)
    # What attention cannot give, the FFN gives, so that half of the prunable parameters are gone.
    ffn = config.intermediate_size / 2 - (heads - config.num_attention_heads / 2) * per_head / (3 * config.hidden_size)
    small = shape | {
        "num_attention_heads": heads, "num_key_value_heads": kept, "head_dim": config.head_dim,
        "intermediate_size": 32 * round(ffn / 32),  # as `--round-to 32` makes it
    }  # fmt: skip
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    unmerged = get_peft_model(random_model(small), LoraConfig(r=setup.rank, target_modules=linears)).eval()
    return {"dense": dense, "50 % merged": random_model(small).eval(), "50 % with LoRA beside it": unmerged}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
