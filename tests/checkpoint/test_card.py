"""The model card's licence is the base model's, from wherever its card is."""

from types import SimpleNamespace

import huggingface_hub
import pytest

from secateur.checkpoint.card import base_licence, padded_card, plain_card


def local(folder, front: str):
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    return folder


def card_of(folder) -> str:
    return plain_card(str(folder), 100, "", "", folder)


def test_a_local_model_s_licence_goes_on_whole(tmp_path) -> None:
    own = "license: other\nlicense_name: llama9\nlicense_link: https://example.org/l"
    card = card_of(local(tmp_path / "own", own))
    assert own in card
    assert "base_model" not in card
    assert "The base model's licence applies: llama9 (https://example.org/l)." in card
    assert "The base model's licence applies: mit." in card_of(local(tmp_path / "mit", "license: mit"))
    unknown = card_of(local(tmp_path / "none", "tags: [x]"))
    assert "license: other" in unknown
    assert "does not state it" in unknown


def test_a_hub_model_s_licence_is_asked_for(monkeypatch) -> None:
    asked = []

    def model_info(self, name, timeout):
        asked.append(name)
        if name == "org/gone":
            raise OSError("no network")
        front = {"license": "gemma", "pipeline_tag": "text-generation"} if name == "org/model" else None
        return SimpleNamespace(card_data=front and SimpleNamespace(to_dict=lambda: front))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert base_licence("org/model", None) == {"license": "gemma"}
    assert base_licence("org/bare", None) == base_licence("org/gone", None) == {}
    assert asked == ["org/model", "org/bare", "org/gone"]
    card = plain_card("org/model", 100, "", "", None)
    assert "license: gemma" in card
    assert "base_model: org/model" in card


def test_a_hub_model_s_cached_card_needs_no_network(tmp_path, monkeypatch) -> None:
    readme = local(tmp_path / "cached", "license: apache-2.0") / "README.md"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(readme))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: pytest.fail("the hub was asked"))
    assert base_licence("org/model", None) == {"license": "apache-2.0"}


def test_a_card_without_code_gets_the_format_at_its_end() -> None:
    card = padded_card("# X\n", "model = load()", [])
    assert card.startswith("# X\n\nThis is the `padded` form")
    assert card.endswith("```python\nmodel = load()\n```\n")
