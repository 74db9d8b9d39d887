"""LoRA on the input embedding: merged where it is its own, refused where the head has the same weight."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

from secateur import Pruner, RankPruner
from secateur.models.surgery import check_mergeable, merged_and_sliced
from secateur.system.errors import InputError

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]


def adapted(tied: bool, targets=TARGETS):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    return get_peft_model(tiny_llama(layers=1, tied=tied), lora)


def test_its_own_weight_is_merged_as_peft_does() -> None:
    model = adapted(tied=False)
    pruner = Pruner(model, sparsity=0.4, total_steps=2, prune_start=0, prune_end=1, frequency=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(3, 35).unsqueeze(0)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        pruner.observe()
        optimizer.step()
        pruner.step(optimizer)
        optimizer.zero_grad()
    tensors = dict(merged_and_sliced(model, pruner.live, pruner.live_keep))
    before = model.get_base_model().model.embed_tokens.base_layer.weight.detach().clone()
    expected = model.merge_and_unload().state_dict()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)
    assert (tensors["model.embed_tokens.weight"] - before).abs().max() > 0.1


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"]])
def test_a_shared_weight_is_refused(targets) -> None:
    with pytest.raises(InputError, match=r"the input embedding's too \(tie_word_embeddings\)"):
        check_mergeable(adapted(True, targets))


def test_its_rank_is_not_pruned() -> None:
    with pytest.raises(InputError, match="embed_tokens: LoRA on an embedding keeps its rank: leave it out of target_m"):
        RankPruner(adapted(tied=False), rank=2)
