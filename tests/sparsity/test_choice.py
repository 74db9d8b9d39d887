"""One matrix: SparseGPT, Wanda and magnitude beside loops that say the same entry by entry, in float64."""

import pytest
import torch

from secateur.config.sparsify import parse_pattern
from secateur.criteria.cholesky import inverse_factor
from secateur.sparsity import choice
from secateur.sparsity.choice import DAMPING, by_magnitude, by_sparsegpt, by_wanda
from secateur.system.errors import InputError, NumericsError

PATTERNS = ["2:4", "4:8", "1:4", "3:4", "0.5", "0.3"]


def matrix(rows=5, columns=24, tokens=200, seed=0):
    """(weight, inputs) of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator).double()
    inputs = torch.randn(tokens, columns, generator=generator).double() @ mixing
    return torch.randn(rows, columns, generator=generator).double(), inputs


def damped(inputs):
    hessian = 2 / len(inputs) * inputs.T @ inputs
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian)).double()


def by_hand(weight, hessian, pattern, width):
    """Column after column: what goes is fixed at zero, and all columns after it are solved for anew, by least squares
    of Δ·H·Δᵀ with the columns before fixed, row by row."""
    now, keep = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    rows, columns = weight.shape

    def score(row, column):
        return float(now[row, column] ** 2 / torch.linalg.inv(hessian[column:, column:])[0, 0])

    for column in range(columns):
        if pattern.group and column % pattern.group == 0:
            for row in range(rows):
                ranked = sorted(range(column, column + pattern.group), key=lambda c: score(row, c))
                keep[row, ranked[: pattern.group - pattern.stay]] = False
        elif not pattern.group and column % width == 0:
            block = [(row, c) for row in range(rows) for c in range(column, min(column + width, columns))]
            for row, c in sorted(block, key=lambda place: score(*place))[: int(len(block) * pattern.share)]:
                keep[row, c] = False
        for row in range(rows):
            if not keep[row, column]:
                rest = slice(column + 1, None)
                now[row, rest] += torch.linalg.solve(hessian[rest, rest], hessian[rest, column]) * now[row, column]
                now[row, column] = 0
    return now, keep


@pytest.mark.parametrize("text", PATTERNS)
def test_sparsegpt_leaves_the_columns_after_at_their_least_squares(text, monkeypatch) -> None:
    monkeypatch.setattr(choice, "BLOCK", 8)  # several blocks, so that errors cross from one to the next
    weight, inputs = matrix()
    pattern = parse_pattern(text)
    found, keep = by_sparsegpt(weight, 2 / len(inputs) * inputs.T @ inputs, pattern, "x")
    expected, kept = by_hand(weight, damped(inputs), pattern, 8)
    assert torch.equal(keep, kept)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    assert torch.equal(found == 0, ~keep)
    loss = lambda w: float(((w - weight) @ inputs.T).square().sum())  # noqa: E731
    assert loss(found) < loss(weight * keep)


def test_one_weight_that_goes_leaves_the_row_at_its_least_squares() -> None:
    """Of a first weight that goes, the whole rest of the row takes over: the closed form of all that stays."""
    weight, inputs = matrix(rows=1, columns=6)
    weight[0, 0] = 1e-6  # the lowest of all
    found, keep = by_sparsegpt(weight, 2 / len(inputs) * inputs.T @ inputs, parse_pattern("0.17"), "x")
    assert keep.tolist() == [[False, *[True] * 5]]
    hessian = damped(inputs)
    solved = torch.linalg.solve(hessian[1:, 1:], hessian[1:] @ weight[0])
    torch.testing.assert_close(found[0, 1:], solved, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("text", PATTERNS)
def test_wanda_row_by_row(text) -> None:
    weight, inputs = matrix()
    pattern = parse_pattern(text)
    keep = by_wanda(weight, inputs.square().sum(0), pattern)
    for row in range(5):
        scores = [float(weight[row, c].abs() * inputs[:, c].norm()) for c in range(24)]
        width = pattern.group or 24
        for start in range(0, 24, width):
            gone = width - pattern.stay if pattern.group else int(24 * pattern.share)
            ranked = sorted(range(start, start + width), key=scores.__getitem__)
            assert {c for c in range(start, start + width) if not keep[row, c]} == set(ranked[:gone])
    assert not torch.equal(keep, by_magnitude(weight, pattern))


def test_magnitude_over_the_matrix_or_in_groups() -> None:
    weight, _ = matrix()
    keep = by_magnitude(weight, parse_pattern("0.4"))
    assert int((~keep).sum()) == 48
    assert weight.abs()[~keep].max() < weight.abs()[keep].min()
    groups = by_magnitude(weight, parse_pattern("1:4")).view(-1, 4)
    assert torch.equal(groups.int().argmax(1), weight.abs().view(-1, 4).argmax(1))


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:4", "0.5"])
def test_equal_weights_leave_as_many(text) -> None:
    """Ties, zeros and inputs that are always zero change no count."""
    weight, inputs = torch.ones(3, 16).double(), matrix(columns=16)[1]
    weight[:, 5:9], inputs[:, 2] = 0, 0
    pattern = parse_pattern(text)
    hessian = inputs.T @ inputs
    for keep in (by_magnitude(weight, pattern), by_wanda(weight, inputs.square().sum(0), pattern),
                 by_sparsegpt(weight, hessian, pattern, "x")[1]):  # fmt: skip
        if pattern.group:
            assert (keep.view(3, -1, pattern.group).sum(2) == pattern.stay).all()
        else:
            assert int(keep.sum()) == 24
    assert not by_sparsegpt(weight, hessian, pattern, "x")[0][:, 2].any()


def test_the_factor_is_of_the_damped_inverse() -> None:
    inputs = matrix(columns=6)[1]
    hessian = 2 / len(inputs) * inputs.T @ inputs
    upper, dead = inverse_factor(hessian, DAMPING, "x")
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped(inputs)))
    assert not dead.any()
    with pytest.raises(NumericsError, match="the inputs of q cannot be factorised.*an activation overflowed"):
        inverse_factor(hessian * torch.inf, DAMPING, "q")


@pytest.mark.parametrize("text", ["0:4", "5:4", "4:4", "2-4", "1.5", "0", "1", "-0.5", "2:0", "half", "2:4:8", ""])
def test_patterns_that_are_none(text) -> None:
    with pytest.raises(InputError, match="--pattern is .*such as 2:4 or 4:8"):
        parse_pattern(text)


def test_patterns() -> None:
    assert [parse_pattern(text).share for text in ("2:4", "1:4", 0.5, ".25")] == [0.5, 0.75, 0.5, 0.25]
    assert [parse_pattern(text).text for text in ("2:4", "4:8", "0.50")] == ["2:4", "4:8", "0.5"]
