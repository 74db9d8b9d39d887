"""`--experts`: a run that goes on loses the experts that it lost before, whatever the router says by then."""

import json
from io import StringIO

import pytest
import torch
from safetensors.torch import load_file

from secateur.config.options import build
from secateur.config.prune import PruneConfig
from secateur.runs.prune import prune
from secateur.system.progress import Progress
from secateur.training.callback import PruningCallback
from secateur.training.prepare import prepare
from tests.architecture.test_mixtures import saved


class Died(Exception):
    pass


def run(place, output, **more):
    given = {
        "model": str(place / "model"), "data": (str(place / "text.txt"),), "output": str(output), "sparsity": 0.3,
        "steps": 4, "batch_size": 2, "seq_len": 32, "frequency": 1, "dtype": "float32", "save_steps": 1,
        "criterion": "magnitude", "experts": 3, "experts_by": "router",
    }  # fmt: skip
    job = prepare(build(PruneConfig, given | more))
    prune(job, Progress(job.total_steps, stream=StringIO()))
    return load_file(output / "model.safetensors")


def test_resumed_loses_the_experts_that_went_before(tmp_path, monkeypatch) -> None:
    saved("mixtral", tmp_path)
    whole = run(tmp_path, tmp_path / "whole")
    real = PruningCallback.on_optimizer_step

    def dying(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise Died
        real(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(PruningCallback, "on_optimizer_step", dying)
        with pytest.raises(Died):
            run(tmp_path, tmp_path / "out")
    record = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert json.loads((tmp_path / "out.run" / "experts.json").read_text()) == record["experts"]["gone"]
    monkeypatch.setattr("secateur.training.routing.drop_experts", None)  # not asked again
    resumed = run(tmp_path, tmp_path / "out", resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
