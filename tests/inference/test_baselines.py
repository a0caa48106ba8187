"""DPS, DAPS, DiffPIR and split Gibbs against what their papers' recursions give on a Gaussian prior."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from potentia import annealers, energies, inference, likelihoods
from potentia._potential import Potential, ScoreOnly
from potentia._random import chain_generators, standard_normal
from potentia.inference import Sampler
from potentia.inference._daps import DAPS
from potentia.inference._diffpir import DiffPIR
from potentia.inference._dps import DPS
from potentia.inference._guided import scales_below
from potentia.inference._split_gibbs import SplitGibbs

SHAPE = (1, 3, 4)
D = 12
CHAINS = 20_000
EYE = torch.eye(D, dtype=torch.float64)


class Law(NamedTuple):
    """A Gaussian: mean (d,) and covariance (d, d)."""

    mean: Tensor
    covariance: Tensor

    def through(self, matrix: Tensor, shift: Tensor, noise: Tensor) -> "Law":
        """The law of M x + shift + N(0, noise)."""
        return Law(matrix @ self.mean + shift, matrix @ self.covariance @ matrix.T + noise)

    def conditioned(self, precision: Tensor, linear: Tensor) -> "Law":
        """The law times exp(-x^T precision x / 2 + linear x)."""
        inverse = torch.linalg.inv(self.covariance)
        covariance = torch.linalg.inv(inverse + precision)
        return Law(covariance @ (inverse @ self.mean + linear), covariance)


class Case(NamedTuple):
    """A Gaussian prior, a linear likelihood, and both as dense matrices: Λ and b."""

    posterior: Potential
    prior: Law
    precision: Tensor
    linear: Tensor
    matrix: Tensor
    noise_std: float

    def denoiser(self, sigma: float) -> tuple[Tensor, Tensor]:
        """K and c of D(x) = K x + c."""
        gain = self.prior.covariance @ torch.linalg.inv(self.prior.covariance + sigma**2 * EYE)
        return gain, self.prior.mean - gain @ self.prior.mean

    def solve(self, scale: float) -> Tensor:
        """(Λ + I / scale^2)^-1."""
        return torch.linalg.inv(self.precision + EYE / scale**2)


def case(kind: str, noise_std: float = 0.3) -> Case:
    g = torch.Generator().manual_seed(3)
    root = torch.randn(D, D, dtype=torch.float64, generator=g) / 4
    mean = 0.5 * torch.randn(D, dtype=torch.float64, generator=g)
    covariance = root @ root.T + 0.02 * EYE
    operator = {
        "mask": likelihoods.Mask((torch.arange(D).reshape(SHAPE[1:]) % 3 > 0).double()),
        "blur": likelihoods.GaussianBlur(0.7, SHAPE[1:]).double(),
        "matrix": likelihoods.Matrix(torch.randn(5, D, dtype=torch.float64, generator=g), SHAPE),
    }[kind]
    prior = energies.GaussianMixture(torch.ones(1), mean.reshape(1, *SHAPE), covariances=covariance[None])
    truth = prior.sample(g, 1)[0]
    y = operator.measure(truth[None], noise_std, g)[0]
    matrix = operator(EYE.reshape(D, *SHAPE)).flatten(1).T
    return Case(
        prior + likelihoods.Gaussian(y, operator, noise_std),
        Law(mean, covariance),
        matrix.T @ matrix / noise_std**2,
        matrix.T @ y.flatten() / noise_std**2,
        matrix,
        noise_std,
    )


def run(sampler: Sampler, posterior: Potential, num: int = CHAINS, seed: int = 0) -> Tensor:
    """One draw of each chain, (num, d)."""
    g = torch.Generator().manual_seed(seed)
    state = sampler.init(posterior, sampler.start(posterior, (num, *SHAPE), torch.float64, g), g)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
    return state.x.flatten(1)


def distance(x: Tensor, law: Law) -> float:
    """How many standard errors the mean and covariance of draws are off those of a law, at the most.

    In coordinates in which the law is N(0, I), a mean has the standard error 1 / sqrt(n), a covariance of two entries
    1 / sqrt(n), and a variance sqrt(2 / n). Of the 90 numbers one exceeds 4.5 in 0.06 % of the cases.
    """
    root = torch.linalg.cholesky(law.covariance)
    white = torch.linalg.solve_triangular(root, (x - law.mean).T, upper=False).T
    n = len(x)
    mean = white.mean(0) * math.sqrt(n)
    moment = (white.T @ white / n - EYE) * math.sqrt(n)
    moment.diagonal().div_(math.sqrt(2))
    return float(torch.cat([mean, moment.flatten()]).abs().max())


SCALES = (4.0, 1.5, 0.6, 0.25, 0.1)
LADDER = annealers.Ladder.of(SCALES)


def steps() -> list[tuple[float, float]]:
    return list(pairwise((*SCALES, 0.0)))


def diffpir_law(c: Case, lam: float, zeta: float) -> Law:
    law = Law(torch.zeros(D).double(), SCALES[0] ** 2 * EYE)
    for s, r in steps():
        gain, shift = c.denoiser(s)
        tau = s / math.sqrt(lam)
        solve = c.solve(tau)
        fit, off = solve @ gain / tau**2, solve @ (c.linear + shift / tau**2)
        old = r * math.sqrt(1 - zeta) / s
        law = law.through(fit + old * (EYE - fit), (1 - old) * off, zeta * r**2 * EYE)
    return law


def karras(sigma: float, end: float, num: int) -> list[float]:
    """Scales by eq. 5 of Karras et al. 2022."""
    if sigma <= end or num == 1:
        return [sigma, 0.0]
    a, b = sigma ** (1 / 7), end ** (1 / 7)
    return [*((a + i / (num - 1) * (b - a)) ** 7 for i in range(num)), 0.0]


def daps_law(c: Case, num_ode: int, end: float, langevin: int = 0, sizes: tuple[float, float] = (0, 0)) -> Law:
    law = Law(torch.zeros(D).double(), SCALES[0] ** 2 * EYE)
    none = torch.zeros(D, D).double()
    for k, (s, r) in enumerate(steps()):
        for upper, lower in pairwise(karras(s, end, num_ode)):
            gain, shift = c.denoiser(upper)
            kept = lower / upper
            law = law.through(gain + kept * (EYE - gain), (1 - kept) * shift, none)
        if langevin == 0:
            solve = c.solve(s)
            law = law.through(solve / s**2, solve @ c.linear, solve)
        else:
            h = sizes[0] + k / (len(SCALES) - 1) * (sizes[1] - sizes[0])
            moved, off, noise = EYE, torch.zeros(D).double(), none  # x0 = moved x^ + off + N(0, noise)
            drift = EYE - h * (c.precision + EYE / s**2)
            for _ in range(langevin):
                moved = drift @ moved + h / s**2 * EYE
                off = drift @ off + h * c.linear
                noise = drift @ noise @ drift.T + 2 * h * EYE
            law = law.through(moved, off, noise)
        law = law.through(EYE, torch.zeros(D).double(), r**2 * EYE)
    return law


class Move(NamedTuple):
    """x -> M x + shift + N(0, noise)."""

    matrix: Tensor
    shift: Tensor
    noise: Tensor

    def then(self, other: "Move") -> "Move":
        m = other.matrix
        return Move(m @ self.matrix, m @ self.shift + other.shift, m @ self.noise @ m.T + other.noise)


def sweep(c: Case, rho: float, end: float, num: int) -> Move:
    """One sweep of split Gibbs."""
    solve = c.solve(rho)
    move = Move(solve / rho**2, solve @ c.linear, solve)
    for s, r in pairwise(karras(rho, end, num)):
        gain, shift = c.denoiser(s)
        kept = (r / s) ** 2
        move = move.then(Move(gain + kept * (EYE - gain), (1 - kept) * shift, r**2 * (1 - kept) * EYE))
    return move


def gibbs_law(c: Case, couplings: tuple[float, ...], end: float, num: int) -> Law:
    law = Law(torch.zeros(D).double(), torch.zeros(D, D).double())
    for rho in couplings:
        law = law.through(*sweep(c, rho, end, num))
    return law


LAWS: dict[str, tuple[Sampler, Callable[[Case], Law], Callable[[Case], Law]]] = {
    # A sampler, its law, and the law of a variant that the comparison is to tell from it.
    "DiffPIR": (
        DiffPIR(LADDER, lam=2.0, zeta=0.4, tolerance=1e-11),
        lambda c: diffpir_law(c, 2.0, 0.4),
        lambda c: diffpir_law(c, 2.0, 0.8),
    ),
    "DiffPIR, new noise alone": (
        DiffPIR(LADDER, tolerance=1e-11),
        lambda c: diffpir_law(c, 1.0, 1.0),
        lambda c: diffpir_law(c, 1.2, 1.0),
    ),
    "DAPS": (
        DAPS(LADDER, num_ode=4, sigma_min=0.15, tolerance=1e-11),
        lambda c: daps_law(c, 4, 0.15),
        lambda c: daps_law(c, 2, 0.15),
    ),
    "DAPS, Langevin": (
        DAPS(LADDER, num_ode=3, num_langevin=7, step_size=4e-3, step_decay=0.25, sigma_min=0.15),
        lambda c: daps_law(c, 3, 0.15, 7, (4e-3, 1e-3)),
        lambda c: daps_law(c, 3, 0.15, 7, (4e-3, 4e-3)),
    ),
    "split Gibbs": (
        SplitGibbs(LADDER.with_steps([1, 1, 2, 2, 3]), num_denoise=4, sigma_min=0.05, tolerance=1e-11),
        lambda c: gibbs_law(c, (4.0, 1.5, 0.6, 0.6, 0.25, 0.25, 0.1, 0.1, 0.1), 0.05, 4),
        lambda c: gibbs_law(c, (4.0, 1.5, 0.6, 0.6, 0.25, 0.25, 0.1, 0.1, 0.1), 0.05, 3),
    ),
}


@pytest.mark.parametrize("kind", ["mask", "blur", "matrix"])
@pytest.mark.parametrize("name", LAWS)
def test_linear_samplers_have_the_law_of_their_recursion(name: str, kind: str) -> None:
    sampler, law, wrong = LAWS[name]
    c = case(kind)
    x = run(sampler, c.posterior)
    assert distance(x, law(c)) < 4.5
    if kind == "mask":
        assert distance(x, wrong(c)) > 9


def test_the_distance_sees_what_it_is_for() -> None:
    law = Law(torch.zeros(D).double(), case("mask").prior.covariance)
    x = torch.randn(CHAINS, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x @ torch.linalg.cholesky(law.covariance).T
    assert distance(x, law) < 4.5
    assert distance(1.05 * x, law) > 4.5
    assert distance(x + 0.1 * law.covariance.diagonal().sqrt(), law) > 4.5


@pytest.mark.parametrize("rho", [0.5, 0.2])
def test_split_gibbs_reaches_the_widened_posterior(rho: float) -> None:
    """Its law is p(x) N(y; A x, eta^2 I + rho^2 A A^T), but for the denoising, whose error falls with its steps."""
    c = case("matrix")
    noise = torch.linalg.inv(c.noise_std**2 * torch.eye(5).double() + rho**2 * c.matrix @ c.matrix.T)
    y = c.posterior.terms["gaussian"].y.double()  # type: ignore[attr-defined]
    exact = c.prior.conditioned(c.matrix.T @ noise @ c.matrix, c.matrix.T @ noise @ y)
    plain = c.prior.conditioned(c.precision, c.linear)

    def gap(num: int) -> float:
        move = sweep(c, rho, 0.002, num)
        for _ in range(12):  # 4,096 sweeps
            move = move.then(move)
        law = Law(move.shift, move.noise)
        return float((law.covariance - exact.covariance).norm() / exact.covariance.norm())

    errors = [gap(n) for n in (10, 40, 160)]
    assert errors[2] < 0.03
    assert errors[2] < errors[1] / 2.5 < errors[0] / 6
    # It is not the posterior: the coupling widens it.
    assert float((plain.covariance - exact.covariance).norm() / exact.covariance.norm()) > 2 * errors[2]
    # And the sampler has the law of the recursion from there on as well.
    sampler = SplitGibbs(annealers.Constant(rho, 1), num_denoise=8, steps_per_level=12, tolerance=1e-11)
    assert distance(run(sampler, c.posterior, 4000), gibbs_law(c, (rho,) * 12, 0.01, 8)) < 4.5


def published_dps(c: Case, zeta: float, num: int, generator: torch.Generator) -> Tensor:
    """Algorithm 1 of Chung et al. 2023 to the letter, in the variance-preserving frame, by autograd: (num, d)."""
    s = torch.tensor((*SCALES[::-1],), dtype=torch.float64)
    bar = 1 / (1 + s.square())  # ᾱ_1, ..., ᾱ_N
    before = torch.cat([torch.ones(1).double(), bar[:-1]])
    y = c.posterior.terms["gaussian"].y.flatten()  # type: ignore[attr-defined]

    def noise() -> Tensor:
        return standard_normal((num, *SHAPE), generator, dtype=torch.float64).flatten(1)

    z = bar[-1].sqrt() * s[-1] * noise()
    for i in range(len(s) - 1, -1, -1):
        z = z.detach().requires_grad_(True)
        spread = bar[i] * c.prior.covariance + (1 - bar[i]) * EYE
        score = -(z - bar[i].sqrt() * c.prior.mean) @ torch.linalg.inv(spread)
        clean = (z + (1 - bar[i]) * score) / bar[i].sqrt()
        alpha = bar[i] / before[i]
        beta = 1 - alpha
        step = alpha.sqrt() * (1 - before[i]) / (1 - bar[i]) * z + before[i].sqrt() * beta / (1 - bar[i]) * clean
        if i > 0:
            step = step + ((1 - before[i]) / (1 - bar[i]) * beta).sqrt() * noise()
        misfit = (y - clean @ c.matrix.T).square().sum(1)
        (grad,) = torch.autograd.grad(misfit.sum(), z)
        z = step - zeta / misfit.detach().sqrt()[:, None] * grad
    return z.detach()


@pytest.mark.parametrize("kind", ["mask", "blur", "matrix"])
def test_dps_is_the_published_algorithm(kind: str) -> None:
    c = case(kind)
    theirs = published_dps(c, 0.3, 5, torch.Generator().manual_seed(2))
    ours = run(DPS(LADDER, zeta=0.3), c.posterior, 5, seed=2)
    assert (ours - theirs).abs().max() < 1e-8
    assert (run(DPS(LADDER, zeta=0.31), c.posterior, 5, seed=2) - theirs).abs().max() > 1e-3


def test_dps_without_guidance_is_the_reverse_diffusion() -> None:
    c = case("mask")
    start = Law(torch.zeros(D).double(), SCALES[0] ** 2 * EYE)
    law = start
    for s, r in steps():
        gain, shift = c.denoiser(s)
        kept = (r / s) ** 2
        law = law.through(gain + kept * (EYE - gain), (1 - kept) * shift, r**2 * (1 - kept) * EYE)
    assert distance(run(DPS(LADDER, zeta=1e-12), c.posterior), law) < 4.5
    assert distance(run(DPS(LADDER, zeta=1e-2), c.posterior), law) > 4.5


def test_dps_pulls_at_every_likelihood_and_not_where_the_fit_is_perfect() -> None:
    c = case("mask")
    prior, data = c.posterior.terms["mixture"], c.posterior.terms["gaussian"]  # type: ignore[attr-defined]
    last = annealers.Constant(0.5, 1)
    x0 = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def pulled(posterior: Potential) -> Tensor:
        sampler = DPS(last)
        state, _ = sampler.step(posterior, sampler.init(posterior, x0, torch.Generator()))
        return state.x - prior.denoise(x0, 0.5)

    one = pulled(c.posterior)
    assert one.norm() > 0.1
    assert (pulled(prior + data + data) - 2 * one).abs().max() < 1e-10
    assert (pulled(prior + 3.0 * data) - one).abs().max() < 1e-10
    zero = torch.zeros(SHAPE).double()
    flat = energies.Gaussian(zero, 1.0) + likelihoods.Gaussian(zero, None, 0.1)
    x1 = torch.cat([torch.zeros_like(x0[:1]), x0[1:]])
    state, _ = DPS(last).step(flat, DPS(last).init(flat, x1, torch.Generator()))
    assert state.x[0].abs().max() == 0
    assert torch.isfinite(state.x).all()


ALL: dict[str, Sampler] = {
    "DPS": DPS(LADDER, zeta=0.3),
    "DAPS": DAPS(LADDER, num_ode=3),
    "DAPS, Langevin": DAPS(LADDER, num_ode=3, num_langevin=2),
    "DiffPIR": DiffPIR(LADDER, zeta=0.4),
    "split Gibbs": SplitGibbs(LADDER, num_denoise=3, steps_per_level=2),
}
COSTS = {"DPS": (5, 5), "DAPS": (15, 0), "DAPS, Langevin": (15, 0), "DiffPIR": (5, 0), "split Gibbs": (30, 0)}


def two_modes() -> energies.GaussianMixture:
    g = torch.Generator().manual_seed(8)
    means = torch.randn(2, *SHAPE, dtype=torch.float64, generator=g)
    return energies.GaussianMixture(torch.tensor([0.4, 0.6]), means, variances=torch.tensor([0.05, 0.2]).double())


def mixed() -> Potential:
    data = case("mask").posterior.terms["gaussian"]  # type: ignore[attr-defined]
    return two_modes() + data


@pytest.mark.parametrize("name", ALL)
def test_chains_do_not_depend_on_their_neighbours_or_their_past(name: str) -> None:
    sampler, posterior = ALL[name], mixed()

    def draws(chains: range, num: int) -> list[Tensor]:
        generators = chain_generators(5, chains)
        x0 = sampler.start(posterior, (len(chains), *SHAPE), torch.float64, generators)
        state = sampler.init(posterior, x0, generators)
        found = []
        for _ in range(num):
            for _ in range(sampler.steps_per_draw):
                state, _ = sampler.step(posterior, state)
            found.append(state.x)
        return found

    many, few = draws(range(4), 2), draws(range(1, 3), 2)
    for a, b in zip(many, few, strict=True):
        assert (a[1:3] - b).abs().max() < 1e-9
    assert (many[0] - many[1]).abs().max() > 1e-2
    # The second draw is a fresh start with the generators as they are then: the first one's end plays no part.
    generators = chain_generators(5, range(4))
    state = sampler.init(posterior, sampler.start(posterior, (4, *SHAPE), torch.float64, generators), generators)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
    state = state._replace(x=state.x + 1000)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
    assert torch.equal(state.x, many[1])
    assert sampler.independent_draws


@pytest.mark.parametrize("name", ALL)
def test_costs_are_what_they_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"denoise": 0, "pull": 0}
    prior = two_modes()
    plain, both = prior.denoise, prior.denoise_with_vjp

    def denoise(x, sigma=None):  # type: ignore[no-untyped-def]
        asked["denoise"] += 1
        return plain(x, sigma)

    def denoise_with_vjp(x, sigma=None):  # type: ignore[no-untyped-def]
        asked["denoise"] += 1
        clean, pull = both(x, sigma)

        def counted(v: Tensor) -> Tensor:
            asked["pull"] += 1
            return pull(v)

        return clean, counted

    monkeypatch.setattr(prior, "denoise", denoise)
    monkeypatch.setattr(prior, "denoise_with_vjp", denoise_with_vjp)
    posterior = prior + case("mask").posterior.terms["gaussian"]  # type: ignore[attr-defined]
    sampler = ALL[name]
    g = torch.Generator().manual_seed(0)
    state = sampler.init(posterior, sampler.start(posterior, (3, *SHAPE), torch.float64, g), g)
    said = [0, 0]
    for _ in range(sampler.steps_per_draw):
        state, info = sampler.step(posterior, state)
        said = [said[0] + info.n_grad, said[1] + info.n_vjp]
    assert (asked["denoise"], asked["pull"]) == tuple(said) == COSTS[name]
    assert info.sigma == SCALES[-1]


class Denoised(ScoreOnly):
    """The denoiser of a Gaussian as a network would give it: no value, a graph."""

    def __init__(self, c: Case) -> None:
        super().__init__()
        self.case = c

    @property
    def event_shape(self) -> tuple[int, ...]:
        return SHAPE

    @property
    def scales(self) -> tuple[float, float]:
        return 0.001, 100.0

    def denoise(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        gain, shift = self.case.denoiser(float(self.sigma_of(x, sigma)))
        return (x.flatten(1) @ gain.T + shift).reshape(x.shape)


@pytest.mark.parametrize("name", ALL)
def test_a_denoiser_will_do_for_a_prior(name: str) -> None:
    c = case("blur")
    score = Denoised(c) + c.posterior.terms["gaussian"]  # type: ignore[attr-defined]
    assert (run(ALL[name], score, 6) - run(ALL[name], c.posterior, 6)).abs().max() < 1e-8


@pytest.mark.parametrize("name", ["DAPS", "DAPS, Langevin", "DiffPIR", "split Gibbs"])
def test_complex_images_have_two_independent_parts(name: str) -> None:
    """A complex problem with real operator is two real ones: each part has the real one's law."""
    mask = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]]).double()
    y = torch.complex(torch.full(SHAPE, 0.4).double() * mask, torch.full(SHAPE, -0.7).double() * mask)

    def posterior(data: Tensor) -> Potential:
        mean = torch.zeros(SHAPE, dtype=data.dtype)
        return energies.Gaussian(mean, 0.5) + likelihoods.Gaussian(data, likelihoods.Mask(mask), 0.3)

    g = torch.Generator().manual_seed(0)
    sampler, n = ALL[name], 8000
    state = sampler.init(
        posterior(y), sampler.start(posterior(y), (n, *SHAPE), torch.complex128, g), torch.Generator().manual_seed(4)
    )
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior(y), state)
    real, imaginary = (run(sampler, posterior(part), n, seed) for seed, part in ((1, y.real), (2, y.imag)))
    # Two sample sets of the same size: sqrt(2) standard errors, relative ones of sqrt(1 / 2 n) for the stds.
    for ours, theirs in ((state.x.real, real), (state.x.imag, imaginary)):
        mean, std = ours.flatten(1).mean(0), ours.flatten(1).std(0)
        assert (mean - theirs.mean(0)).abs().max() < 4.5 * float(std.max()) * math.sqrt(2 / n)
        assert (std / theirs.std(0) - 1).abs().max() < 4.5 * math.sqrt(1 / n)


