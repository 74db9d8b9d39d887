"""What Python gives: every argument is checked where it is given, and errors speak Python."""

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PeftMixedModel, PromptTuningConfig, get_peft_model
from tiny import tiny_llama

from secateur import CRITERIA, Family, Pruner, PruningOptions, RankOptions, RankPruner
from secateur.cli import main
from secateur.config.prune import PruneConfig
from secateur.criteria import Criterion
from secateur.ranks import RankCriterion
from secateur.system.errors import InputError
from secateur.system.voice import flags_spoken, in_python


def adapted(**lora):
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(layers=2), LoraConfig(**{"r": 4, "target_modules": "all-linear", **lora}))


@pytest.fixture(scope="module")
def model():
    return adapted()


def ones(pool, evidence, scoring):
    return torch.ones(pool.size)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frequency": 0}, "frequency is 0: give at least 1, in whole steps, or a fraction"),
        ({"frequency": "10"}, "frequency is '10': expected a number"),
        ({"frequency": 2.5}, "frequency is 2.5: give at least 1, in whole steps"),
        ({"options": PruningOptions(frequency=float("inf"))}, "frequency is inf: expected a number"),
        ({"options": PruningOptions(frequency=float("nan"))}, "frequency is nan: expected a number"),
        ({"options": PruningOptions(frequency=-1)}, "frequency is -1: give at least 1"),
        ({"options": {"sparsity": 0.2}}, "options is a dict: give a PruningOptions"),
        ({"prune_start": 0.7, "prune_end": 0.3}, "prune_start=0.7 is not before prune_end=0.3"),
        ({"prune_start": float("nan")}, "prune_start is nan: expected a number"),
        ({"sparsity": 1}, "sparsity is 1.0: give a number between 0 and 1"),
        ({"sparsity": "0.4"}, "sparsity is '0.4': expected a number"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"sparsity": [0.4]}, r"sparsity is \[0.4\]: expected a number"),
        ({"sparsity": 0.97}, 'sparsity=0.97 is not reachable with allocation="uniform": .*use allocation="global"'),
        ({"ema": float("nan")}, "ema is nan"),
        ({"round_to": 0}, "round_to is 0"),
        ({"protect_first": 1}, 'allocation="uniform" rules out: use allocation="protected"'),
        ({"criterion": "gaet"}, "Did you mean 'gate'"),
        ({"criterion": "magnitude", "normalize": "scale"}, 'normalize="scale" undoes'),
        ({"compensate": "bias"}, 'compensate="bias": .*use compensate="lstsq"'),
        ({"shrink": "no"}, "shrink is 'no': expected true or false"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"total_steps": "20"}, "total_steps is '20'"),
        ({"total_steps": 2.5}, "total_steps is 2.5: give a whole number"),
        ({"scoring": {"reduce": "abs"}}, "secateur.Scoring"),
        ({"family": 3}, "family is 3: give the name of a layout"),
        ({"family": "gpt2"}, "no module 'transformer.h'.*give another family"),
    ],
)
def test_a_pruners_arguments(model, given, said) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Pruner(model, **{"sparsity": 0.4, "total_steps": 20, **given})
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"sparsity": np.float32(0.4), "frequency": np.int64(5)},
        {"sparsity": torch.tensor(0.4), "frequency": 5.0, "total_steps": 20.0},
        {"prune_start": np.float32(0.1), "prune_end": 15, "shrink": 0},
        {"options": PruningOptions(sparsity=0.3), "criterion": "gate"},
    ],
)
def test_what_a_pruner_takes(model, given) -> None:
    pruner = Pruner(model, **{"sparsity": 0.4, "total_steps": 20, **given})
    assert pruner.schedule is not None
    assert pruner.schedule.start == 2
    assert type(pruner.schedule.frequency) is int
    pruner.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": "2"}, "rank is '2': expected a whole number"),
        ({"rank": 9}, r"rank is 9: give a rank from 1 to the adapter's 4 \(r of its LoraConfig\)"),
        ({"options": RankOptions(frequency=0)}, "frequency is 0"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"k1": 20, "k2": 1}, "k1=20 k2=1 takes 2 cuts.*give total_steps=46 or more"),
        ({"prune_start": 0.9}, "prune_start=0.9 is not before prune_end=0.6"),
        (
            {"recovery": "newton+compensate", "criterion": "sparsegpt"},
            'recovery="newton\\+compensate" with criterion="sparsegpt".*use recovery="compensate"',
        ),
    ],
)
def test_a_rank_pruners_arguments(model, given, said) -> None:
    with pytest.raises(InputError, match=said) as caught:
        RankPruner(model, **{"rank": 2, "total_steps": 20, **given})
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"needs": {"gate_gard"}}, "needs has 'gate_gard'. Did you mean 'gate_grad'"),
        ({"needs": "gate_grad"}, r"give a set of names, such as \{'gate_grad'\}"),
        ({"linears": "row"}, "linears is 'row': choose from rows, all"),
        ({"across_layers": "rw"}, "across_layers is 'rw'"),
        ({"changes": "no"}, "changes is 'no'"),
        ({"score": 1.0}, "score is 1.0: give a function"),
    ],
)
def test_a_criterions_arguments(given, said) -> None:
    with pytest.raises(InputError, match=said):
        Criterion(**{"score": ones, "summary": "", **given})
    with pytest.raises(InputError, match="curvature is 'x'"):
        RankCriterion(ones, "", curvature="x")


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda pool, evidence, scoring: torch.ones(pool.size + 1), r"gave a tensor \(3,\) for layer.0.kv_group"),
        (lambda pool, evidence, scoring: 1.0, "gave a float for layer.0.kv_group, which has 2 units"),
        (lambda pool, evidence, scoring: evidence.gates[pool.name], "name in `needs` what it looks at"),
    ],
)
def test_what_a_criterion_returns(model, score, said, monkeypatch) -> None:
    monkeypatch.setitem(CRITERIA._entries, "mine", Criterion(score, ""))
    pruner = Pruner(model, sparsity=0.4, total_steps=20, criterion="mine")
    with pytest.raises(InputError, match=f"the criterion 'mine' .*{said}"):
        pruner.observe()
    monkeypatch.setitem(CRITERIA._entries, "mine", ones)
    with pytest.raises(InputError, match="'mine' is a function: register a"):
        Pruner(model, sparsity=0.4, criterion="mine")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mlp_in": "mlp.up_proj"}, "give the paths in a tuple"),
        ({"o": "self_attn.q_proj"}, "name the linear that follows"),
        ({"o": "self_attn.out"}, "no module 'model.layers.0.self_attn.out'"),
        ({"attributes": {"num_key_value_groups": "group"}}, "attributes hold group: choose from heads"),
        ({"heads": 4}, "heads is 4: give a key of the config"),
        ({"ffn": "inter_size"}, 'family="mine": with 4 query heads.* a llama is built as'),
    ],
)
def test_a_familys_fields(model, given, said) -> None:
    with pytest.raises(InputError, match=said):
        Pruner(model, sparsity=0.4, family=Family(name="mine", **given))


