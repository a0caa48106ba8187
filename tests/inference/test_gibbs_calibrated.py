"""Joint laws of images, parameters and data under Gibbs sampling: Geweke's test, calibration, and planted faults."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, HalfCauchy, HalfNormal, LogNormal, Poisson

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia._potential import Potential
from potentia._random import chain_generators
from potentia.inference import Gibbs, Homogeneous, NoiseStd, Sampler, Unknown, Weight
from potentia.inference._gibbs import PREFIX
from potentia.inference._parameters import Make
from potentia.inference._uniformity import chi_square_p, num_bins

SHAPE = (1, 2, 3)
ZERO = torch.zeros(SHAPE, dtype=torch.float64)
IMAGE = inference.Langevin(steps_per_draw=1)  # exact on these Gaussians
A, B = 5.0, 2.0  # of the conjugate priors


def double(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, dtype=torch.float64) for v in values)


# The model of each kind of parameter: the truth's law, the image and the data under it, and the sampler.


@dataclass(frozen=True)
class Model:
    """``draw`` gives a parameter; ``image`` an image and ``data`` measurements under it; ``block`` samples it."""

    draw: Callable[[torch.Generator], float]
    term: str
    block: Callable[[Tensor], inference.Parameter]
    image_std: Callable[[float], float] = lambda v: 1.0
    noise_std: Callable[[float], float] = lambda v: v

    def image(self, v: float, g: torch.Generator) -> Tensor:
        return self.image_std(v) * torch.randn(SHAPE, generator=g, dtype=torch.float64)

    def data(self, x: Tensor, v: float, g: torch.Generator) -> Tensor:
        return x + self.noise_std(v) * torch.randn(SHAPE, generator=g, dtype=torch.float64)

    def posterior(self, y: Tensor) -> Potential:
        data = likelihoods.Gaussian(y, None, 1.0 if self.term == "gaussian" else 0.5)
        return energies.Gaussian(ZERO, 1.0).named("prior") + data


def gamma_of(shape: float, rate: float, g: torch.Generator) -> float:
    return float(torch._standard_gamma(torch.tensor(shape, dtype=torch.float64), generator=g)) / rate


def normal(g: torch.Generator) -> float:
    return float(torch.randn((), generator=g, dtype=torch.float64))


def log_normal() -> LogNormal:
    return LogNormal(*double(-0.5, 0.7))


def unknown(y: Tensor, kernel: Sampler | None = None, kind: type[Unknown] = Unknown) -> Unknown:
    return kind("gaussian", lambda v: likelihoods.Gaussian(y, None, v), log_normal(), kernel=kernel)


class FewDegrees(NoiseStd):
    """A wrong conjugate shape: one degree of freedom a measurement in place of a half."""

    def _law(self, term: Potential, event_shape: tuple[int, ...]) -> Homogeneous:
        return Homogeneous(2 * super()._law(term, event_shape).dims)


class NoDimensions(Weight):
    """Forgets that the prior's normaliser depends on its weight."""

    def update(self, make: Make, x: Tensor, values: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        with torch.no_grad():
            level = torch.cat([make(c, 1.0)(x[c : c + 1]) for c in range(len(x))])
        new = [gamma_of(self.shape, self.rate + float(u), g) for u, g in zip(level, generators, strict=True)]
        return torch.tensor(new, dtype=torch.float64)


class NoJacobian(Unknown):
    """Forgets the change of variables."""

    def _density(self, make: Any, x: Tensor) -> Any:
        right = super()._density(make, x)
        transform = self._to_support
        return lambda u: right(u) - transform.log_abs_det_jacobian(u, transform(u))


class NoNormaliser(Unknown):
    """Forgets what the likelihood drops."""

    def _level(self, built: Potential, x: Tensor, value: float) -> float:
        return float(built(x))


MALA = inference.MALA(step_size=0.1, steps_per_draw=2)
OF_NOISE = {"draw": lambda g: gamma_of(A, B, g) ** -0.5, "term": "gaussian"}
OF_WEIGHT = {
    "draw": lambda g: gamma_of(A, B, g), "term": "prior",
    "image_std": lambda w: w**-0.5, "noise_std": lambda w: 0.5,
}  # fmt: skip
OF_UNKNOWN = {"draw": lambda g: math.exp(-0.5 + 0.7 * normal(g)), "term": "gaussian"}
RIGHT: dict[str, Model] = {
    "noise level": Model(block=lambda y: NoiseStd("gaussian", A, B), **OF_NOISE),  # type: ignore[arg-type]
    "weight": Model(block=lambda y: Weight("prior", A, B), **OF_WEIGHT),  # type: ignore[arg-type]
    "unknown, slices": Model(block=unknown, **OF_UNKNOWN),  # type: ignore[arg-type]
    "unknown, MALA": Model(block=lambda y: unknown(y, MALA), **OF_UNKNOWN),  # type: ignore[arg-type]
}
WRONG: dict[str, Model] = {
    "a wrong shape": Model(block=lambda y: FewDegrees("gaussian", A, B), **OF_NOISE),  # type: ignore[arg-type]
    "dimensions forgotten": Model(block=lambda y: NoDimensions("prior", A, B), **OF_WEIGHT),  # type: ignore[arg-type]
    "Jacobian forgotten": Model(block=lambda y: unknown(y, kind=NoJacobian), **OF_UNKNOWN),  # type: ignore[arg-type]
    "normaliser forgotten": Model(block=lambda y: unknown(y, kind=NoNormaliser), **OF_UNKNOWN),  # type: ignore[arg-type]
}


# Geweke's test: the parameter travels in one pixel more than the image has.


class Joint(Potential):
    """Carries the data of a step to the statistics and to the kernel."""

    def __init__(self, model: Model, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y

    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        return x.flatten(-3).sum(-1)


def packed(image: Tensor, value: float) -> Tensor:
    return torch.cat([image.flatten(), torch.tensor([value], dtype=torch.float64)]).reshape(1, 1, -1)


def geweke(model: Model, steps: int, chains: int = 4) -> inference.GewekeResult:
    def prior_sample(g: torch.Generator) -> Tensor:
        value = model.draw(g)
        return packed(model.image(value, g), value)

    def make_posterior(joint: Tensor, g: torch.Generator) -> Potential:
        flat = joint.flatten()
        return Joint(model, model.data(flat[:-1].reshape(SHAPE), float(flat[-1]), g))

    def kernel(target: Any, joint: Tensor, g: torch.Generator) -> Tensor:
        flat = joint.flatten()
        sampler = Gibbs({"image": IMAGE, "value": model.block(target.y)})
        posterior = model.posterior(target.y)
        state = sampler.init(posterior, flat[:-1].reshape(1, *SHAPE), [g])
        state = state._replace(memory={PREFIX + "value": flat[-1:]})
        for _ in range(sampler.steps_per_draw):
            state, _ = sampler.step(posterior, state)
        return packed(state.x, float(state.memory[PREFIX + "value"]))[None]

    statistics = {
        "log value": lambda x, u: x.flatten(1)[:, -1].log(),
        "pixel": lambda x, u: x.flatten(1)[:, 0],
        "energy": lambda x, u: x.flatten(1)[:, :-1].square().sum(1),
        "residual": lambda x, u: (x.flatten(1)[:, :-1] - u.y.flatten()).square().sum(1).log(),
    }
    return inference.geweke_test(prior_sample, make_posterior, kernel, num_steps=steps, num_chains=chains,
                                 num_independent=3000, statistics=statistics)  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_joint_law_is_kept(name: str) -> None:
    found = geweke(RIGHT[name], 100)
    assert found.p_value > 1e-3, repr(found)


@pytest.mark.parametrize("name", WRONG)
def test_faults_break_the_joint_law(name: str) -> None:
    assert geweke(WRONG[name], 300 if "Jacobian" in name else 120).p_value < 1e-5


# Simulation-based calibration, with data and truth a replication in each chain.


DRAWS = 7


def rank_of(model: Model, seed: int, thin: int = 2) -> int:
    g = torch.Generator().manual_seed(seed)
    truth = model.draw(g)
    y = model.data(model.image(truth, g), truth, g)
    posterior, sampler = model.posterior(y), Gibbs({"image": IMAGE, "value": model.block(y)})
    generators = chain_generators(seed, [0])
    start = sampler.start(posterior, (1, *SHAPE), torch.float64, generators)
    state, below = sampler.init(posterior, start, generators), 0
    for n in range(8 + DRAWS * thin):
        for _ in range(sampler.steps_per_draw):
            state, info = sampler.step(posterior, state)
        below += n >= 8 and (n - 8) % thin == 0 and float(info.parameters["value"]) < truth
    return below


@pytest.mark.parametrize("name", RIGHT)
def test_parameters_are_calibrated(name: str) -> None:
    ranks = torch.tensor([rank_of(RIGHT[name], seed) for seed in range(24)])
    assert chi_square_p(ranks, num_bins(24, DRAWS), DRAWS) > 3e-3


@pytest.mark.parametrize("name", ["a wrong shape", "dimensions forgotten"])
def test_calibration_sees_faults(name: str) -> None:
    ranks = torch.tensor([rank_of(WRONG[name], seed) for seed in range(24)])
    assert chi_square_p(ranks, num_bins(24, DRAWS), DRAWS) < 1e-3


# Diagnostics.


def test_diagnostics_of_parameters() -> None:
    """Of noise levels that start far apart: the effective sample size of nearly independent draws, and R-hat of 1."""
    y = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = energies.Gaussian(torch.zeros(1, 8, 8, dtype=torch.float64), 1.0).named("prior")
    posterior = prior + likelihoods.Gaussian(y, None, 1.0)
    sampler = Gibbs({"image": IMAGE, "noise_std": NoiseStd("gaussian", 20.0, 10.0)})
    ensemble = pt.sample(posterior, sampler, num_chains=4, num_draws=150, num_warmup=20, progress=False)
    values = torch.from_numpy(ensemble.parameter("noise_std").values.copy())
    assert float(inference.rhat(values)) < 1.02
    assert 100 < float(inference.ess(values)) < 900
    apart = values + torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None]
    assert float(inference.rhat(apart)) > 1.2


# What is refused.


def plain() -> Potential:
    return energies.Gaussian(ZERO, 1.0).named("prior") + likelihoods.Gaussian(ZERO, None, 1.0)


def run(blocks: dict[str, Any], target: Potential | None = None) -> None:
    sampler = Gibbs({"image": IMAGE, **blocks})
    with inference.without_diagnostics():
        pt.sample(target or plain(), sampler, num_chains=2, num_draws=2, num_warmup=1, progress=False)


def failing(value: float) -> Potential:
    raise ArithmeticError("no such blur")


class Exploding(likelihoods.Gaussian):
    """A likelihood with a value of one's choice."""

    result: float = math.nan

    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        return torch.full((len(x),), self.result, dtype=torch.float64)


class Refusing(likelihoods.Gaussian):
    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        raise ValueError("images of this kind are not known")


def exploding(result: float) -> Callable[[float], Potential]:
    def build(value: float) -> Potential:
        made = Exploding(ZERO, None, value)
        made.result = result
        return made

    return build


@pytest.mark.parametrize(
    ("block", "error", "words"),
    [
        (lambda: Unknown("gaussian", failing, log_normal()), ValueError,
         r"Unknown of gaussian: build\(.*\) failed: ArithmeticError: no such blur"),
        (lambda: Unknown("gaussian", lambda v: v, log_normal()), TypeError, r"build\(.*\) gave a float, expected"),
        (lambda: Unknown("gaussian", lambda v: Refusing(ZERO, None, v), log_normal()), ValueError,
         "what build.* gives failed at the image: ValueError: images of this kind"),
        (lambda: Unknown("gaussian", exploding(math.nan), log_normal()), FloatingPointError, "log density is nan at"),
        (lambda: Unknown("gaussian", exploding(-math.inf), log_normal()), FloatingPointError, "log density is inf at"),
        (lambda: Unknown("gaussian", exploding(math.inf), log_normal()), FloatingPointError,
         "chain 0 stands at .*, where its density is zero; expected an initial"),
        (lambda: Unknown("gaussian", failing, log_normal(), initial=-1.0), ValueError,
         "initial is -1, outside of the prior of gaussian"),
        (lambda: Unknown("gaussian", failing, Gamma(*double(1.0, 1.0)), initial=math.inf), ValueError,
         "initial is inf, outside of the prior"),
        (lambda: Unknown("gaussian", failing, HalfCauchy(1.0)), ValueError, "has no mean, expected initial"),
        (lambda: Unknown("gaussian", failing, Poisson(3.0)), ValueError, "the prior of gaussian is discrete, expected"),
        (lambda: Unknown("gaussian", failing, HalfNormal(torch.ones(3))), ValueError, r"is of numbers of shape \(3,\)"),
        (lambda: NoiseStd("prior", 1.0, 0.0), ValueError, "NoiseStd: rate must be positive"),
        (lambda: NoiseStd("nothing"), ValueError, "'a' belongs to the term 'nothing', expected one of prior, gaussian"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said(block: Callable[[], inference.Parameter], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run({"a": block()})


def test_priors_that_share_a_normaliser() -> None:
    target = (
        energies.Gaussian(ZERO, 1.0).named("ridge")
        + energies.TotalVariation(0.1)
        + likelihoods.Gaussian(ZERO, None, 1.0)
    )
    with pytest.raises(ValueError, match="'a' is the weight of 'ridge', one of the priors ridge, tv, which have one"):
        run({"a": Weight("ridge", 1.0, 1.0)}, target)
    run({"a": Weight("ridge", 1.0, 1.0, normaliser=Homogeneous(6))}, target)


def test_noise_levels_are_of_gaussian_noise() -> None:
    for data, words in (
        (
            likelihoods.Laplace(ZERO, None, 1.0),
            "NoiseStd of laplace: the term is homogeneous of degree 1, expected the 2",
        ),
        (likelihoods.StudentT(ZERO, None, 1.0), "student_t has no quadratic form"),
    ):
        target = energies.Gaussian(ZERO, 1.0) + data
        with pytest.raises(ValueError, match=words):
            run({"a": NoiseStd(data.name)}, target)


def test_a_prior_has_no_noise_level() -> None:
    """Two terms of one name: the likelihood is the second."""
    target = energies.Gaussian(ZERO, 1.0) + likelihoods.Gaussian(ZERO, None, 1.0)
    with pytest.raises(TypeError, match=r"NoiseStd of gaussian: the term is a prior, Gaussian\(.*\), expected the"):
        run({"a": NoiseStd()}, target)
    run({"a": NoiseStd("gaussian_2")}, target)


def test_a_laplace_scale_is_one_over_a_weight() -> None:
    """w | x ~ Gamma(shape + N, rate + sum |x - y|)."""
    term = likelihoods.Laplace(ZERO, None, 1.0)
    x = torch.ones(3000, *SHAPE, dtype=torch.float64)
    block = Weight("laplace", 2.0, 1.0)
    new = block.update(lambda c, v: block.given(term, v), x, torch.ones(3000), chain_generators(0, range(3000)))
    assert abs(float(new.mean()) * 7 / 8 - 1) < 5 / math.sqrt(3000 * 8)


def test_images_that_explode_are_told() -> None:
    steep = energies.Function(lambda x: 1e3 * x.pow(4).flatten(-3).sum(-1)) + likelihoods.Gaussian(ZERO + 1, None, 1.0)
    sampler = Gibbs({"image": inference.Langevin(1.0, steps_per_draw=40), "noise_std": NoiseStd()})
    with pytest.raises(FloatingPointError, match=r"2 of 2 chains are no longer finite, the first of them 0; a smaller"):
        pt.sample(steep, sampler, num_chains=2, num_draws=1, progress=False)


@pytest.mark.parametrize("shape", [1e-3, 1e-2])
def test_vague_priors_start_far_out_and_come_back(shape: float) -> None:
    g = torch.Generator().manual_seed(1)
    y = 0.1 * torch.randn(1, 8, 8, generator=g)
    target = energies.Gaussian(torch.zeros(1, 8, 8), 0.1).named("prior") + likelihoods.Gaussian(y, None, 1.0)
    sampler = Gibbs({"image": inference.Langevin(), "noise_std": NoiseStd("gaussian", shape, shape)})
    with inference.without_diagnostics():
        ensemble = pt.sample(target, sampler, num_chains=4, num_draws=5, progress=False)
    values = ensemble.parameter("noise_std").values
    assert bool(torch.isfinite(ensemble.samples()).all())
    assert bool(((values > 1e-3) & (values < 1.0)).all())


def test_noise_that_vanishes() -> None:
    """Data that the image can explain entirely, under a prior that wants no noise: levels near zero, but finite."""
    sampler = Gibbs({"image": IMAGE, "noise_std": NoiseStd("gaussian", 1e3, 1e-9)})
    with inference.without_diagnostics():
        ensemble = pt.sample(plain(), sampler, num_chains=2, num_draws=20, progress=False)
    values = ensemble.parameter("noise_std").values
    assert (values > 0).all()
    assert values.max() < 1e-4
    assert np.isfinite(ensemble.tree["sample_stats/lp"].values).all()
    assert float(ensemble.samples().abs().max()) < 1e-3
