"""A draft's proposals are counted as they are: all of a model that drafts for itself, another's as by brute force."""

import json

import pytest
import torch
from tiny import save_tiny, tiny_llama

from secateur.cli import main
from secateur.evaluation.drafting import (
    Rounds,
    best_speed_up,
    cost_at_7b,
    counted,
    drafting,
    generate,
    speed_up,
)

PROMPT = torch.randint(3, 99, (1, 20), generator=torch.Generator().manual_seed(5))


def rounds_of(draft, target, count: int, drafted: int) -> Rounds:
    rounds = Rounds()
    with drafting(draft, target, drafted):
        with counted(draft, target, rounds, 20) as finish:
            found = generate(target, draft, PROMPT, count, torch.float32)
            finish(found.shape[1])
        assert torch.equal(found, generate(target, None, PROMPT, count, torch.float32))
    return rounds


def test_a_model_takes_all_that_it_proposes_itself() -> None:
    target = tiny_llama(layers=2)
    rounds = rounds_of(tiny_llama(layers=2), target, 23, 4)
    assert rounds.proposed == rounds.accepted == [4, 4, 4, 4, 2]
    assert rounds.acceptance == rounds.each == 1
    assert rounds.tokens_per_step == 23 / 5
    assert target.generation_config.eos_token_id == 0, "as it was"
    assert not target._forward_pre_hooks


@pytest.mark.parametrize("drafted", [1, 3, 5])
def test_another_s_proposals_by_brute_force(drafted) -> None:
    """Without a cache and without transformers' loop: propose greedily, compare with the target's greedy text."""
    target, draft = tiny_llama(layers=2), tiny_llama(layers=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.02
    with drafting(draft, target, drafted):
        text = generate(target, None, PROMPT, 40, torch.float32)[0]
    at, proposed, accepted = 20, [], []
    while at < 60:
        written = text[:at].clone()
        for _ in range(min(drafted, 60 - at - 1)):
            written = torch.cat((written, draft(written[None]).logits[0, -1:].argmax(-1)))
        proposed.append(len(written) - at)
        same = (written[at:] == text[at : len(written)]).long().cumprod(0).sum()
        accepted.append(int(same))
        at += int(same) + 1
    rounds = rounds_of(draft, target, 40, drafted)
    assert (rounds.proposed, rounds.accepted) == (proposed, accepted)
    assert 0.05 < rounds.acceptance < 0.95
    assert rounds.tokens_per_step == 40 / len(accepted)


def test_the_speed_up_is_the_paper_s() -> None:
    """Tokens of a round summed one by one, over its cost."""
    for each, drafted, cost in ((0.8, 4, 0.5), (0.3, 2, 0.1), (1.0, 3, 0.2), (0.0, 5, 0.4)):
        tokens = sum(each**i for i in range(drafted + 1))
        assert speed_up(each, drafted, cost) == pytest.approx(tokens / (drafted * cost + 1))
    assert best_speed_up(0.5, 0.9) == (0, 1.0)
    drafted, gain = best_speed_up(0.9, 0.05)
    assert gain == max(speed_up(0.9, n, 0.05) for n in range(17))
    assert drafted > 4
    assert Rounds([4, 4, 4], [4, 0, 2]).each == 6 / 8  # 4 taken; one refused; 2 taken and one refused
    assert cost_at_7b(tiny_llama(), tiny_llama()) == 1
    assert cost_at_7b(tiny_llama(layers=2), tiny_llama(layers=4)) == pytest.approx(0.51, abs=0.01)


def test_the_command(tmp_path, capsys) -> None:
    save_tiny(tmp_path / "m", layers=2)
    save_tiny(tmp_path / "d", layers=1)
    save_tiny(tmp_path / "other", layers=1, vocab=130)
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    argv = ["bench", "--draft", str(tmp_path / "d"), "--against", str(tmp_path / "m"), "--dtype", "float32"]
    argv += ["--prompts", "2", "--draft-tokens", "12", "--prompt-data", str(tmp_path / "t.txt")]
    assert main([*argv, "--output", str(tmp_path / "o.json")]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 texts are the target's own to the token" in said
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["rounds"] == pytest.approx(2 * 12 / record["tokens_per_target_step"])
    assert record["cost_at_7b"] == pytest.approx(0.51, abs=0.01)
    for more, message in (
        (["--model", str(tmp_path / "m")], "--draft takes the place of --model"),
        (["--prompts", "90"], "--prompts 90 takes 5760"),
    ):
        assert main([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    argv[2] = str(tmp_path / "other")
    assert main(argv) == 2
    assert "a draft shares its target's tokenizer" in capsys.readouterr().err
    assert main(["bench", "--draft", str(tmp_path / "d")]) == 2
    assert "--draft needs --against" in capsys.readouterr().err
    assert main(["bench", "--against", str(tmp_path / "d")]) == 2
    assert "--model is required" in capsys.readouterr().err
