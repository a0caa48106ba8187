"""The Jacobian of every denoiser, by vector-Jacobian products."""

import pytest
import torch
from torch import Tensor

from potentia import Energy, ScoreOnly, energies
from potentia.energies import Denoiser, GaussianMixture, ScoreModel

D = torch.float64
SHAPE = (1, 3, 2)


def mixture(kind: str) -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(3, *SHAPE, generator=g, dtype=D)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=D)
    factors = 0.7 * torch.randn(3, 6, 2, generator=g, dtype=D)
    if kind == "full":
        return GaussianMixture(weights, means, covariances=factors @ factors.mT + 0.1 * torch.eye(6, dtype=D))
    if kind == "diagonal":
        return GaussianMixture(weights, means, variances=torch.rand(3, *SHAPE, generator=g, dtype=D) + 0.1)
    variances = torch.full((3,), 0.1, dtype=D)
    return GaussianMixture(weights, means, factors=factors, variances=variances)


def net(x: Tensor, s: Tensor) -> Tensor:
    return torch.tanh(x.flip(-1) + 0.3 * x) / (1 + s[:, None, None, None])


class Smoothed(ScoreOnly):
    """A user's own score-only prior."""

    @property
    def scales(self) -> tuple[float, float]:
        return 0.01, 10.0

    def denoise(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return torch.tanh(x)


PRIORS: dict[str, Energy] = {
    **{f"mixture {kind}": mixture(kind) for kind in ("full", "diagonal", "low-rank")},
    "gaussian": energies.Gaussian(torch.zeros(SHAPE, dtype=D), 0.7),
    "network energy": Denoiser(net, (0.01, 10.0)),
    "network score": ScoreModel(net, (0.01, 10.0)),
    "own score": Smoothed(),
}


@pytest.mark.parametrize("sigma", [0.2, 1.5])
@pytest.mark.parametrize("name", PRIORS)
def test_products_are_those_of_the_jacobian_by_differences(name: str, sigma: float) -> None:
    prior = PRIORS[name]
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, *SHAPE, generator=g, dtype=D)
    clean, pull = prior.denoise_with_vjp(x, sigma)
    torch.testing.assert_close(clean, prior.denoise(x, sigma), rtol=1e-12, atol=1e-12)
    v, direction = torch.randn(2, 2, *SHAPE, generator=g, dtype=D)
    step = 1e-5
    moved = (prior.denoise(x + step * direction, sigma) - prior.denoise(x - step * direction, sigma)) / (2 * step)
    got, want = (pull(v) * direction).flatten(1).sum(1), (v * moved).flatten(1).sum(1)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(pull(v), pull(v))  # as often as one likes
    if prior.has_value:  # the transpose is what was pulled back: an energy's Jacobian is its own
        back = (v * pull(direction)).flatten(1).sum(1)
        torch.testing.assert_close(got, back, rtol=1e-9, atol=1e-10)


def test_mixture_at_a_scale_of_its_own_for_each_image() -> None:
    prior = mixture("low-rank")
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=D)
    together = prior.denoise_with_vjp(x, torch.tensor([0.3, 2.0], dtype=D))[1](x)
    for k, sigma in enumerate((0.3, 2.0)):
        torch.testing.assert_close(together[k : k + 1], prior.denoise_with_vjp(x[k : k + 1], sigma)[1](x[k : k + 1]))


def test_complex_denoiser_pulls_back_the_real_linear_map() -> None:
    prior = Denoiser(lambda x, s: torch.complex(torch.tanh(x.real + x.imag), torch.tanh(x.imag)), (0.01, 10.0))
    g = torch.Generator().manual_seed(3)
    x, v, direction = torch.randn(3, 1, *SHAPE, generator=g, dtype=torch.complex128)
    step = 1e-5
    moved = (prior.denoise(x + step * direction, 0.5) - prior.denoise(x - step * direction, 0.5)) / (2 * step)
    got = (prior.denoise_with_vjp(x, 0.5)[1](v).conj() * direction).real.sum()
    torch.testing.assert_close(got, (v.conj() * moved).real.sum(), rtol=1e-6, atol=1e-8)


def test_a_score_without_a_graph_is_refused() -> None:
    frozen = ScoreModel(lambda x, s: x.detach(), (0.01, 10.0))
    with pytest.raises(TypeError, match="score: denoise detaches"):
        frozen.denoise_with_vjp(torch.zeros(1, *SHAPE), 0.5)
