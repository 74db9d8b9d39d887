"""The models and the steps that cost.py times: shapes, criteria, and one training step of each."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from secateur import Pruner, Scoring
from secateur.finetune import checkpoint_layers
from secateur.loss import causal_lm_loss
from secateur.models import autocast, compute_dtype, default_device
from secateur.ranks import RankPruner

LLAMA: dict[str, Any] = {"vocab_size": 32000, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
             "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512},
    "smollm2-135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
                     "max_position_embeddings": 8192},
    "7b": LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": LLAMA | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                    "num_attention_heads": 40},
    "65b": LLAMA | {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80,
                    "num_attention_heads": 64},
}  # fmt: skip

CASES: dict[str, dict[str, Any] | None] = {
    "plain LoRA": None,
    "lora": {"criterion": "lora"},
    "gate": {"criterion": "gate"},
    "magnitude": {"criterion": "magnitude"},
    "taylor": {"criterion": "taylor"},
    "taylor-accumulated": {"criterion": "taylor-accumulated"},
    "taylor-accumulated, off-loaded": {"criterion": "taylor-accumulated", "scoring": Scoring(offload=True)},
}
"""Name -> options of the pruner whose scores are made at every step; None: LoRA alone. On a CPU, off-loading moves
nothing."""
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

    def with_(self, **changed: Any) -> Self:
        return replace(self, **changed)

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
    _casting: AbstractContextManager[None] = field(default_factory=nullcontext)

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
        began = time.perf_counter()
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
            self.pruner.step(self.optimizer)
        self.optimizer.zero_grad()
        wait()
        return time.perf_counter() - began

    def turn(self, name: str) -> tuple[float, int]:
        """One step of a case on this model, its hooks put on before and taken off after; -> seconds, peak bytes."""
        options = CASES[name]
        cuda = self.ids.device.type == "cuda"
        try:
            self.pruner = make_pruner(self.model, options) if options else None
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            taken = self.step()
            return taken, torch.cuda.max_memory_allocated() if cuda else 0
        finally:
            if self.pruner:
                self.pruner.close()
            self.pruner = None

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
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=setup.rank, lora_alpha=2 * setup.rank, target_modules=linears, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    assert isinstance(model, PeftModel)
    if setup.checkpointing:
        checkpoint_layers(model)
    model.train()
    pruner: Pruner | RankPruner | None = None
    if case == "rank gradient":
        pruner = RankPruner(model, rank=4, total_steps=FAR)
    elif (options := CASES[case]) and steps != FAR:
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
    return Pruner(model, sparsity=0.5, total_steps=FAR, prune_start=0.5, shrink=shrink, **options)


def random_model(shape: dict[str, Any], load_in: str = "none") -> PreTrainedModel:
    """A Llama with random weights in bfloat16 on the device; a quantised one is made linear by linear."""
    config = LlamaConfig(**shape, use_cache=False)
    device = default_device()
    if load_in == "none":
        with device:
            previous = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            try:
                return LlamaForCausalLM(config)
            finally:
                torch.set_default_dtype(previous)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, QUANTISED[load_in](module, device))
    fill(model, device)
    # What transformers tells PEFT of a model that it has quantised itself.
    setattr(model, f"is_loaded_in_{load_in}", True)
    return model


def fill(model: PreTrainedModel, device: torch.device) -> None:
    """Random values for what is still without storage."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    rotary = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary(model.config, device=device)


def in_8bit(linear: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    new = Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
    new.weight = Int8Params(random_weight(linear, device), requires_grad=False, has_fp16_weights=False).to(device)
    return new


def in_4bit(linear: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    new = Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    new.weight = Params4bit(random_weight(linear, device), requires_grad=False, quant_type="nf4", module=new).to(device)
    return new


def random_weight(linear: nn.Linear, device: torch.device) -> Tensor:
    return torch.empty(linear.weight.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)


QUANTISED: dict[str, Callable[[nn.Linear, torch.device], nn.Module]] = {"8bit": in_8bit, "4bit": in_4bit}


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
