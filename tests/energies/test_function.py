"""A user's own energy, and what it is told when it is wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor

from potentia import energies as en


def ridge(x: Tensor) -> Tensor:
    return 0.5 * x.abs().square().sum((-3, -2, -1))


def smoothed(x: Tensor, sigma: Any) -> Tensor:
    s = sigma if isinstance(sigma, Tensor) else torch.tensor(sigma)
    return 0.5 * x.square().sum((-3, -2, -1)) / (1 + s**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_it_is_the_function(dtype: torch.dtype) -> None:
    u, x = en.Function(ridge), torch.randn(3, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    value, grad = u.value_and_grad(x, 0.3)
    torch.testing.assert_close(value, ridge(x).double())
    torch.testing.assert_close(grad, x)
    assert value.dtype == torch.float64
    assert grad.dtype == dtype
    assert u.scales is None
    assert repr(u) == "Function(ridge)"


def test_sigma_comes_as_it_came() -> None:
    seen: list[Any] = []

    def fn(x: Tensor, sigma: Any) -> Tensor:
        seen.append(sigma)
        return smoothed(x, sigma)

    u, x = en.Function(fn, scales=(0.1, 5.0)), torch.ones(3, 1, 4, 4, dtype=torch.float64)
    batch = torch.tensor([0.1, 1.0, 5.0])
    for sigma in (None, 0.5, batch):
        u(x, sigma)
    assert seen[0] == 0.1
    assert seen[1] == 0.5
    assert seen[2] is batch
    assert u.multiscale_weight == 1.0
    torch.testing.assert_close(u.denoise(x, 0.5), x - 0.25 * x / 1.25)
    with pytest.raises(ValueError, match=r"function: sigma is 6, expected 0\.1 to 5"):
        u(x, 6.0)


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x.sum(), ValueError, r"<lambda> returned shape \(\), expected \(3,\), one value per batch entry"),
        (lambda x: x.sum(-1), ValueError, r"returned shape \(3, 1, 4\), expected \(3,\)"),
        (lambda x: ridge(x) + 0j, ValueError, "returned dtype torch.complex64, expected a real float"),
        (lambda x: ridge(x).long(), ValueError, "returned dtype torch.int64, expected a real float"),
        (lambda x: 0.0, TypeError, "returned float, expected a tensor"),
    ],
)
def test_a_function_that_returns_something_else_is_refused(fn: Any, error: type[Exception], message: str) -> None:
    u = en.Function(fn)
    for call in (u.forward, u.grad):
        with pytest.raises(error, match=message) as caught:
            call(torch.ones(3, 1, 4, 4))
        assert "function: " in str(caught.value)
        assert "<lambda>" in str(caught.value)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="function: fn must be callable, got str"):
        en.Function("ridge")
    with pytest.raises(ValueError, match="expected 0 < low <= high"):
        en.Function(smoothed, scales=(1.0, 0.5))
    u = en.Function(ridge, shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"x has shape \(1, 4, 5\), expected \(\*batch, 1, 4, 4\)"):
        u(torch.ones(1, 4, 5))
