"""A sum adds gradients up in memory of its own: what its terms return is left alone, whatever its shape and dtype."""

import pytest
import torch
from torch import Tensor, nn

from potentia import Potential, Sum
from potentia._potential import Sigma

SHAPE = (1, 2, 3)


class Held(Potential):
    """A potential whose gradient is a tensor that it keeps."""

    default_name = "held"

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.gradient = gradient

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return x.flatten(-3).sum(-1)

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        return self(x), self.gradient

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return self.gradient


def image(*batch: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


GRADIENTS = {
    "alike": lambda: [image(2, seed=k) for k in range(4)],
    "of one batch and of every": lambda: [image(seed=0), image(seed=1), image(2, seed=2), image(seed=3)],
    "of two precisions": lambda: [image(2, seed=k, dtype=torch.float32) for k in range(3)] + [image(2, seed=3)],
    "real and complex": lambda: [image(2, seed=k) for k in range(3)] + [1j * image(2, seed=3)],
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_what_the_terms_return_is_left_alone(name: str) -> None:
    kept = GRADIENTS[name]()
    before = [g.clone() for g in kept]
    total, x = Sum(*(Held(g) for g in kept)), image(2, seed=9)
    want = before[0] + before[1] + before[2] + before[3]
    for _ in range(2):
        for got in (total.grad(x), total.value_and_grad(x)[1]):
            torch.testing.assert_close(got, want)  # the dtype and the shape with it
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))


def test_gradients_that_have_a_graph_keep_it() -> None:
    weights = [nn.Parameter(image(2, seed=k)) for k in range(4)]
    fixed = image(2, seed=5)
    total = Sum(Held(fixed), Held(fixed), *(Held(2 * w) for w in weights))
    for got in (total.grad(fixed), total.value_and_grad(fixed)[1]):
        torch.testing.assert_close(got, 2 * fixed + 2 * sum(weights, torch.zeros_like(fixed)))
        slopes = torch.autograd.grad(got.square().sum(), weights, retain_graph=True)
        for slope in slopes:
            torch.testing.assert_close(slope, 4 * got.detach())