PLAIN = ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda base: "a/model", "the model is a str: give a model of transformers"),
        (lambda base: torch.nn.Linear(2, 2), "the model is a Linear: give"),
        (lambda base: get_peft_model(base, LoraConfig(r=4)), 'give target_modules="all-linear" to LoraConfig, so that'),
        (
            lambda base: get_peft_model(base, AdaLoraConfig(total_step=9, target_modules=PLAIN)),
            "is ADALORA: plain LoRA",
        ),
        (lambda base: get_peft_model(base, LoHaConfig(target_modules=PLAIN)), "is LOHA: plain LoRA"),
        (lambda base: get_peft_model(base, IA3Config(target_modules=PLAIN, feedforward_modules=[])), "is IA3: plain"),
        (lambda base: get_peft_model(base, PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)), "is PROMPT_TUNING"),
        (lambda base: PeftMixedModel(base, LoraConfig(target_modules=PLAIN)), "make it with get_peft_model"),
        (
            lambda base: get_peft_model(base, LoraConfig(target_modules=[], target_parameters=["q_proj.weight"])),
            "LoRA on a parameter",
        ),
    ],
)
def test_models_that_are_none(make, said) -> None:
    for criterion in ("magnitude",) if "all-linear" not in said else ("lora",):
        with pytest.raises(InputError, match=said):
            Pruner(make(tiny_llama(layers=1)), sparsity=0.4, criterion=criterion)


