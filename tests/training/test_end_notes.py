"""What ends a reply in the data, and is no end by the model's settings, is said before a run."""

import json
from types import SimpleNamespace

import pytest
from tiny import tiny_llama, tiny_tokenizer

from secateur.models.source import resolve_model
from secateur.training.job import _end_notes


@pytest.mark.parametrize(("eos", "said"), [(0, True), ([0, 5], False), (5, False), (None, True)])
def test_an_end_that_other_readers_would_not_stop_at(eos, said, tmp_path) -> None:
    config, tokenizer = tiny_llama().config, tiny_tokenizer()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    notes = _end_notes(SimpleNamespace(enders=[5]), resolve_model(str(tmp_path)), config, tokenizer)
    assert len(notes) == said
    assert all("add 5 to it in the result's generation_config.json" in note for note in notes)
    assert _end_notes(SimpleNamespace(enders=[]), resolve_model(str(tmp_path)), config, tokenizer) == []
