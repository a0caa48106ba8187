"""The mixture, against dense formulas and numerical integrals."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from potentia import energies as en

SHAPE = (1, 3, 2)
D = 6
K = 3
KINDS = ["isotropic", "diagonal", "full", "low-rank", "factor"]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
MEANS = 2 * randn(K, *SHAPE)
FACTORS = randn(K, D, 2, seed=1)
VARIANCES = 0.2 + randn(K, *SHAPE, seed=2).square()


def parts(kind: str) -> dict[str, Tensor]:
    dense = FACTORS @ FACTORS.mT + torch.diag_embed(VARIANCES.flatten(1))
    return {
        "isotropic": {"variances": VARIANCES[:, 0, 0, 0]},
        "diagonal": {"variances": VARIANCES},
        "full": {"covariances": dense},
        "low-rank": {"factors": FACTORS, "variances": VARIANCES[:, 0, 0, 0]},
        "factor": {"factors": FACTORS, "variances": VARIANCES},
    }[kind]


def covariances(kind: str) -> Tensor:
    p = parts(kind)
    if kind == "full":
        return p["covariances"]
    v = p["variances"].reshape(K, -1).expand(K, D)
    f = p.get("factors", torch.zeros(K, D, 1, dtype=torch.float64))
    return torch.diag_embed(v) + f @ f.mT


def dense(kind: str, sigma: float) -> MixtureSameFamily:
    c = covariances(kind) + sigma**2 * torch.eye(D, dtype=torch.float64)
    return MixtureSameFamily(Categorical(WEIGHTS), MultivariateNormal(MEANS.flatten(1), c))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
def test_value_is_minus_the_log_density(kind: str, sigma: float) -> None:
    u, x = en.GaussianMixture(WEIGHTS, MEANS, **parts(kind)), 3 * randn(7, *SHAPE, seed=3)
    torch.testing.assert_close(u(x, sigma), -dense(kind, sigma).log_prob(x.flatten(1)), rtol=1e-11, atol=1e-11)
    z = x.flatten(1).requires_grad_(True)
    (want,) = torch.autograd.grad(-dense(kind, sigma).log_prob(z).sum(), z)
    torch.testing.assert_close(u.grad(x, sigma).flatten(1), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.0, 0.1, torch.tensor([0.1, 1.0, 0.1, 2.0], dtype=torch.float64)])
def test_every_structure_agrees_with_the_full_one(kind: str, sigma: float | Tensor) -> None:
    u = en.GaussianMixture(WEIGHTS, MEANS, **parts(kind))
    v = en.GaussianMixture(WEIGHTS, MEANS, covariances=covariances(kind))
    x = 3 * randn(4, *SHAPE, seed=3)
    for a, b in zip(u.value_and_grad(x, sigma), v.value_and_grad(x, sigma), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(u.responsibilities(x, sigma), v.responsibilities(x, sigma), rtol=1e-9, atol=1e-12)


def test_more_factors_than_pixels_are_fine() -> None:
    f = randn(1, D, 9, seed=4)
    u = en.GaussianMixture(torch.ones(1), MEANS[:1], factors=f, variances=torch.tensor([0.3], dtype=torch.float64))
    v = en.GaussianMixture(torch.ones(1), MEANS[:1], covariances=f @ f.mT + 0.3 * torch.eye(D, dtype=torch.float64))
    x = randn(4, *SHAPE)
    torch.testing.assert_close(u(x, 0.2), v(x, 0.2), rtol=1e-10, atol=1e-10)


def test_denoiser_is_the_posterior_mean_by_quadrature() -> None:
    """Two pixels: E[clean | x] as a ratio of integrals over a grid, exact to 1e-10 for densities this smooth."""
    means = torch.tensor([[-1.0, 0.5], [1.2, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    c = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.3, -0.1], [-0.1, 0.6]]], dtype=torch.float64)
    weights = torch.tensor([0.35, 0.65], dtype=torch.float64)
    u, sigma = en.GaussianMixture(weights, means, covariances=c), 0.8
    x = torch.tensor([[0.3, -0.4], [-2.0, 1.0], [0.0, 0.0]], dtype=torch.float64).reshape(3, 1, 1, 2)
    axis = torch.linspace(-9, 9, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    prior = MixtureSameFamily(Categorical(weights), MultivariateNormal(means.flatten(1), c)).log_prob(grid).exp()
    for one in x:
        posterior = prior * torch.exp(-0.5 * ((one.flatten() - grid) / sigma).square().sum(-1))
        want = (posterior[:, None] * grid).sum(0) / posterior.sum()
        torch.testing.assert_close(u.denoise(one, sigma).flatten(), want, rtol=0, atol=1e-9)
        # A planted fault, the mean of the components without their covariances, is seen.
        naive = (u.responsibilities(one, sigma)[:, None] * means.flatten(1)).sum(0)
        assert float((naive - want).abs().max()) > 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_samples_have_the_moments(kind: str, sigma: float) -> None:
    n = 8000
    x = en.GaussianMixture(WEIGHTS, MEANS, **parts(kind)).sample(gen(4), n, sigma).flatten(1)
    m = MEANS.flatten(1)
    mean = WEIGHTS @ m
    spread = covariances(kind) + sigma**2 * torch.eye(D, dtype=torch.float64)
    second = torch.einsum("k,kij->ij", WEIGHTS, spread + m[:, :, None] * m[:, None, :])
    products = x[:, :, None] * x[:, None, :]
    # Five standard errors, estimated from the draws themselves.
    for draws, want in ((x, mean), (products, second)):
        error = (draws.mean(0) - want).abs() / (draws.std(0) / n**0.5)
        assert float(error.max()) < 5


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_points_have_the_expected_value(kind: str) -> None:
    """E[U(x)] under the mixture is its entropy: the same from our draws and from those of torch's mixture."""
    torch.manual_seed(0)
    n, u = 4000, en.GaussianMixture(WEIGHTS, MEANS, **parts(kind))
    ours = u(u.sample(gen(5), n))
    theirs = -dense(kind, 0.0).log_prob(dense(kind, 0.0).sample((n,)))
    error = ((ours.var() + theirs.var()) / n).sqrt()
    assert float((ours.mean() - theirs.mean()).abs() / error) < 5


