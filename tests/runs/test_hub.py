"""What the hub has after a push is what was verified, without this machine's paths; what cannot be is said before."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from hub import NARROW, READ_ONLY, TOKEN, serving
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from tiny_gguf import save_gguf
from transformers import AutoModelForCausalLM

from secateur.cli import main
from secateur.training import finetune

# huggingface_hub hands large files to its HTTP client in a way that this one advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box and quarrel about nothing at all. "
TRAIN = ["--steps", "6", "--batch-size", "2", "--seq-len", "32", "--frequency", "2", "--dtype", "float32"]


@pytest.fixture
def hub(monkeypatch):
    with serving() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its store speaks no HTTP of ours
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, a text, and what a layered result of two files of weights looks like, with this machine's paths."""
    folder = tmp_path_factory.mktemp("hub")
    save_tiny(folder / "model", layers=2)
    (folder / "model" / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "text.txt").write_text(WORDS * 40)
    made = save_tiny(folder / "result", layers=2, max_shard_size="100KB")
    config = {"model": str(folder / "model"), "data": [str(folder / "text.txt")], "output": str(made)}
    export = {"folder": str(made), "loads_with": f"from_pretrained({json.dumps(str(made))})"}
    export["sha256"] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in made.glob("*.safetensors")}
    (made / "result.json").write_text(json.dumps({"status": "done", "config": config, "export": export}))
    (made / "report.html").write_text(f"<p>secateur prune --output {made}</p>")
    (made / "README.md").write_text('---\nlicense: mit\n---\n# R\n\n```python\nm = A.from_pretrained("result")\n```\n')
    (made / ".cache").mkdir()
    (made / ".cache" / "x").write_text("not a result's")
    (made / "runs").mkdir()
    (made / "runs" / "events.host").write_text("not a result's either")
    return folder


