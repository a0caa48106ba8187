"""Noise levels as unknowns of Pyro models: normalisers, and NUTS against integrals over image and noise level."""

# ruff: noqa: TID253 - the models are Pyro's
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

from potentia import energies, inference, likelihoods
from potentia._potential import Likelihood
from potentia.inference import Homogeneous, pyro_model
from potentia.testing._examples_noise import ToneCurve

MOST_SE = 4.5
Y = torch.tensor([[[0.3, -1.2, 2.5, 0.1]]], dtype=torch.float64)
PRIOR_OF_SCALE = (-1.0, 0.6)  # of the log scale, a normal variable


def log_scale_moments(density: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Mean and std of log scale given Y, pixels x ~ N(0, 1), by sums over grids of x and of log scale.

    ``density`` gives -log p(y | x, scale) for each pixel: x (n, 1, 1, 1), scale () -> (n, 4).
    """
    x = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    prior = (-0.5 * x.square()).exp()
    levels = torch.linspace(-5, 3, 161, dtype=torch.float64)
    logs = [((-density(x, level.exp())).exp() * prior[:, None]).sum(0).log().sum() for level in levels]
    mean, std = PRIOR_OF_SCALE
    log_density = torch.stack(logs) - 0.5 * ((levels - mean) / std).square()
    weight = (log_density - log_density.max()).exp()
    weight = weight / weight.sum()
    found = float((weight * levels).sum())
    return found, float((weight * (levels - found).square()).sum()) ** 0.5


def run(model: Callable[[], None]) -> Tensor:
    pyro.set_rng_seed(3)
    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples=200, warmup_steps=80, disable_progbar=True)
    mcmc.run()
    samples: Tensor = mcmc.get_samples(group_by_chain=True)["log_scale"]
    return samples


def log_scale() -> Tensor:
    value: Tensor = pyro.sample(
        "log_scale", dist.Normal(*(torch.tensor(v, dtype=torch.float64) for v in PRIOR_OF_SCALE))
    )
    return value


def check_against_the_integral(draws: Tensor, mean: float, std: float) -> None:
    assert abs(float(draws.mean()) - mean) < MOST_SE * float(inference.mcse(draws))
    assert abs(float(draws.std()) - std) < MOST_SE * float(inference.mcse(draws, "std"))


@pytest.mark.parametrize("kind", [likelihoods.Laplace, likelihoods.Gaussian])
def test_weights_of_homogeneous_noise_are_noise_levels(kind: type[Likelihood]) -> None:
    power = 1 if kind is likelihoods.Laplace else 2
    data = kind(Y, None, 1.0).named("data")  # type: ignore[call-arg]
    scene = pyro_model(energies.Gaussian(torch.zeros_like(Y), 1.0) + data, init_std=0.5)

    def density(x: Tensor, scale: Tensor) -> Tensor:
        r = (x[:, None] - Y.flatten()).abs() / scale
        return (r if power == 1 else 0.5 * r.square()) + scale.log()

    def model() -> None:
        scene(data=(-power * log_scale()).exp())

    check_against_the_integral(run(model), *log_scale_moments(density))


FAR = torch.tensor([[[0.3, -1.2, 2.5, 0.1, 1.9, -2.2]]], dtype=torch.float64)


def half_normal_scene(**normalisers: None) -> tuple[Callable[[], None], Likelihood]:
    """Pixels N(0, 1), and a noise level with the prior of half a normal variable."""
    data = likelihoods.Gaussian(FAR, None, 1.0).named("data")
    scene = pyro_model(energies.Gaussian(torch.zeros_like(FAR), 1.0) + data, init_std=0.5, normalisers=normalisers)

    def model() -> None:
        noise_std = pyro.sample("noise_std", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
        scene(data=noise_std**-2)

    return model, data


def log_joint(model: Callable[[], None], noise_std: float, x: Tensor) -> float:
    values = {"noise_std": torch.tensor(noise_std, dtype=torch.float64), "x": x}
    return float(pyro.poutine.trace(pyro.poutine.condition(model, values)).get_trace().log_prob_sum())


def test_the_density_of_a_half_normal_noise_level_is_written_out() -> None:
    """Up to one constant for all noise levels and images; without the normaliser it is 6 log noise_std off."""
    g = torch.Generator().manual_seed(0)
    model, _ = half_normal_scene()
    bare, _ = half_normal_scene(data=None)
    off, left_out = [], []
    for noise_std in (0.05, 0.4, 1.0, 3.0):
        x = torch.randn(FAR.shape, generator=g, dtype=torch.float64)
        want = float(dist.HalfNormal(1.0).log_prob(torch.tensor(noise_std, dtype=torch.float64)))
        want += float(dist.Normal(x, noise_std).log_prob(FAR).sum() + dist.Normal(0.0, 1.0).log_prob(x).sum())
        off.append(log_joint(model, noise_std, x) - want)
        left_out.append(log_joint(bare, noise_std, x) - want - FAR.numel() * math.log(noise_std))
    assert max(off) - min(off) < 1e-9
    assert max(left_out) - min(left_out) < 1e-9


def test_nuts_samples_a_half_normal_noise_level_beside_the_image() -> None:
    """Against the marginal law: y alone is N(0, 1 + noise_std^2), so that the noise level's density is a line's."""
    pyro.set_rng_seed(5)
    model, _ = half_normal_scene()
    mcmc = MCMC(NUTS(model, init_strategy=init_to_sample, max_tree_depth=5), 300, 100, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["noise_std"]
    s = torch.linspace(1e-3, 6, 6000, dtype=torch.float64)
    spread = 1 + s.square()
    log = -0.5 * s.square() - 0.5 * FAR.numel() * spread.log() - 0.5 * FAR.square().sum() / spread
    mass = (log - log.max()).exp()
    mass = mass / mass.sum()
    mean = float((mass * s).sum())
    check_against_the_integral(draws, mean, float((mass * (s - mean).square()).sum()) ** 0.5)


def test_the_scale_of_students_t_enters_through_a_factor() -> None:
    scene = pyro_model(energies.Gaussian(torch.zeros_like(Y), 1.0), init_std=0.5)
    base = likelihoods.StudentT(Y, None, 1.0, 3.0)

    def model() -> None:
        scale = log_scale().exp()
        x = scene()
        data = base.with_scale(scale)
        pyro.factor("data", -data(x) - data.log_normaliser())

    def density(x: Tensor, scale: Tensor) -> Tensor:
        return 2 * torch.log1p(((x[:, None] - Y.flatten()) / scale).square() / 3) + scale.log()

    check_against_the_integral(run(model), *log_scale_moments(density))


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_a_weight_with_its_normaliser_is_the_density_of_another_scale(scale: float) -> None:
    """Up to one constant for all scales and images: the normaliser of the term as built."""
    g = torch.Generator().manual_seed(0)
    mask = likelihoods.Mask(torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    for y in (Y, Y + 0.5j):
        for kind, power in ((likelihoods.Laplace, 1), (likelihoods.Gaussian, 2)):
            unit, other = kind(y, mask, 1.0), kind(y, mask, scale)
            x = torch.randn(1, 1, 4, generator=g, dtype=y.dtype)
            weight = torch.tensor(scale**-power, dtype=torch.float64)
            law = Homogeneous.of(unit)
            assert law.degree == power
            assert law.dims == (6 if y.is_complex() else 3)
            got = weight * unit(x) + law(weight) + unit.log_normaliser()
            assert float(got) == pytest.approx(float(other(x) + other.log_normaliser()), rel=1e-12)


def test_gaussian_noise_around_a_nonlinear_model_is_homogeneous_too() -> None:
    data = likelihoods.Gaussian(Y, ToneCurve(), 1.0)
    assert data.quadratic() is None
    assert Homogeneous.of(data) == Homogeneous(4, 2.0)
    assert Homogeneous.of(2.0 * data) == Homogeneous(4, 2.0)


@pytest.mark.parametrize(
    "term",
    [
        likelihoods.StudentT(Y, None, 1.0),
        likelihoods.Poisson(Y.abs().round()),
        -1.0 * likelihoods.Laplace(Y, None, 1.0),
    ],
)
def test_other_noise_is_refused(term: Likelihood) -> None:
    with pytest.raises(ValueError, match=r"has no quadratic form; give Homogeneous\(dims, degree\)"):
        Homogeneous.of(term)


def test_without_the_normaliser_the_level_runs_away() -> None:
    """The planted fault: the factor alone prefers ever larger scales."""
    data = likelihoods.Laplace(Y, None, 1.0)
    x = torch.zeros_like(Y)
    levels = torch.logspace(-2, 4, 50, dtype=torch.float64)
    bare = torch.stack([data.with_scale(s)(x) for s in levels])
    whole = torch.stack([data.with_scale(s)(x) + data.with_scale(s).log_normaliser() for s in levels])
    assert bool((bare.diff() < 0).all())
    # The best scale is the mean of |y - x|.
    assert math.isclose(float(levels[whole.argmin()]), float(Y.abs().mean()), rel_tol=0.3)
