"""LoRA on mixtures of experts: every linear gets it, in whichever way an adapter names them."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from secateur.architecture.discovery import find_units
from secateur.architecture.experts import expert_lists, stack_experts, unstack_experts
from secateur.architecture.experts.lora import adaptable, misread
from secateur.architecture.families import FAMILIES
from secateur.checkpoint.comparing import logits_of
from secateur.config.adapt import AdaptConfig
from secateur.config.prune import PruneConfig
from secateur.models.adapter import load_adapter
from secateur.models.coverage import uncalled_linears
from secateur.models.surgery import lora_layers
from secateur.runs.adapt import prepare_adapt
from secateur.system.errors import InputError
from secateur.training.finetune import add_lora, check_resumable
from secateur.training.prepare import lora_names, plan_budget, prepare
from tests.architecture.rows import IDS, tiny

MOE = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]


def saved(name, folder):
    """The stock model of the weights that `tiny` gives, written with a tokenizer and a text beside it."""
    apart = tiny(name)
    model = AutoModelForCausalLM.from_config(apart.config, dtype=torch.float32)
    model.load_state_dict(dict(stack_experts(apart.state_dict().items(), FAMILIES[name])))
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text("a quick brown fox jumps over the lazy dog. " * 40)
    return model.eval(), apart


def options(folder, **more):
    common = {"data": (str(folder / "text.txt"),), "output": str(folder / "out"), "steps": 2, "batch_size": 2}
    return {"model": str(folder / "model"), **common, "seq_len": 32, "prune_start": 1, "prune_end": 2, **more}


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("criterion", ["lora", "gate"])
def test_every_linear_of_every_unit_gets_lora(name, criterion) -> None:
    config = PruneConfig(model="m", data=("d",), output="o", criterion=criterion, sparsity=0.3)
    for targets in ((), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")):
        base = tiny(name)
        model = add_lora(base, PruneConfig(**{**vars(config), "targets": targets}), lora_names(FAMILIES[name]))
        assert set(lora_layers(model)) == set(find_units(base, FAMILIES[name], "none").linears) | {
            f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qkvo"
        }
    planned = plan_budget(config, tiny(name).config)  # the default criterion refuses what LoRA does not cover
    assert planned.unreached is None


def per_expert(model, folder, names, *, rslora=False, rank=2):
    """An adapter as transformers 4 and PEFT wrote it: a factor for each expert's own linears."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path.endswith("q_proj"):
            tensors |= factors(f"{path}", *module.weight.shape, rank, generator)
        if path.endswith("mlp.experts"):
            count, rows, width = module.gate_up_proj.shape
            place = path.replace("mlp", "block_sparse_moe") if names[0] == "w1" else path
            for expert in range(count):
                for name, shape in zip(names, ((rows // 2, width),) * 2 + ((width, rows // 2),), strict=True):
                    tensors |= factors(f"{place}.{expert}.{name}", *shape, rank, generator)
    LoraConfig(
        r=rank, lora_alpha=6, target_modules=["q_proj", *names], use_rslora=rslora, task_type="CAUSAL_LM"
    ).save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def factors(path, rows, columns, rank, generator):
    shapes = {"A": (rank, columns), "B": (rows, rank)}
    values = {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}
    return {f"base_model.model.{path}.lora_{key}.weight": value for key, value in values.items()}


@pytest.mark.parametrize(
    ("name", "names"), [("mixtral", ("w1", "w3", "w2")), ("qwen3_moe", ("gate_proj", "up_proj", "down_proj"))]
)
def test_an_adapter_that_names_experts_one_by_one(name, names, tmp_path) -> None:
    """Beside experts apart it computes what PEFT makes of it; and so does the one that PEFT then writes."""
    stock, _ = saved(name, tmp_path)
    dense = logits_of(stock, IDS)
    per_expert(stock, tmp_path / "old", names)
    peft = PeftModel.from_pretrained(stock, str(tmp_path / "old"))
    expected = logits_of(peft, IDS)
    assert (expected - dense).abs().max() > 0.05 * dense.abs().max()
    peft.save_pretrained(str(tmp_path / "new"))
    for folder in ("old", "new"):
        model = load_adapter(tiny(name), str(tmp_path / folder), trainable=True)
        assert not any(".gate_proj" in path for path in lora_layers(model))
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))
        assert any(p.requires_grad for p in model.parameters())
        job = prepare(PruneConfig(**options(tmp_path, adapter=str(tmp_path / folder), sparsity=0.3, criterion="gate")))
        assert job.adapter.rank == 2
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(logits_of(load_adapter(plain, str(tmp_path / "old")), IDS), expected)
    with pytest.raises(InputError, match="--adapter .*old: LoRA on experts .* cannot be pruned by adapt"):
        prepare_adapt(AdaptConfig(**options(tmp_path, adapter=str(tmp_path / "old"), rank=1)))


def test_scaling_by_the_root_of_the_rank_stays(tmp_path) -> None:
    """Two linears of rank 2 in one of rank 4: each keeps its own scaling."""
    stock, apart = saved("mixtral", tmp_path)
    tensors = per_expert(stock, tmp_path / "old", ("w1", "w3", "w2"), rslora=True)
    layer = lora_layers(load_adapter(apart, str(tmp_path / "old")))["model.layers.0.mlp.experts.1.gate_up"]
    place = "base_model.model.model.layers.0.block_sparse_moe.experts.1.w3.lora_"
    up = 6 / 2**0.5 * tensors[f"{place}B.weight"] @ tensors[f"{place}A.weight"]
    torch.testing.assert_close(layer.get_delta_weight("default")[len(up) :], up)


def test_damaged_and_foreign_adapters_of_experts(tmp_path) -> None:
    stock, apart = saved("mixtral", tmp_path)
    tensors = per_expert(stock, tmp_path / "old", ("w1", "w3", "w2"))
    for drop, words in (
        (".block_sparse_moe.experts.1.w3.lora_B", "one factor of two of .*experts.1.gate_up"),
        (".block_sparse_moe.experts.1.w2.lora_", "lacks 6 of the 54"),
    ):
        kept = {name: tensor for name, tensor in tensors.items() if drop not in name}
        save_file(kept, tmp_path / "old" / "adapter_model.safetensors")
        with pytest.raises(InputError, match=words):
            load_adapter(tiny("mixtral"), str(tmp_path / "old"))
    beside = get_peft_model(stock, LoraConfig(r=2, target_parameters=["mlp.gate.weight"], target_modules=["q_proj"]))
    beside.save_pretrained(str(tmp_path / "router"))
    with pytest.raises(InputError, match=r"LoRA on model.layers.0.mlp.gate, a name that PEFT takes for"):
        load_adapter(apart, str(tmp_path / "router"))


def test_an_adapter_on_shared_experts_and_layers_without(tmp_path) -> None:
    """Whose linears have other names here, and which the routed experts have too: those get none."""
    stock, _ = saved("qwen2_moe", tmp_path)
    dense = logits_of(stock, IDS)
    names = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
    peft = get_peft_model(stock, lora).eval()
    expected = logits_of(peft, IDS)
    assert (expected - dense).abs().max() > 0.05 * dense.abs().max()
    peft.save_pretrained(str(tmp_path / "adapter"))
    model = load_adapter(tiny("qwen2_moe"), str(tmp_path / "adapter"))
    assert not any(".experts." in path for path in lora_layers(model))
    torch.testing.assert_close(logits_of(model, IDS), expected, rtol=0.0, atol=float(2e-5 * expected.abs().max()))


def test_adapt_takes_the_linears_that_peft_can_name(tmp_path) -> None:
    for name in MOE:
        model = saved(name, tmp_path / name)[0]
        found = adaptable(model)
        job = prepare_adapt(AdaptConfig(**options(tmp_path / name, init_rank=4, rank=2)))
        more = (
            ("gate_proj", "up_proj", "down_proj") if name == "qwen2_moe" else ()
        )  # PEFT leaves this type's names alone
        assert set(job.linears) == set(found) == {"q_proj", "k_proj", "v_proj", "o_proj", *more}
        assert any("LoRA does not reach" in note and "mlp.experts" in note for note in job.notes)
    assert adaptable(tiny("mistral")) == "all-linear"
    assert misread(["q_proj", "down_proj"], model) == {"down_proj"}


class Router(nn.Linear):
    def forward(self, x):
        return super().forward(x), None


def test_a_mixture_is_not_streamed() -> None:
    config = PruneConfig(model="m", data=("d",), output="o", sparsity=0.3, stream_export=True)
    with pytest.raises(InputError, match="--stream-export: a qwen3_moe is a mixture"):
        plan_budget(config, tiny("qwen3_moe").config)


def test_linears_that_no_forward_pass_calls() -> None:
    model = tiny("mistral")
    layer = model.model.layers[0]
    layer.dt_proj = nn.Linear(4, 4)
    model.vision = nn.ModuleList([nn.Linear(2, 2)])
    layer.mlp.register_forward_hook(lambda module, args, output: (layer.router(args[0]), output)[1])
    layer.router = Router(48, 4)
    assert uncalled_linears(model, IDS) == ["model.layers.0.dt_proj", "model.layers.0.router", "vision.0"]
    assert not expert_lists(model)
    assert unstack_experts(model) == 0


def test_a_checkpoint_of_other_names_is_not_gone_on_from(tmp_path) -> None:
    model = get_peft_model(tiny("mixtral"), LoraConfig(r=2, target_modules=["gate_up", "down"]))
    model.save_pretrained(str(tmp_path))
    check_resumable(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {k.replace(".down.", ".down_proj."): t for k, t in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(InputError, match=r"has LoRA on other linears than this run .*experts.0.down.* and 47 more"):
        check_resumable(model, tmp_path)