def test_a_run_s_result_goes_to_the_hub_byte_for_byte(hub, place, tmp_path, capsys) -> None:
    out = tmp_path / "small"
    argv = ["prune", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--output", str(out)]
    argv += ["--eval-data", str(place / "text.txt"), "--sparsity", "0.3", "--allocation", "global", *TRAIN]
    assert main([*argv, "--push-to-hub", "llama-small", "--private", "--base-model", "meta/llama"]) == 0
    assert f"{hub.address}/me/llama-small: " in capsys.readouterr().out
    assert hub.private["me/llama-small"]
    found = hub.repos["me/llama-small"]
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert set(found) - {".gitattributes"} == set(files)
    rewritten = {name for name in files if found[name] != files[name]}
    assert rewritten == {"README.md", "result.json", "run.yaml", "report.html"}
    for name, content in found.items():
        for private in (tmp_path, place, Path.home()):
            assert f"{private}/".encode() not in content, name
        assert str(out).encode() not in content, name
    card = found["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["license"], front["library_name"]) == ("meta/llama", "mit", "transformers")
    assert "secateur" in front["tags"]
    (figures,) = front["model-index"][0]["results"]
    measured = json.loads(files["result.json"])["pruned"]["perplexity"]["perplexity"]
    assert figures["metrics"][0]["value"] == pytest.approx(measured, abs=1e-4)
    assert figures["dataset"]["name"] == "text.txt"
    assert 'AutoModelForCausalLM.from_pretrained("me/llama-small", trust_remote_code=True)' in card
    record = json.loads(found["result.json"])
    assert record["config"]["model"] == "meta/llama"
    assert record["config"]["output"] == record["export"]["folder"] == "small"
    # Again, as a resumed run that is done: nothing is sent.
    sent, asked = len(hub.sent), len(hub.asked)
    assert main(["push", str(out), "me/llama-small", "--base-model", "meta/llama"]) == 0
    assert "already" in capsys.readouterr().out
    assert len(hub.sent) == sent
    assert not [line for line in hub.asked[asked:] if "commit" in line]


def test_what_was_uploaded_before_an_interruption_is_not_sent_again(hub, place, capsys) -> None:
    shards = sorted((place / "result").glob("*.safetensors"))
    assert len(shards) > 2
    hub.breaks_after = 1
    assert main(["push", str(place / "result"), "org/x"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the same command goes on: secateur push {place / 'result'} org/x" in said
    assert set(hub.repos["org/x"]) == {".gitattributes"}, "nothing half-written"
    hub.breaks_after = None
    assert main(["push", str(place / "result"), "org/x"]) == 0
    assert len(hub.sent) == len(set(hub.sent)) == len(shards)
    found = hub.repos["org/x"]
    assert all(found[path.name] == path.read_bytes() for path in shards)
    assert 'from_pretrained("org/x")' in found["README.md"].decode()
    assert not any("runs" in name or "cache" in name for name in found)


def test_an_adapter_names_its_base_on_the_hub(hub, place, tmp_path, capsys) -> None:
    folder = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    assert main(["push", str(folder), "x"]) == 2
    assert "say what it is called on the hub with --base-model OWNER/NAME" in capsys.readouterr().err
    assert not hub.asked
    assert main(["push", str(folder), "x", "--base-model", "meta/llama"]) == 0
    found = hub.repos["me/x"]
    assert json.loads(found["adapter_config.json"])["base_model_name_or_path"] == "meta/llama"
    assert found["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert all(str(place).encode() not in content for content in found.values())


def test_a_gguf_file_alone(hub, tmp_path) -> None:
    file = save_gguf(tmp_path / "small.gguf")
    assert main(["push", str(file), "x", "--base-model", "meta/llama"]) == 0
    found = hub.repos["me/x"]
    assert set(found) == {".gitattributes", "small.gguf", "README.md"}
    assert found["small.gguf"] == file.read_bytes()
    front = yaml.safe_load(found["README.md"].decode().split("---")[1])
    assert front == {
        "library_name": "gguf", "pipeline_tag": "text-generation", "tags": ["secateur"], "base_model": "meta/llama",
    }  # fmt: skip


def test_weights_that_were_not_verified_stay_here(hub, place, tmp_path, capsys) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in (place / "result").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    shard = min(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    assert main(["push", str(folder), "x"]) == 4
    assert "is not what the run wrote and verified" in capsys.readouterr().err
    assert not hub.asked


def test_bytes_that_the_hub_lost_are_noticed(hub, place, capsys) -> None:
    hub.spoils = True
    assert main(["push", str(place / "result"), "x"]) == 4
    assert "is not there as it was sent" in capsys.readouterr().err


def test_overwrite_leaves_this_folder_s_files_alone(hub, place, capsys) -> None:
    hub.repos["me/x"], hub.private["me/x"] = {".gitattributes": b"", "old.bin": b"1", "config.json": b"{}"}, False
    assert main(["push", str(place / "result"), "x"]) == 2
    assert "has other files (config.json and more)" in capsys.readouterr().err
    assert main(["push", str(place / "result"), "x", "--overwrite"]) == 0
    assert "old.bin" not in hub.repos["me/x"]
    assert hub.repos["me/x"]["config.json"] == (place / "result" / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "token", "trouble", "said"),
    [
        ("x", None, {}, "no token of the hub's is here: log in with `hf auth login`, or set HF_TOKEN"),
        ("x", "hf_wrong", {}, "the hub does not accept the token"),
        ("x", READ_ONLY, {}, "the token may only read"),
        ("x", NARROW, {}, "the token may not write to repositories of me"),
        ("other/x", TOKEN, {}, "other is another's name, and this token is of me: choose me/x"),
        ("readers/x", TOKEN, {}, "in readers you may only read"),
        ("x", TOKEN, {"whoami": 429}, "the hub asks to wait"),
        ("x", TOKEN, {"whoami": 500}, "the hub answers 500"),
        ("taken", TOKEN, {}, "me/taken has other files (model.safetensors): choose another name"),
        ("public", TOKEN, {}, "is there and public"),
        ("a..b", TOKEN, {}, "a name on the hub is NAME or OWNER/NAME"),
    ],
)  # fmt: skip
def test_what_the_hub_will_not_take_is_known_before_the_run(
    hub, place, tmp_path, monkeypatch, capsys, name, token, trouble, said
) -> None:
    monkeypatch.setattr(finetune, "load_model", None)  # no weights are read
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(huggingface_hub.utils._headers, "get_token", lambda: token)
    hub.status = trouble
    hub.repos = {"me/taken": {"model.safetensors": b"1"}, "me/public": {}}
    hub.private = {"me/taken": True, "me/public": False}
    argv = ["prune", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--sparsity", "0.3"]
    argv += ["--output", str(tmp_path / "o"), *TRAIN, "--push-to-hub", name, "--private"]
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not any(tmp_path.iterdir())
    assert not [line for line in hub.asked if "create" in line or "commit" in line]


def test_no_network(place, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(place / "result"), "x"]) == 2
    assert "the hub cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(place / "result"), "x"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--private"], "--private is said of a result on the hub: add --push-to-hub"),
        (["--push-to-hub", "x"], "say what it is called on the hub with --base-model"),
    ],
)
def test_an_adapter_s_run_asks_before_it_begins(hub, place, tmp_path, capsys, more, said) -> None:
    argv = ["adapt", "--model", str(place / "model"), "--data", str(place / "text.txt"), "--rank", "2"]
    assert main([*argv, "--init-rank", "4", "--output", str(tmp_path / "o"), *TRAIN, *more]) == 2
    assert said in capsys.readouterr().err
    assert not hub.asked


def test_no_result(hub, tmp_path, capsys) -> None:
    (tmp_path / "x.txt").write_text("x")
    for given, said in ((tmp_path / "none", "no such folder or file"), (tmp_path, "holds no result")):
        assert main(["push", str(given), "x"]) == 2
        assert said in capsys.readouterr().err