def test_dps_on_complex_images_is_dps_on_their_parts() -> None:
    """One step to r = 0, which has no noise: complex images against images with two channels."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 3, 4, dtype=torch.float64, generator=g)
    y = torch.randn(2, 3, 4, dtype=torch.float64, generator=g)
    mask = (torch.rand(3, 4, generator=g) < 0.6).double()
    sampler = DPS(annealers.Constant(0.7, 1))

    def moved(x0: Tensor, data: Tensor) -> Tensor:
        prior = energies.Gaussian(torch.zeros(data.shape, dtype=data.dtype), 0.5)
        posterior = prior + likelihoods.Gaussian(data, likelihoods.Mask(mask), 0.3)
        return sampler.step(posterior, sampler.init(posterior, x0, torch.Generator()))[0].x

    ours = moved(torch.complex(x[:, :1], x[:, 1:]), torch.complex(y[:1], y[1:]))
    theirs = moved(x, y)
    assert (torch.cat([ours.real, ours.imag], 1) - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("name", ALL)
def test_sample_runs_them(name: str) -> None:
    ensemble = inference.sample(mixed(), ALL[name], num_chains=3, num_draws=2, seed=1, progress=False)
    x = ensemble.samples()
    assert x.shape == (3, 2, *SHAPE)
    assert torch.isfinite(x).all()
    assert len({round(float(v), 6) for v in x[..., 0, 0, 0].flatten()}) == 6
    again = inference.sample(mixed(), ALL[name], num_chains=2, num_draws=2, seed=1, progress=False)
    assert (again.samples() - x[:2]).abs().max() < 1e-9


def test_the_scales_of_a_denoising() -> None:
    assert scales_below(2.0, 0.01, 1) == [2.0]
    assert scales_below(0.01, 0.01, 5) == [0.01]
    assert scales_below(0.005, 0.01, 5) == [0.005]
    assert scales_below(2.0, 0.01, 2) == [2.0, 0.01]
    assert scales_below(2.0, 0.01, 6) == pytest.approx(karras(2.0, 0.01, 6)[:-1])


@pytest.mark.parametrize("kind", [DPS, DAPS, DiffPIR, SplitGibbs])
def test_posteriors_without_the_parts_are_refused(kind: type[Sampler]) -> None:
    prior = two_modes()
    data = case("mask").posterior.terms["gaussian"]  # type: ignore[attr-defined]
    sampler = kind(LADDER)  # type: ignore[call-arg]
    x0 = torch.zeros(2, *SHAPE, dtype=torch.float64)

    def refused(posterior: Potential, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            sampler.init(posterior, x0, torch.Generator())

    one = f"{kind.__name__}: expected a posterior with exactly one multi-scale prior, of weight 1, got"
    refused(0.5 * prior + data, f"{one} 0.5 \\* GaussianMixture")
    refused(prior + two_modes() + data, f"{one} GaussianMixture.* and GaussianMixture")
    refused(energies.TotalVariation() + data, f"{one} none")
    refused(prior, "a prior alone")
    refused(prior + data + 0.1 * energies.TotalVariation(), f"{kind.__name__}: tv ")
    assert sampler.init(1.0 * prior + data, x0, torch.Generator()).step == 0
    with pytest.raises(ValueError, match="x has shape"):
        sampler.init(prior + data, x0[..., :2], torch.Generator())


def test_daps_by_langevin_takes_any_likelihood() -> None:
    posterior = mixed() + 0.1 * energies.TotalVariation()
    x = run(ALL["DAPS, Langevin"], posterior, 4)
    assert torch.isfinite(x).all()
    assert not torch.equal(x, run(ALL["DAPS, Langevin"], mixed(), 4))


@pytest.mark.parametrize("kind", [DPS, DAPS, DiffPIR, SplitGibbs])
def test_annealers_are_checked(kind: type[Sampler]) -> None:
    make: Callable[..., Sampler] = kind
    with pytest.raises(TypeError, match=f"{kind.__name__}: annealer is a tuple, expected one of"):
        make((1.0, 0.1))
    with pytest.raises(ValueError, match=r"temperature 0\.5 and step size 1, expected 1 and 1"):
        make(LADDER.with_temperature(0.5))
    with pytest.raises(ValueError, match=r"temperature 1 and step size 0\.5, expected 1 and 1"):
        make(LADDER.with_step_size(0.5))
    with pytest.raises(ValueError, match="no levels"):
        make(annealers.Ladder([]))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        make(LADDER, tolerance=0.0)
    if kind is SplitGibbs:
        assert make(LADDER.with_steps(3)).steps_per_draw == 15
    else:
        assert make(LADDER.with_steps(1)).steps_per_draw == 5
        with pytest.raises(ValueError, match="has 3 steps, expected one a level"):
            make(LADDER.with_steps(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPS(LADDER, zeta=0.0), "DPS: zeta must be positive, got 0"),
        (lambda: DAPS(LADDER, num_ode=0), "DAPS: num_ode must be at least 1, got 0"),
        (lambda: DAPS(LADDER, num_langevin=-1), "DAPS: num_langevin must be at least 0, got -1"),
        (lambda: DAPS(LADDER, step_size=-1.0), "DAPS: step_size must be positive, got -1"),
        (lambda: DAPS(LADDER, step_decay=0.0), "DAPS: step_decay must be positive, got 0"),
        (lambda: DAPS(LADDER, sigma_min=0.0), "DAPS: sigma_min must be positive, got 0"),
        (lambda: DiffPIR(LADDER, lam=0.0), "DiffPIR: lam must be positive, got 0"),
        (lambda: DiffPIR(LADDER, zeta=1.5), "DiffPIR: zeta must lie between 0 and 1, got 1.5"),
        (lambda: SplitGibbs(LADDER, num_denoise=0), "SplitGibbs: num_denoise must be at least 1, got 0"),
        (lambda: SplitGibbs(LADDER, steps_per_level=0), "SplitGibbs: steps_per_level must be at least 1, got 0"),
        (lambda: SplitGibbs(LADDER, sigma_min=-0.1), "SplitGibbs: sigma_min must be positive, got -0.1"),
    ],
)
def test_numbers_are_checked(make: Callable[[], Sampler], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
