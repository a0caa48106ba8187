"""Gradients a percent off, as a whole or in one pixel, are seen in every public energy and likelihood by its values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from potentia import likelihoods
from potentia._algebra import Scaled
from potentia._potential import Energy, Likelihood, Potential, Sigma
from potentia.testing import _energy, check_energy, examples
from potentia.testing.examples import Example

SHAPE = (1, 4, 5)
ALL = [
    e for e in [*examples.example_energies(6, SHAPE), *examples.example_likelihoods(7, SHAPE)] if e.subject.has_value
]


class Altered(Scaled):
    """A potential with another gradient, whose values do not know of autograd."""

    def __init__(self, term: Potential, alter: Callable[[Tensor], Tensor]) -> None:
        super().__init__(term, 1.0)
        self.alter = alter

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        value: Tensor = self.term(x, sigma)
        return value.detach()

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return self.alter(self.term.grad(x, sigma))

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        value, grad = self.term.value_and_grad(x, sigma)
        return value, self.alter(grad)


def images(example: Example[Energy] | Example[Likelihood]) -> Tensor:
    return example.images(torch.Generator().manual_seed(3), 3)


def all_off(grad: Tensor) -> Tensor:
    return 1.01 * grad


def one_off(pixel: int) -> Callable[[Tensor], Tensor]:
    def alter(grad: Tensor) -> Tensor:
        flat = grad.flatten(-3).clone()
        flat[..., pixel] *= 1.01
        return flat.reshape(grad.shape)

    return alter


@pytest.mark.parametrize("example", ALL, ids=str)
def test_a_percent_is_seen(example: Example[Energy] | Example[Likelihood]) -> None:
    x = images(example)
    check_energy(Altered(example.subject, lambda g: g), x, 0.3)
    live = example.subject.grad(x, 0.3).abs().amax(0).flatten().nonzero().flatten()
    pixel = int(live[len(live) // 2])
    for alter in (all_off, one_off(pixel)):
        with pytest.raises(AssertionError, match="grad is the derivative of forward"):
            check_energy(Altered(example.subject, alter), x, 0.3)


class WrongSlope(likelihoods.Poisson):
    """Right on the parabola below the least rate, a percent off elsewhere."""

    def _slope(self, rate: Tensor, y: Tensor) -> Tensor:
        return torch.where(rate > 2e-3, 1.01, 1.0) * super()._slope(rate, y)


def test_a_steep_wall_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a background, gradients of 1e6 stand beside those of 1."""
    y = torch.full((1, 4, 4), 3.0, dtype=torch.float64)
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_energy(likelihoods.Poisson(y), x)
    with pytest.raises(AssertionError, match="each entry of grad is the derivative of forward"):
        check_energy(WrongSlope(y), x)
    # Along directions through the whole image, a quarter would not be seen.
    monkeypatch.setattr(_energy, "_check_entries", lambda *a: None)
    check_energy(Altered(likelihoods.Poisson(y), lambda g: torch.where(g.abs() < 10, 1.25 * g, g)), x)


def test_entries_of_large_images_are_picked() -> None:
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    assert _energy._axes(x, torch.Generator().manual_seed(0)).shape == (48, 1, 32, 32)
    axes = _energy._axes(x[..., :2, :3] + 0j, torch.Generator().manual_seed(0))
    assert torch.equal(axes.flatten(1), torch.cat([torch.eye(6), 1j * torch.eye(6)]).to(torch.complex128))
