"""What goes into linears, summed over tokens."""

import pytest
import torch
from torch import nn

from secateur.sparsity.moments import Moments, in_portions


@pytest.mark.parametrize("narrow", [False, True])
def test_second_moments_of_what_goes_in(narrow) -> None:
    """Over several passes; linears of one input share one matrix, and another's is its own."""
    torch.manual_seed(0)
    linears = {"a": nn.Linear(4, 3, bias=False), "b": nn.Linear(4, 5, bias=False), "c": nn.Linear(5, 2, bias=False)}
    inputs = torch.randn(2, 7, 4)
    found = Moments(linears)
    with found.watching(), torch.no_grad():
        for x in inputs:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
                linears["a"](x)
            linears["c"](linears["b"](x))
    flat = inputs.reshape(-1, 4)
    torch.testing.assert_close(found["a"], flat.T @ flat)
    assert found["b"] is found["a"]
    after = flat @ linears["b"].weight.detach().T
    torch.testing.assert_close(found["c"], after.T @ after)
    assert not any(linear._forward_pre_hooks for linear in linears.values())


def test_portions_fit_and_have_all_in_order() -> None:
    linears = {str(i): nn.Linear(4 if i % 2 else 8, 2) for i in range(5)}
    portions = list(in_portions(linears, 4 * (64 + 16)))
    assert [list(portion) for portion in portions] == [["0", "1"], ["2", "3"], ["4"]]
    assert [list(portion) for portion in in_portions(linears, 1)] == [[str(i)] for i in range(5)]


def test_squares_and_tokens_that_count() -> None:
    linear, x = nn.Linear(4, 2), torch.randn(2, 3, 4)
    found = Moments({"a": linear}, squares=True)
    found.counts = torch.tensor([True, False, True, True, False, True])
    with found.watching():
        linear(x)
    torch.testing.assert_close(found["a"], (x.reshape(-1, 4)[found.counts] ** 2).sum(0))
    assert "b" not in found
