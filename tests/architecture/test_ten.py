"""The types that matter most, through the whole command: resumed to the bit, and two processes as one.

Their formats are in `test_families.py`; plans from published sizes in `benchmarks/families/plans.py`. One for each kind
here; `SECATEUR_FAMILIES=all` takes every one.
"""

import json
import os

import pytest
import torch
from tiny import tiny_tokenizer

from secateur.architecture.experts import stack_experts
from secateur.architecture.families import FAMILIES
from secateur.architecture.stock import stock_class_of
from secateur.training.callback import PruningCallback
from tests.architecture.rows import tiny
from tests.parallel.test_several_processes import command, train, weights
from tests.training.test_resume import WORDS, Died, run

TEN = (
    "qwen3_5_text", "qwen3_next", "gpt_oss", "gemma4_text", "glm4_moe", "lfm2", "granitemoehybrid", "deepseek_v3",
    "ministral3", "olmo3",
)  # fmt: skip
ALL = os.environ.get("SECATEUR_FAMILIES") == "all"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Name of a type -> the folder of its stock model, in float32 as transformers' experts want it."""
    folder = tmp_path_factory.mktemp("ten")

    def saved(name):
        there = folder / name
        if not there.exists():
            apart = tiny(name, 2)
            model = stock_class_of(apart.config)._from_config(apart.config, dtype=torch.float32)
            model.load_state_dict(dict(stack_experts(apart.state_dict().items(), FAMILIES[name])))
            model.save_pretrained(there / "model")
            tiny_tokenizer().save_pretrained(there / "model")
            (there / "text.txt").write_text(WORDS * 60)
        return there

    return saved


@pytest.mark.parametrize("name", TEN if ALL else ["deepseek_v3"])
def test_resumed_is_uninterrupted(place, tmp_path, monkeypatch, name) -> None:
    """A mixture with shared experts and dense layers, of latent attention: cut before and after the run was ended."""
    way = {"criterion": "gate", "steps": 10, "accumulation": 1, "prune_end": 0.9}
    whole = run(place(name), tmp_path / "whole", **way)
    cuts = json.loads((tmp_path / "whole" / "units.json").read_text())["cuts"]
    real = PruningCallback.on_optimizer_step

    def dying(self, args, state, control, **kwargs):
        if state.global_step == cuts[1]["step"]:
            raise Died
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(PruningCallback, "on_optimizer_step", dying)
    with pytest.raises(Died):
        run(place(name), tmp_path / "out", **way)
    monkeypatch.setattr(PruningCallback, "on_optimizer_step", real)
    resumed = run(place(name), tmp_path / "out", resume=True, **way)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
    assert json.loads((tmp_path / "out" / "units.json").read_text())["cuts"] == cuts
    assert len(cuts) > 2


@pytest.mark.parametrize("name", TEN if ALL else ["qwen3_next"])
def test_two_processes_are_one(place, tmp_path, name) -> None:
    """A hybrid with experts: the same units go, by scores of the batches of both. An expert gets some tokens of each
    sequence, and its gate's gradient is that of each sequence, whichever others are in its batch."""
    more = ("--criterion", "gate", "--lr", "5e-3")
    train(2, command(place(name), tmp_path / "two", batch=2, more=more))
    train(1, command(place(name), tmp_path / "one", batch=4, more=more))
    units = [json.loads((tmp_path / way / "units.json").read_text()) for way in ("one", "two")]
    assert [cut["removed"] for cut in units[0]["cuts"]] == [cut["removed"] for cut in units[1]["cuts"]]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()), msg=key)
