"""What the backward pass shows: per-sequence gradients, gates and input moments equal their definitions."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import CHECKPOINTING, tiny_llama, tiny_t5

from secateur import Pruner
from secateur.architecture.discovery import find_units
from secateur.architecture.families import family_of
from secateur.architecture.units import base_linear
from secateur.criteria import CRITERIA, InputMoments, Scoring
from secateur.criteria.cholesky import damped_cholesky
from secateur.criteria.obs import removal_cost
from secateur.pruning.compensation.cost import second_moment_bytes
from secateur.pruning.statistics import Statistics
from secateur.pruning.taps import some_tokens

BATCH, LENGTH = 3, 16
RTOL = 1e-5  # the rotary angles, norms and loss of transformers are float32 inside


@pytest.fixture
def setting():
    """A tiny GQA model in float64, LoRA with non-zero B, and token ids."""
    torch.manual_seed(0)
    model = tiny_llama(layers=2, hidden=48, heads=6, kv_heads=2, ffn=40, dtype=torch.float64, head_dim=8)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    base = model.get_base_model()
    units = find_units(base, family_of("llama"))
    modules = {path: base.get_submodule(path) for path in units.linears}
    return model.train(), units, modules, torch.randint(3, 99, (BATCH, LENGTH))


def collected(setting, name, backward, ema=1.0, steps=1, **options):
    """Scores of every pool by the criterion, after `steps` times `backward(model, ids)`."""
    model, units, modules, ids = setting
    criterion = CRITERIA[name]
    scoring = criterion.options(name, Scoring(**options))
    statistics = Statistics(model, criterion.needs, scoring, ema)
    statistics.attach(units.pools, modules)
    for _ in range(steps):
        statistics.forget_step()
        backward(model, ids)
        statistics.fold()
    evidence = statistics.evidence(modules)
    statistics.detach()
    return {pool.name: criterion.score(pool, evidence, scoring) for pool in units.pools}, evidence


def one_batch(model, ids):
    model(ids, labels=ids).loss.backward()


def weight_gradients(model, modules, ids):
    """∂L/∂W of the effective weights, by autograd on the base weights."""
    for module in modules.values():
        base_linear(module).weight.requires_grad_(True)
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    gradients = {}
    for path, module in modules.items():
        weight = base_linear(module).weight
        gradients[path] = weight.grad
        weight.grad = None
        weight.requires_grad_(False)
    return gradients


def effective(module):
    return (base_linear(module).weight + module.get_delta_weight("default")).detach()


@pytest.mark.parametrize("reduce", ["squared", "abs"])
def test_taylor_is_autograd_summed_by_hand_per_sequence(setting, reduce) -> None:
    model, units, modules, ids = setting
    scores, _ = collected(setting, "taylor", one_batch, reduce=reduce)
    expected = {pool.name: torch.zeros(pool.size, dtype=torch.float64) for pool in units.pools}
    for row in ids:
        gradients = weight_gradients(model, modules, row[None])
        for pool in units.pools:
            for member in pool.members:
                # a batch's loss is the mean over its tokens, so a sequence has a share of 1/BATCH
                term = gradients[member.linear] / BATCH * effective(modules[member.linear])
                term = term**2 if reduce == "squared" else term.abs()
                for unit in range(pool.size):
                    for entry in member.index[unit].tolist():
                        expected[pool.name][unit] += (term[entry] if member.dim == 0 else term[:, entry]).sum() / BATCH
    for name, score in scores.items():
        assert expected[name].std() > 0
        torch.testing.assert_close(score, expected[name], rtol=RTOL, atol=0.0)


def test_taylor_does_not_depend_on_micro_batches(setting) -> None:
    def row_by_row(model, ids):
        for row in ids:
            (model(row[None], labels=row[None]).loss / BATCH).backward()

    whole, _ = collected(setting, "taylor", one_batch)
    split, _ = collected(setting, "taylor", row_by_row)
    for name, score in whole.items():
        torch.testing.assert_close(split[name], score, rtol=RTOL, atol=0.0)


def test_accumulated_taylor_is_the_gradient_of_the_batch(setting) -> None:
    model, units, modules, ids = setting
    scores, _ = collected(setting, "taylor-accumulated", one_batch)
    gradients = weight_gradients(model, modules, ids)
    pool = units.of_kind("kv_group")[1]
    expected = torch.zeros(pool.size, dtype=torch.float64)
    for member in pool.members:
        sums = (gradients[member.linear] * effective(modules[member.linear])).square().sum(1 - member.dim)
        expected += sums[member.index].sum(1)
    torch.testing.assert_close(scores[pool.name], expected, rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("reduce", ["squared", "abs"])
def test_gate_is_the_signed_sum_over_the_column_per_sequence(setting, reduce) -> None:
    """Σ_t h_c·g_c = Σ_i G_ic·W_ic exactly: no weight gradient is needed for it."""
    model, units, modules, ids = setting
    scores, _ = collected(setting, "gate", one_batch, reduce=reduce, gate_tokens=0)
    expected = {pool.name: torch.zeros(pool.size, dtype=torch.float64) for pool in units.pools}
    for row in ids:
        gradients = weight_gradients(model, modules, row[None])
        for pool in units.pools:
            path, index = pool.gates[0].linear, pool.gates[0].index
            columns = (gradients[path] / BATCH * effective(modules[path])).sum(0)
            signed = columns[index].sum(1)
            expected[pool.name] += (signed**2 if reduce == "squared" else signed.abs()) / BATCH
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("reduce", ["squared", "abs"])
def test_a_gate_of_some_tokens_is_what_the_loss_says_of_a_switch_there(setting, reduce, tokens) -> None:
    """A switch z = 1 that multiplies a unit's part of some tokens' input of o or down: ∂L/∂z, squared and summed."""
    model, units, modules, ids = setting
    scores, _ = collected(setting, "gate", one_batch, reduce=reduce, gate_tokens=tokens)
    pieces = -(-ids.shape[1] // tokens)  # the last one is shorter
    for pool in units.pools:
        path, index = pool.gates[0].linear, pool.gates[0].index
        switches = torch.ones(len(ids), pieces, pool.size, dtype=torch.float64, requires_grad=True)
        unit_of = torch.zeros(modules[path].in_features, dtype=torch.long)
        for unit in range(pool.size):
            unit_of[index[unit]] = unit
        handle = modules[path].register_forward_pre_hook(partial(switched, switches, unit_of, tokens))
        model(ids, labels=ids).loss.backward()
        handle.remove()
        model.zero_grad()
        each = switches.grad**2 if reduce == "squared" else switches.grad.abs()
        assert each.std() > 0
        torch.testing.assert_close(scores[pool.name], each.sum((0, 1)) / BATCH, rtol=RTOL, atol=0.0)


def switched(switches, unit_of, tokens, module, args):
    each = switches.repeat_interleave(tokens, 1)[:, : args[0].shape[1]]
    return (args[0] * each[..., unit_of],)


def stored_inputs(model, path, ids):
    """(tokens, columns) input of a linear, by a plain hook."""
    seen = []
    handle = model.get_base_model().get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return seen[0].flatten(0, 1)


def test_activation_criteria_are_naive_double_loops(setting) -> None:
    model, units, modules, ids = setting
    wanda, _ = collected(setting, "wanda", one_batch)
    flap, _ = collected(setting, "flap", one_batch)
    for pool in units.pools:
        x, weight = stored_inputs(model, pool.gates[0].linear, ids), effective(modules[pool.gates[0].linear])
        norm = x.square().mean(0).sqrt()
        variance = x.var(0, unbiased=False)
        for unit in range(pool.size):
            columns = pool.gates[0].index[unit].tolist()
            by_norm = sum(weight[i, j].abs() * norm[j] for i in range(weight.shape[0]) for j in columns)
            by_variance = sum(weight[i, j] ** 2 * variance[j] for i in range(weight.shape[0]) for j in columns)
            assert float(wanda[pool.name][unit]) == pytest.approx(float(by_norm), rel=RTOL)
            assert float(flap[pool.name][unit]) == pytest.approx(float(by_variance), rel=RTOL)


def test_obs_is_the_loss_of_the_refitted_output() -> None:
    """Brute force: remove a unit's columns, refit the others by ridge regression, measure the output's error."""
    torch.manual_seed(0)
    x, weight = torch.randn(200, 12).double() @ torch.randn(12, 12).double(), torch.randn(5, 12).double()
    second, index, damping = x.T @ x / len(x), torch.arange(12).view(4, 3), 0.03
    ridge = damping * second.diagonal().mean()
    costs = removal_cost(weight, second, index, damping)
    for unit, gone in enumerate(index.tolist()):
        stay = [j for j in range(12) if j not in gone]
        # min over V of E‖W x − V x_stay‖² + ridge·‖(W − [V, 0])‖², the damped problem
        kept = second[stay][:, stay] + ridge * torch.eye(9, dtype=torch.float64)
        refit = weight[:, stay] + weight[:, gone] @ second[gone][:, stay] @ torch.linalg.inv(kept)
        change = weight.clone()
        change[:, stay] -= refit
        loss = (x @ change.T).square().sum(1).mean() + ridge * change.square().sum()
        assert float(costs[unit]) == pytest.approx(float(loss), rel=RTOL)


def test_obs_is_least_squares_on_stored_activations(setting) -> None:
    """Per unit and output row: the others refitted to the activations themselves, the damping as further rows."""
    model, units, modules, ids = setting
    scores, _ = collected(setting, "obs", one_batch)
    for pool in units.pools:
        x, weight = stored_inputs(model, pool.gates[0].linear, ids), effective(modules[pool.gates[0].linear])
        ridge = 0.01 * float(x.square().mean(0).mean())
        rows = torch.cat([x / len(x) ** 0.5, ridge**0.5 * torch.eye(x.shape[1], dtype=x.dtype)])
        for unit in range(0, pool.size, 3):
            gone = pool.gates[0].index[unit].tolist()
            stay = [column for column in range(x.shape[1]) if column not in gone]
            cost = 0.0
            for row in weight:
                target = rows @ row
                refit = torch.linalg.lstsq(rows[:, stay], target.unsqueeze(1)).solution
                cost += float((rows[:, stay] @ refit - target.unsqueeze(1)).square().sum())
            assert float(scores[pool.name][unit]) == pytest.approx(cost, rel=1e-4)


def test_streaming_moments_are_those_of_all_tokens(setting) -> None:
    """Batches of one stream, every step counting alike (λ = 1: the running mean)."""
    model, units, _, _ = setting
    batches = torch.randint(3, 99, (4, 2, LENGTH)).unbind()
    stream = iter(batches)
    _, evidence = collected(setting, "obs", lambda model, _: one_batch(model, next(stream)), steps=len(batches))
    for pool in units.pools:
        x = stored_inputs(model, pool.gates[0].linear, torch.cat(batches))
        moments = evidence.moments[pool.gates[0].linear]
        torch.testing.assert_close(moments.first, x.mean(0), rtol=RTOL, atol=1e-9)
        torch.testing.assert_close(moments.square, x.square().mean(0), rtol=RTOL, atol=1e-9)
        torch.testing.assert_close(moments.second, x.T @ x / len(x), rtol=RTOL, atol=1e-9)


@pytest.mark.parametrize("seq_len", [256, 255, 1024])
@pytest.mark.parametrize("of", [1, 2, 4])
def test_tokens_are_sampled_evenly_and_together_as_one_process_would(seq_len, of, monkeypatch) -> None:
    tokens = 2048
    position = torch.arange(tokens) % seq_len
    seen = torch.zeros(tokens)
    for step in range(20):
        monkeypatch.setattr("secateur.pruning.taps.processes", lambda: 1)
        where, count = some_tokens(tokens, seq_len, step)
        alone = torch.arange(tokens)[where].tolist()
        assert count == len(alone) <= 512
        firsts = int((position[where] == 0).sum()) / len(alone) * seq_len  # 1: as many as there are among all tokens
        assert firsts < 3.2, "every first token, but not every token"
        seen[where] += 1
        monkeypatch.setattr("secateur.pruning.taps.processes", lambda: of)
        together, share = [], 0.0
        for number, part in enumerate(torch.arange(tokens).chunk(of)):
            monkeypatch.setattr("secateur.pruning.taps.rank", lambda number=number: number)
            where, count = some_tokens(len(part), seq_len, step)
            together += part[where].tolist()
            share += count
        assert together == alone
        assert share == pytest.approx(len(alone))
    assert seen.min() > 0, "another step takes other tokens"
    assert float(seen[position == 0].mean() / seen.mean()) == pytest.approx(1, rel=0.3)


def test_small_inputs_are_taken_whole() -> None:
    assert some_tokens(48, 16, 3) == (slice(0, None, 1), 48)
    where, count = some_tokens(256, 64, 0)
    assert (where.step, count) == (5, 52)


def test_moments_of_many_tokens_are_those_of_the_tokens_that_were_taken(setting) -> None:
    model, units, _, _ = setting
    ids = torch.randint(3, 99, (5, 120))  # 600 tokens
    _, evidence = collected(setting, "obs", lambda model, _: one_batch(model, ids), steps=2)
    taken = [torch.arange(600)[some_tokens(600, 120, step)[0]] for step in range(2)]
    assert not set(taken[0].tolist()) & set(taken[1].tolist())
    path = units.pools[0].gates[0].linear
    x = stored_inputs(model, path, ids)
    expected = sum(x[rows].T @ x[rows] / len(rows) for rows in taken) / 2
    torch.testing.assert_close(evidence.moments[path].second, expected, rtol=RTOL, atol=1e-9)


def test_a_restored_average_moves_to_the_device_of_what_comes_in() -> None:
    held = InputMoments.of(torch.randn(5, 4), second=True, tokens=5)  # safetensors are read on the CPU
    fresh = InputMoments.of(torch.randn(5, 4, device="meta"), second=True, tokens=5)
    held.mix_(fresh, 0.1)
    assert {held.first.device, held.square.device, held.second.device} == {torch.device("meta")}


def test_pools_that_lose_nothing_have_no_moments_for_compensation(setting) -> None:
    model, _, _, ids = setting
    pruner = Pruner(model, sparsity=0.2, criterion="gate", compensate="lstsq", allocation="protected",
                    protect_first=0, attention="none", total_steps=4, schedule="one-shot", prune_start=1)  # fmt: skip
    one_batch(model, ids)
    pruner.observe()
    assert list(pruner.scorer.statistics.moments) == ["model.layers.0.mlp.down_proj"]
    assert pruner.scores["layer.1.ffn"].any(), "scores are known everywhere"
    pruner.step(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]))
    assert pruner.cuts[0].removed.keys() == {"layer.0.ffn"}


def test_padding_evaluation_and_checkpointing_leave_no_trace(setting) -> None:
    model = setting[0]
    plain, evidence = collected(setting, "wanda", one_batch)

    def padded(model, ids):
        wide = torch.cat([ids, torch.full((BATCH, 5), 9)], 1)
        mask = (torch.arange(LENGTH + 5) < LENGTH).expand(BATCH, -1).long()
        labels = wide.masked_fill(mask == 0, -100)
        with torch.no_grad():  # a teacher's pass
            model(ids[:, :4])
        model(wide, attention_mask=mask, labels=labels).loss.backward()
        model.eval()
        model(ids[:, :4])
        model.train()

    _, other = collected(setting, "wanda", padded)
    for path, moments in evidence.moments.items():
        torch.testing.assert_close(other.moments[path].square, moments.square, rtol=RTOL, atol=1e-9)
    gates, _ = collected(setting, "gate", one_batch)
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    model.enable_input_require_grads()
    checkpointed, again = collected(setting, "gate", one_batch)
    for name, score in gates.items():
        torch.testing.assert_close(checkpointed[name], score, rtol=RTOL, atol=0.0)
    assert plain.keys() == gates.keys()
    assert again.moments == {}  # nothing is collected that was not asked for


@pytest.mark.parametrize("given", ["decoder_attention_mask", "labels"])
def test_padding_on_either_side_of_an_encoder_decoder_is_no_activation(given) -> None:
    """Both sides are padded to one length, so that the mask of the one would fit the tokens of the other."""
    model = tiny_t5().double().train()
    units = find_units(model, family_of("t5"))
    setting = model, units, {path: model.get_submodule(path) for path in units.linears}, None
    torch.manual_seed(0)
    rows = [[torch.randint(3, 99, (length,)) for length in lengths] for lengths in ((9, 4), (5, 9))]

    def apart(model, _):
        for source, target in rows:
            loss = model(input_ids=source[None], decoder_input_ids=target[None], labels=target[None]).loss
            (loss * len(target) / 13).backward()

    def together(model, _):
        wide = [torch.nn.utils.rnn.pad_sequence(list(side), batch_first=True) for side in zip(*rows, strict=True)]
        masks = [ids > 0 for ids in wide]
        labels = wide[1].masked_fill(~masks[1], -100)
        options = {"decoder_attention_mask": masks[1].long()} if given == "decoder_attention_mask" else {}
        model(
            input_ids=wide[0], attention_mask=masks[0].long(), decoder_input_ids=wide[1], labels=labels, **options
        ).loss.backward()

    (_, evidence), (_, other) = collected(setting, "wanda", apart), collected(setting, "wanda", together)
    assert evidence.moments.keys() == other.moments.keys()
    for path, moments in evidence.moments.items():
        torch.testing.assert_close(other.moments[path].square, moments.square, rtol=RTOL, atol=1e-12, msg=path)


def test_second_moments_memory_is_known_before_the_run(setting) -> None:
    units = setting[1]
    _, evidence = collected(setting, "obs", one_batch)
    held = sum(m.second.numel() for m in evidence.moments.values())
    assert 4 * held == second_moment_bytes(units.pools)  # floats of 4 bytes for a float32 model


def test_second_moments_in_bfloat16_have_a_factor() -> None:
    """A few large columns that are nearly alike: entries rounded to bfloat16 are no second moment of anything.

    The bound is float32's own: sums of 512 products, each exact.
    """
    torch.manual_seed(0)
    shared = torch.randn(512, 1)
    x = torch.randn(512, 64)
    x[:, :8] = 40 * (shared + 0.01 * torch.randn(512, 8))
    x = x.bfloat16()
    exact = x.double().T @ x.double()
    precision = torch.backends.mkldnn.matmul.fp32_precision
    found = InputMoments.of(x, True, 512).second
    assert found is not None
    assert found.dtype == torch.float32
    assert torch.backends.mkldnn.matmul.fp32_precision == precision
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * float(exact.max()))
    level = exact.diagonal().mean()
    rounded = (x.T @ x).double()
    assert torch.linalg.eigvalsh(rounded).min() < -0.01 * level, "the case is one that rounding spoils"
    damped_cholesky(found, 0.01, level, "x")