def test_a_compiled_base_under_lora_is_refused() -> None:
    model = adapted()
    model.base_model.model = torch.compile(model.base_model.model, backend="eager")
    with pytest.raises(InputError, match=r"torch.compile's wrapper: call model.compile\(\)"):
        Pruner(model, sparsity=0.4)


def test_lora_that_is_not_at_work() -> None:
    model = adapted()
    model.base_model.disable_adapter_layers()
    with pytest.raises(InputError, match=r"its LoRA is disabled.*enable_adapter_layers"):
        Pruner(model, sparsity=0.4)
    model.base_model.enable_adapter_layers()
    Pruner(model, sparsity=0.4).close()


def test_one_pruner_at_a_time() -> None:
    model, ids = adapted(), torch.arange(3, 35).unsqueeze(0)
    times = {"sparsity": 0.4, "total_steps": 2, "prune_start": 0, "prune_end": 1, "frequency": 1}
    first, second = Pruner(model, **times), Pruner(model, criterion="magnitude", **times)
    with pytest.raises(InputError, match="does not know the run's length: pass total_steps"):
        Pruner(model, sparsity=0.4).step()
    model(input_ids=ids, labels=ids).loss.backward()
    first.observe()
    first.step(torch.optim.SGD([p for p in model.parameters() if p.requires_grad]))
    with pytest.raises(InputError, match=r"\d+ rows where this pruner knows \d+: another pruner has cut the model"):
        second.observe()
    model = adapted()
    masked = Pruner(model, shrink=False, criterion="magnitude", **times)
    Pruner(model, sparsity=0.1).close()  # nothing is hidden yet
    masked.observe()
    masked.step()
    with pytest.raises(InputError, match="another pruner's masks hide units"):
        Pruner(model, sparsity=0.1)


def test_commands_speak_of_flags(model, capsys) -> None:
    with flags_spoken(), pytest.raises(InputError, match="--frequency is 0"):
        Pruner(model, sparsity=0.4, frequency=0)
    assert main(["prune", "--model", "m", "--data", "d", "--output", "o", "--frequency", "0"]) == 2
    assert "--frequency is 0" in capsys.readouterr().err
    with pytest.raises(InputError, match="frequency is 0: give"):
        Pruner(model, PruneConfig(model="m", data=("d",), output="o", sparsity=0.4, frequency=0))


@pytest.mark.parametrize(
    ("flags", "python"),
    [
        ("use --allocation protected or global, which", 'use allocation="protected" or "global", which'),
        ("choose another --criterion.", "choose another criterion."),
        ("--output a/b.c is not empty: pass --overwrite", "output a/b.c is not empty: pass overwrite=True"),
        ("use it with export --format padded", "use it with export --format padded"),
        ("lower --lr, or compute in float32 (--dtype float32).", "lower the learning rate, or compute in float32."),
        ("--no-shrink masks", "shrink=False masks"),
        ("--attention-sparsity 0.3: not reachable", "attention_sparsity=0.3: not reachable"),
        ("pass --family llama to try it", 'pass family="llama" to try it'),
        ("--protect-first 0 --protect-last 0 all", "protect_first=0 protect_last=0 all"),
    ],
)
def test_flags_in_python(flags, python) -> None:
    assert in_python(flags) == python
