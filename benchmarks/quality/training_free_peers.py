"""Prunes with optipfair or Torch-Pruning, in an environment that has them; started by training_free.py.

    python training_free_peers.py optipfair DENSE TOKENS OUTPUT PARAMETERS

optipfair: the share of every FFN that leaves no more parameters than asked for, by its data-driven score on the tokens.
torch-pruning: as its example for LLMs (examples/LLMs/prune_llm.py: the width of the residual stream and of the FFN by
group magnitude), heads left alone, which its example would leave in numbers that no GQA model can have.
torch-pruning-taylor: its Taylor score on the tokens, of the FFN alone.
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main() -> None:
    peer, dense, tokens, output, parameters = sys.argv[1:]
    ids = load_file(tokens)["tokens"]
    low, high = 0.0, 0.95
    for _ in range(7):  # the least share that leaves few enough
        share = (low + high) / 2
        if count(PEERS[peer](load(dense), ids[:1], share, scores=False)) <= int(parameters):
            high = share
        else:
            low = share
    model = PEERS[peer](load(dense), ids, high, scores=True)
    model.config.tie_word_embeddings = model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(output)
    print(f"{peer}: {high:.2%} of what it prunes, {count(model):,} parameters")


def load(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def optipfair(model: torch.nn.Module, ids: torch.Tensor, share: float, scores: bool) -> torch.nn.Module:
    from optipfair import prune_model

    loader = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    data = {"dataloader": loader} if scores else {}
    return prune_model(model, pruning_percentage=100 * share, show_progress=False, **data)


def torch_pruning(model: torch.nn.Module, ids: torch.Tensor, share: float, scores: bool) -> torch.nn.Module:
    import torch_pruning as tp

    importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean")
    return pruned(tp, model, ids, importance, share, [model.lm_head])


def torch_pruning_taylor(model: torch.nn.Module, ids: torch.Tensor, share: float, scores: bool) -> torch.nn.Module:
    import torch_pruning as tp

    if not scores:
        importance = tp.importance.GroupMagnitudeImportance(p=2)
    else:
        importance = tp.importance.GroupTaylorImportance()
        for row in ids:
            model(input_ids=row[None], labels=row[None], use_cache=False).loss.backward()
    stream = [model.lm_head, model.model.embed_tokens]
    stream += [m for n, m in model.named_modules() if n.endswith(("o_proj", "down_proj", "q_proj", "k_proj", "v_proj"))]
    return pruned(tp, model, ids, importance, share, stream)


def pruned(tp, model, ids, importance, share, ignored):
    heads = {}
    for module in model.modules():
        if hasattr(module, "q_proj"):
            heads[module.q_proj] = model.config.num_attention_heads
            heads[module.k_proj] = heads[module.v_proj] = model.config.num_key_value_heads
            ignored = [*ignored, module.q_proj, module.k_proj, module.v_proj]
    model.config.use_cache = False
    pruner = tp.pruner.BasePruner(
        model, example_inputs=ids[:1, :8], importance=importance, global_pruning=False,
        output_transform=lambda out: out.logits, pruning_ratio=share, ignored_layers=ignored, num_heads=heads,
        prune_num_heads=False, prune_head_dims=False, round_to=4,
    )  # fmt: skip
    for group in pruner.step(interactive=True):
        group.prune()
    model.config.hidden_size = model.lm_head.in_features
    model.config.intermediate_size = model.model.layers[0].mlp.gate_proj.out_features
    return model


PEERS = {
    "optipfair": optipfair,
    "torch-pruning": torch_pruning,
    "torch-pruning-taylor": torch_pruning_taylor,
}

if __name__ == "__main__":
    main()
