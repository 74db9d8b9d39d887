"""Weights on a grid: nearest where inputs are unrelated, and where they are not as least squares has it, by column."""

import pytest
import torch

from secateur.runs.quantised.gptq import DAMPING, Grid, on_grid, quantise, scales_of


def correlated(columns: int, tokens: int = 400):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator).double()
    inputs = torch.randn(tokens, columns, generator=generator).double() @ mixing
    weight = torch.randn(6, columns, generator=generator)
    return weight, inputs.T @ inputs


def values(codes, scales):
    rows, groups = scales.shape
    return (codes.double().view(rows, groups, -1) * scales.double()[:, :, None]).view(codes.shape)


@pytest.mark.parametrize("grid", [Grid(8, None), Grid(4, 16), Grid(4, None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unrelated_inputs_are_rounded_to_the_nearest(grid, dtype) -> None:
    """Within half a step, but for what lies beyond the grid's ends."""
    weight = torch.randn(5, 160, generator=torch.Generator().manual_seed(1))
    codes, scales = quantise(weight, torch.eye(160) * 3, grid, dtype)
    plain, same = quantise(weight, None, grid, dtype)
    assert torch.equal(codes, plain)
    assert torch.equal(scales, same)
    assert scales.dtype == dtype
    assert codes.min() >= -(2 ** (grid.bits - 1))
    assert codes.max() <= 2 ** (grid.bits - 1) - 1
    steps = scales.double().repeat_interleave(160 // scales.shape[1], 1)
    inside = (codes > grid.lowest) & (codes < grid.highest)
    assert inside.float().mean() > 0.8
    assert ((values(codes, scales) - weight).abs() <= steps / 2 * (1 + 1e-5))[inside].all()


def test_each_column_leaves_the_others_at_their_least_squares() -> None:
    """By brute force in float64: when columns are fixed, the rest minimise the loss that is left, Δ·H·Δᵀ."""
    weight, second = correlated(24)
    grid = Grid(4, None)
    codes, scales = quantise(weight, second, grid, torch.float32)
    damped = second + DAMPING * second.diagonal().mean() * torch.eye(24).double()
    steps = scales_of(weight, grid, torch.float32)[:, 0].double()
    now, chosen = weight.double().clone(), torch.zeros(6, 24).double()
    for column in range(24):
        chosen[:, column] = on_grid(now[:, column], steps, grid)
        fixed = torch.cat((chosen[:, : column + 1] * steps[:, None] - weight[:, : column + 1],), 1).double()
        rest = slice(column + 1, None)
        solved = -fixed @ damped[: column + 1, rest] @ torch.linalg.inv(damped[rest, rest])
        now[:, rest] = weight[:, rest].double() + solved
    assert torch.equal(codes.double(), chosen)
    plain, _ = quantise(weight, None, grid, torch.float32)
    assert (codes != plain).float().mean() > 0.1

    def loss(found):
        off = values(found, scales) - weight
        return float((off @ second * off).sum())

    assert loss(codes) < 0.9 * loss(plain)


def test_a_group_s_step_is_of_the_weights_as_they_are_then() -> None:
    weight, second = correlated(256)
    codes, scales = quantise(weight, second, Grid(4, 32), torch.float32)
    assert scales.shape == (6, 8)
    plain, before = quantise(weight, None, Grid(4, 32), torch.float32)
    assert torch.equal(scales[:, 0], before[:, 0])
    assert not torch.equal(scales[:, 1:], before[:, 1:])

    def loss(found, steps):
        off = values(found, steps) - weight
        return float((off @ second * off).sum())

    assert loss(codes, scales) < 0.5 * loss(plain, before)


def test_an_input_that_is_always_zero_gets_no_weight() -> None:
    weight, second = correlated(16)
    second[3], second[:, 3] = 0, 0
    codes, _ = quantise(weight, second, Grid(4, None), torch.float32)
    assert not codes[:, 3].any()