def test_far_away_and_tiny_scales_stay_finite() -> None:
    u = en.GaussianMixture(torch.tensor([0.5, 0.5]), torch.zeros(2, *SHAPE), variances=torch.tensor([1e-8, 1e-6]))
    x = torch.full((1, *SHAPE), 30.0)
    value, grad = u.value_and_grad(x)
    assert torch.isfinite(value).all()
    torch.testing.assert_close(grad, x / 1e-6, rtol=1e-5, atol=0)
    torch.testing.assert_close(u.denoise(x, 1e4), torch.zeros_like(x), rtol=0, atol=1e-6)


def test_a_degenerate_component_needs_noise() -> None:
    u = en.GaussianMixture(torch.ones(1), MEANS[:1], covariances=FACTORS[:1] @ FACTORS[:1].mT)
    with pytest.raises(ValueError, match="mixture: a component has zero variances"):
        u(MEANS[:1])
    assert torch.isfinite(u(MEANS[:1], 0.1)).all()


@pytest.mark.parametrize(
    ("weights", "means", "arguments", "message"),
    [
        (WEIGHTS, MEANS, {}, "got no covariances, expected variances, covariances, or factors and variances"),
        (WEIGHTS, MEANS, {"factors": FACTORS}, "got factors, expected"),
        (
            WEIGHTS,
            MEANS,
            {"variances": VARIANCES, "covariances": FACTORS @ FACTORS.mT},
            "got variances and covariances",
        ),
        (2 * WEIGHTS, MEANS, {"variances": VARIANCES}, "weights sum to 2, expected 1"),
        (WEIGHTS - 0.2, MEANS, {"variances": VARIANCES}, "weights must be positive"),
        (WEIGHTS[:2], MEANS, {"variances": VARIANCES}, r"weights has shape \(2,\), expected \(3,\)"),
        (WEIGHTS, MEANS[0], {"variances": VARIANCES}, r"means have shape \(1, 3, 2\) .*expected \(K, C, H, W\), real"),
        (WEIGHTS, MEANS * math.nan, {"variances": VARIANCES}, "means has 18 NaN"),
        (WEIGHTS, MEANS, {"variances": -VARIANCES}, "variances must be zero or more"),
        (WEIGHTS, MEANS, {"variances": VARIANCES * math.nan}, "variances has 18 NaN"),
        (WEIGHTS, MEANS, {"variances": VARIANCES[:2]}, r"variances have shape \(2, 1, 3, 2\), expected \(3,\) or"),
        (WEIGHTS, MEANS, {"factors": FACTORS[:, :4], "variances": VARIANCES}, r"factors have shape \(3, 4, 2\)"),
        (WEIGHTS, MEANS, {"covariances": torch.triu(torch.ones(3, 6, 6))}, "covariances must be symmetric"),
        (WEIGHTS, MEANS, {"covariances": -torch.eye(6).expand(3, 6, 6)}, "must be positive semi-definite, got the eig"),
    ],
)
def test_bad_parameters_are_refused(weights: Tensor, means: Tensor, arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        en.GaussianMixture(weights, means, **arguments)


def synthetic(kind: str, n: int) -> tuple[Tensor, Tensor]:
    """Draws of two well separated components of 12 pixels, weights 0.3 and 0.7."""
    shape = (1, 3, 4)
    means = torch.stack([torch.full(shape, -2.0), torch.full(shape, 2.0)]).double()
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    factors = {"factors": randn(2, 12, 2, seed=8)} if kind != "diagonal" else {}
    truth = en.GaussianMixture(weights, means, variances=torch.tensor([0.2, 0.5]).double(), **factors)
    return truth.sample(gen(9), n), weights


@pytest.mark.parametrize("kind", ["low-rank", "diagonal", "full"])
def test_fit_recovers_weights_and_held_out_likelihood(kind: str) -> None:
    n = 1200
    data, weights = synthetic(kind, 2 * n)
    train, test = data[:n], data[n:]
    u = en.GaussianMixture.fit(train, 2, kind=kind, rank=2, seed=3)
    order = u.means.mean((1, 2, 3)).argsort()
    # The components do not overlap, so that weights are those of a coin tossed n times: five standard deviations.
    assert float((u.weights[order] - weights).abs().max()) < 5 * (0.3 * 0.7 / n) ** 0.5
    factors = {"factors": randn(2, 12, 2, seed=8)} if kind != "diagonal" else {}
    means = torch.stack([torch.full((1, 3, 4), m) for m in (-2.0, 2.0)]).double()
    truth = en.GaussianMixture(weights, means, variances=torch.tensor([0.2, 0.5]).double(), **factors)
    gap = u(test) - truth(test)
    # A model with p parameters loses p / (2 n) nats on average (Akaike); "full" has 2 (78 + 12) + 1 of them.
    lost = {"low-rank": 2 * (12 + 24) + 3, "diagonal": 2 * 24 + 1, "full": 181}[kind] / (2 * n)
    assert abs(float(gap.mean()) - lost) < 5 * float(gap.std()) / n**0.5
    assert torch.equal(en.GaussianMixture.fit(train, 2, kind=kind, rank=2, seed=3).means, u.means)


def test_rounds_of_em_raise_the_likelihood() -> None:
    """Overlapping components in many dimensions, where the first responsibilities are wrong."""
    shape, n = (1, 5, 5), 300
    f = randn(3, 25, 3, seed=8)
    truth = en.GaussianMixture(
        torch.tensor([0.2, 0.3, 0.5]), 0.3 * randn(3, *shape), factors=f, variances=torch.full((3,), 0.3)
    )
    x = truth.sample(gen(2), n)
    totals = [
        float(en.GaussianMixture.fit(x, 3, rank=3, num_iterations=rounds)(x).sum()) for rounds in (0, 1, 2, 5, 20)
    ]
    # EM never lowers the likelihood: up to rounding, U only falls.
    assert all(b <= a + 1e-6 * abs(a) for a, b in itertools.pairwise(totals))
    assert totals[-1] < totals[0] - 1


def test_one_low_rank_component_keeps_the_leading_eigenvalues_and_the_trace() -> None:
    """The maximum likelihood solution of Tipping and Bishop 1999: sample eigenvalues, and the average of the rest."""
    rank, x = 3, randn(200, 1, 4, 5) @ torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    u = en.GaussianMixture.fit(x, 1, rank=rank)
    sample = torch.linalg.eigvalsh(torch.cov(x.flatten(1).T, correction=0)).flip(0)
    rest = sample[rank:].mean()
    got = torch.cat([u.covariances.eigenvalues[0] + u.covariances.variances[0], u.covariances.variances])
    torch.testing.assert_close(got, torch.cat([sample[:rank], rest[None]]), rtol=1e-9, atol=0)
    torch.testing.assert_close(u.means[0], x.mean(0), rtol=1e-9, atol=1e-12)


def test_low_rank_fit_of_more_pixels_than_images() -> None:
    x = randn(30, 1, 16, 16).float()
    u = en.GaussianMixture.fit(x, 2, rank=50, seed=1)
    assert u.means.dtype == torch.float32
    value, grad = u.value_and_grad(x)
    assert torch.isfinite(value).all()
    assert torch.isfinite(grad).all()


def test_bad_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 images, expected at least 3"):
        en.GaussianMixture.fit(torch.zeros(2, 1, 2, 2), 3)
    with pytest.raises(ValueError, match="kind is 'tied'"):
        en.GaussianMixture.fit(torch.zeros(4, 1, 2, 2), 2, kind="tied")
    with pytest.raises(ValueError, match=r"images have shape \(4, 2, 2\)"):
        en.GaussianMixture.fit(torch.zeros(4, 2, 2), 2)
    with pytest.raises(ValueError, match="floor must be positive"):
        en.GaussianMixture.fit(torch.zeros(4, 1, 2, 2), 2, floor=0.0)
