"""Resolving, loading and refusing models and tokenizers."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import save_tiny, tiny_llama

from secateur.models.devices import autocast, compute_dtype, default_device
from secateur.models.files import check_checkpoint
from secateur.models.loading import _doing, load_config, load_model
from secateur.models.source import ModelSource, resolve_model
from secateur.models.tokenizers import load_tokenizer
from secateur.system.errors import InputError
from secateur.system.machine import devices


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("saved") / "model", layers=2, max_shard_size="50KB")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def source_of(folder):
    return resolve_model(str(folder))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loads_in_the_checkpoint_dtype(tmp_path, tied, dtype, capfd):
    source = source_of(save_tiny(tmp_path / "m", layers=1, tied=tied, dtype=dtype))
    capfd.readouterr()
    model = load_model(source)
    assert capfd.readouterr() == ("", "")  # no bars, no reports
    assert model.dtype == dtype
    assert not model.training
    for key, value in tiny_llama(layers=1, tied=tied, dtype=dtype).state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert load_model(source, dtype="float32").dtype == torch.float32
    assert load_config(source).num_hidden_layers == 1
    assert load_tokenizer(source).decode(load_tokenizer(source)("Hi")["input_ids"]) == "Hi"


def test_what_comes_over_the_network_is_said(monkeypatch, folder):
    here: set[str] = set()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: file if file in here else None)
    assert _doing(source_of(folder)) == "loading"
    assert _doing(ModelSource("org/name", "org/name")) == "downloading and loading"
    here.add("model.safetensors.index.json")
    assert _doing(ModelSource("org/name", "org/name")) == "loading"


def test_resolve_forms(folder, tmp_path):
    assert resolve_model(str(folder)) == ModelSource(str(folder), str(folder), None)
    (tmp_path / "m.GGUF").write_bytes(b"GGUF")
    gguf = str(tmp_path / "m.GGUF")
    assert resolve_model(gguf) == ModelSource(gguf, str(tmp_path), "m.GGUF")
    assert resolve_model("some-org/Some_M-1.5B") == ModelSource("some-org/Some_M-1.5B", "some-org/Some_M-1.5B")
    assert resolve_model("gpt2").path == "gpt2"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"'\./nowhere': no such folder or file\. Check the path, or give a hub id"),
        ("/no/where", "no such folder or file"),
        ("a/b/c", "no such folder or file"),
        ("model.gguf", "no such folder or file"),
        ("smollm2-135m-instuct", r"unknown model 'smollm2-135m-instuct'\. Did you mean 'smollm2-135m-instruct'\?"),
        ("two words", "no valid hub id: give one of these .*org/name"),
        ("", "no config.json|no valid hub id"),
    ],
)
def test_resolve_refuses_names(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        resolve_model(name)


def test_resolve_refuses_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="'sub/typo': no such folder"):
        resolve_model("sub/typo")
    with pytest.raises(InputError, match=r"'sub': the folder has no config\.json"):
        resolve_model("sub")
    (tmp_path / "sub/x.gguf").touch()
    with pytest.raises(InputError, match=r"GGUF files: give one, such as sub/x\.gguf"):
        resolve_model("sub")
    (tmp_path / "sub/adapter_config.json").touch()
    with pytest.raises(InputError, match=r"is a LoRA adapter, not a model: .* --adapter sub"):
        resolve_model("sub")
    (tmp_path / "model.pt").touch()
    with pytest.raises(InputError, match=r"'model\.pt' is a file that is not \.gguf: give the folder"):
        resolve_model("model.pt")


def test_missing_shard(folder):
    next(folder.glob("model-00002*")).unlink()
    for read in (check_checkpoint, load_model):
        with pytest.raises(InputError, match=r"incomplete: model-00002-of-\d+\.safetensors, named in .* missing"):
            read(source_of(folder))


@pytest.mark.parametrize("keep", [0, 4, 0.5])
def test_truncated_shard(folder, keep):
    shard = next(folder.glob("model-00001*"))
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"model-00001-of-.*\.safetensors is corrupt or truncated .*: copy"):
        load_model(source_of(folder))


def test_corrupt_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(InputError, match=r"index\.json is corrupt"):
        load_model(source_of(folder))


def test_pickles_only_and_no_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(InputError, match=r"has no weights: expected model\.safetensors"):
        load_model(source_of(folder))
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(InputError, match=r"pickles only.*save_pretrained"):
        load_model(source_of(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 80}, r"6 weights do not have the shape .*down_proj.*: \(64, 96\) .*\(64, 80\)"),
        ({"num_hidden_layers": 3}, r"9 weights are not in the checkpoint, such as model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"9 weights of layers that config.json does not know, .* model.layers.1\."),
        ({"intermediate_size": 80, "auto_map": {"AutoModelForCausalLM": "m.M"}}, "pass trust_remote_code=True"),
    ],
)
def test_weights_and_config_that_do_not_fit(folder, changes, message, capfd):
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        load_model(source_of(folder))
    assert capfd.readouterr() == ("", "")


def test_weights_beside_the_model_are_warned_about(folder, caplog):
    from safetensors.torch import load_file, save_file

    shard = next(folder.glob("model-00001*"))
    save_file({**load_file(shard), "vision.weight": torch.ones(2)}, shard, {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["vision.weight"] = shard.name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(source_of(folder))
    assert "1 weights of the checkpoint are no part" in caplog.text


def test_a_weight_that_is_made_of_several_of_which_one_is_missing(tmp_path):
    """transformers stacks experts as it reads them, and says what went wrong in its report alone."""
    from safetensors.torch import load_file, save_file
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    state = load_file(path)
    gone = "model.layers.0.mlp.experts.2.up_proj.weight"
    save_file({name: value for name, value in state.items() if name != gone}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"experts\.gate_up_proj cannot be made of the checkpoint's tensors \(.*Error"):
        load_model(source_of(tmp_path / "m"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": ', r"config\.json is not valid JSON"),
        ("[]", r"config\.json is no JSON object but \[\]: copy or download it again"),
        ('{"hidden_size": 4}', "transformers does not know its architecture .*Check model_type"),
        ('{"model_type": "lama9"}', "`lama9`.*or update transformers"),
        (
            '{"model_type": "mine", "auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}}',
            "ships Python code of its own: read it, and pass --trust-remote-code",
        ),
        (
            '{"model_type": "llama", "hidden_size": 62, "num_attention_heads": 4}',
            r"hidden_size 62, num_attention_heads 4: The hidden size \(62\) is not a multiple of .*\(4\)\. Correct it",
        ),
    ],
)
def test_bad_config(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(source_of(folder))


def test_no_or_corrupt_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json cannot be read .*: copy or download it again"):
        load_tokenizer(source_of(folder))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"has no tokenizer \(tokenizer\.json\): copy the base model's"):
        load_tokenizer(source_of(folder))


def test_not_a_gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK..")
    with pytest.raises(InputError, match=r"m\.gguf is not a GGUF file"):
        load_model(source_of(tmp_path / "m.gguf"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(10))
    with pytest.raises(InputError, match=r"m\.gguf is corrupt or truncated .*copy or download it again"):
        load_model(source_of(tmp_path / "m.gguf"))


def test_the_hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    def refuse_with(error):
        def model_info(self, name, timeout):
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)

    source = resolve_model("no-such-org/no-such-model")
    refuse_with(ConnectionError("[Errno -2] Name or service not known"))
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(InputError, match=r"hub cannot be reached \(\[Errno -2\] Name .*give a local folder"):
            load(source)
    refuse_with(OfflineModeIsEnabled("offline"))
    with pytest.raises(InputError, match="not in the hub cache and HF_HUB_OFFLINE is set: unset it"):
        load_config(source)
    refuse_with(RepositoryNotFoundError.__new__(RepositoryNotFoundError))
    with pytest.raises(InputError, match="not on the hub, or private: check the spelling"):
        load_config(source)


def test_compute_dtype_and_autocast(monkeypatch):
    assert compute_dtype("float16") == torch.float16
    monkeypatch.setattr(devices, "accelerator", lambda: None)
    for capabilities, expected in [({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert compute_dtype("auto") == expected
    assert default_device() == torch.device("cpu")
    a = torch.ones(2, 2)
    with autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with autocast("cpu", torch.float32):
        assert (a @ a).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_beside_the_weights_is_not_the_models(saved, folder, tmp_path, caplog) -> None:
    adapter = get_peft_model(tiny_llama(layers=2), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapter.peft_config["default"].base_model_name_or_path = "org/elsewhere"
    adapter.save_pretrained(folder)
    expected, found = (load_model(resolve_model(str(place))).state_dict() for place in (saved, folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert "has a LoRA adapter beside its weights (adapter_config.json), which is not read" in caplog.text


def test_a_model_that_returns_tuples_answers_by_name(folder) -> None:
    edit_config(folder, return_dict=False)
    source = resolve_model(str(folder))
    assert load_config(source).return_dict
    assert load_model(source)(torch.zeros(1, 2, dtype=torch.long)).logits.shape == (1, 2, 128)


@pytest.mark.parametrize(("line", "said"), [
    ("import not_there_at_all", "needs a package that is not installed: pip install 'not_there_at_all'"),
    ("def (", "its own code, or what auto_map in config.json says of it, ends in an error (SyntaxError"),
])  # fmt: skip
def test_code_of_its_own_that_does_not_run_is_not_a_fault_of_the_configuration(folder, line, said) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "own_model.Own"})
    (folder / "own_model.py").write_text(f"{line}\n")
    with pytest.raises(InputError) as raised:
        load_model(resolve_model(str(folder)), trust_remote_code=True)
    assert said in str(raised.value)
    assert "config.json cannot be used" not in str(raised.value)
