"""Twisted SMC: exact on Gaussian priors, weighed right on mixtures whose posterior is known in closed form."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from benchmark_scripts import load
from ensembles import stops_after
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, likelihoods
from potentia._random import chain_generators
from potentia.inference import Calibrated, DiagnosticWarning, Langevin, State, TwistedSMC, _twisted
from potentia.inference._moments import Conditioned, DenoiserCovariance
from potentia.inference._resampling import conditional_effective_sample_size, effective_sample_size
from potentia.inference._twisted import EFFECTIVE, EVIDENCE, _power, _Weights

DOUBLE = torch.float64
SHAPE = (1, 4, 5)
PIXELS = math.prod(SHAPE)
FEW = annealers.Geometric(10.0, 0.05, 4)


def walk(
    sampler: TwistedSMC, posterior: Any, num: int, seed: int, shape: Sequence[int] = SHAPE, dtype: torch.dtype = DOUBLE
) -> list[State]:
    """The states of one draw, the first one before any step."""
    g = torch.Generator().manual_seed(seed)
    state = sampler.init(posterior, sampler.start(posterior, (num, *shape), dtype, g), g)
    states = [state]
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
        states.append(state)
    return states


# A single Gaussian: everything is exact.


class GaussianProblem(NamedTuple):
    """A Gaussian prior of rank 3 plus isotropic, blurred or masked measurements, and the posterior in closed form."""

    posterior: Any
    mean: Tensor
    covariance: Tensor
    log_evidence: float


def gaussian_problem(kind: str, scale: float = 1.0) -> GaussianProblem:
    g = torch.Generator().manual_seed(1)
    factors = scale * torch.randn(1, PIXELS, 3, generator=g, dtype=DOUBLE) * torch.tensor([1.0, 0.7, 0.4])
    mean = scale * torch.randn(1, *SHAPE, generator=g, dtype=DOUBLE)
    variances = torch.full((1,), (0.1 * scale) ** 2, dtype=DOUBLE)
    prior = energies.GaussianMixture(torch.ones(1), mean, factors=factors, variances=variances)
    mask = (torch.rand(SHAPE[1:], generator=g) < 0.5).double()
    operator = likelihoods.Mask(mask) if kind == "mask" else likelihoods.GaussianBlur(0.8, SHAPE[1:]).double()
    eta = 0.2 * scale
    y = operator.measure(prior.sample(g, 1)[0], eta, g)
    likelihood = likelihoods.Gaussian(y, operator, eta)
    eye = torch.eye(PIXELS, dtype=DOUBLE)
    prior_covariance = factors[0] @ factors[0].T + variances * eye
    precision = likelihood.structure.apply(eye.reshape(PIXELS, *SHAPE)).reshape(PIXELS, PIXELS)
    covariance = torch.linalg.inv(torch.linalg.inv(prior_covariance) + precision)
    m = mean.flatten()
    slope = -likelihood.grad(mean)[0].flatten()
    log = -float(likelihood(mean)[0]) + 0.5 * float(slope @ covariance @ slope)
    log -= 0.5 * float(torch.linalg.slogdet(eye + prior_covariance @ precision)[1])
    return GaussianProblem(prior + likelihood, m + covariance @ slope, covariance, log)


EXACT = TwistedSMC(FEW, rank=5, first_rounds=6, num_runs=2)


@pytest.mark.parametrize("kind", ["mask", "blur"])
@pytest.mark.parametrize("largest", [10.0, 1.0])
def test_of_a_gaussian_prior_all_weights_are_one_and_the_evidence_is_exact(kind: str, largest: float) -> None:
    problem = gaussian_problem(kind)
    sampler = TwistedSMC(annealers.Geometric(largest, 0.05, 4), rank=5, first_rounds=6, num_runs=2)
    states = walk(sampler, problem.posterior, 16, 0)
    for state in states[1:-1]:
        assert float((state.memory["log_weight"] - problem.log_evidence).abs().max()) < 1e-6
        assert not bool(state.memory["log_owed"].any())
    memory = states[-1].memory
    assert set(memory) == {EVIDENCE, EFFECTIVE}
    torch.testing.assert_close(
        memory[EVIDENCE], torch.full((2,), problem.log_evidence, dtype=DOUBLE), rtol=0.0, atol=1e-6
    )
    assert float(memory[EFFECTIVE]) == pytest.approx(1.0, abs=1e-6)


def spread_of_weights(problem: GaussianProblem) -> float:
    """How far the log weights are from the evidence, at the most over particles and scales."""
    states = walk(EXACT, problem.posterior, 16, 0)[1:-1]
    return max(float((s.memory["log_weight"] - problem.log_evidence).abs().max()) for s in states)


def test_planted_faults_unbalance_the_weights_of_a_gaussian(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = gaussian_problem("mask")
    sharpened, expected = DenoiserCovariance.sharpened, TwistedSMC._expected_first
    with monkeypatch.context() as patch:  # half the precision that x' has
        patch.setattr(DenoiserCovariance, "sharpened", lambda self, p: sharpened(self, 0.5 * p if p > 0 else p))
        assert spread_of_weights(problem) > 0.1
    with monkeypatch.context() as patch:  # the start's own weight forgotten
        patch.setattr(TwistedSMC, "_expected_first", lambda self, *a: 0 * expected(self, *a))
        assert spread_of_weights(problem) > 0.1
    with monkeypatch.context() as patch:
        leave_out_determinant(patch)
        assert spread_of_weights(problem) > 0.1
    assert spread_of_weights(problem) < 1e-6


def leave_out_determinant(patch: pytest.MonkeyPatch) -> None:
    made = Conditioned.__init__

    def without(self: Conditioned, guess: Any, form: Any, logdet: Any) -> None:
        made(self, guess, form, logdet)
        c = guess.covariance
        logs = (c.variances / c.rest[:, None]).log().sum(1) + logdet(1 / c.rest)
        logs = logs + guess.mean[0].numel() * c.rest.log()
        logs = logs + 2 * torch.diagonal(self._root, dim1=-2, dim2=-1).log().sum(-1)
        self.log_evidence = self.log_evidence + 0.5 * logs

    patch.setattr(Conditioned, "__init__", without)


def whitened(x: Tensor, problem: GaussianProblem) -> tuple[float, float]:
    """Largest deviations of mean and covariance from the posterior's, in units of their Monte-Carlo errors."""
    root = torch.linalg.cholesky(problem.covariance)
    z = torch.linalg.solve_triangular(root, (x.flatten(1) - problem.mean).T, upper=False).T
    eye = torch.eye(PIXELS, dtype=DOUBLE)
    second = (z.T @ z / len(z) - eye) * math.sqrt(len(z)) / (1 + eye).sqrt()
    return float(z.mean(0).abs().max()) * math.sqrt(len(z)), float(second.abs().max())


@pytest.mark.parametrize("scale", [1.0, 0.01, 20.0])
def test_of_a_gaussian_prior_draws_are_exact_however_few_the_scales(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of std 0.01 to 20, by scales from 10 to 0.05: equal weights and independent draws, all the same."""
    problem = gaussian_problem("blur", scale)
    x = walk(EXACT, problem.posterior, 2000, 3)[-1].x
    mean, second = whitened(x, problem)
    # The largest of 20 and of 210 normal deviates are beyond 4.1 and 4.6 once in a thousand.
    assert mean < 4.1
    assert second < 4.6
    if scale == 1.0:
        made = TwistedSMC._move
        wrong = lambda x, now, *a: (lambda new: (new[0] + 0.05 * x, new[1]))(made(x, now, *a))  # noqa: E731
        monkeypatch.setattr(TwistedSMC, "_move", staticmethod(wrong))
        assert max(whitened(walk(EXACT, problem.posterior, 2000, 3)[-1].x, problem)) > 8


def test_a_start_of_ones_own_is_biased_by_the_largest_scale() -> None:
    """Plain noise of the largest scale s is a start for a prior whose variances t are t (1 - t^2 / (t + s^2)^2)."""
    shape = (1, 1, 2)
    prior = energies.Gaussian(torch.full(shape, 0.5, dtype=DOUBLE), 1.0)
    posterior = prior + likelihoods.Gaussian(torch.zeros(shape, dtype=DOUBLE), None, 1e-3)
    sampler = TwistedSMC(annealers.Geometric(2.0, 0.5, 2), num_runs=1)
    narrow = 1 - (1 / 5) ** 2
    offset = 0.5 * 4 / 5
    # The evidence of y = 0 under the prior that such particles stand for, and what the first guess's bears.
    biased = 2 * (-0.5 * math.log(narrow) - 0.5 * offset**2 / narrow)
    right = 2 * (-0.5 * 0.5**2)
    g = torch.Generator().manual_seed(0)
    plain = 2.0 * torch.randn(20_000, *shape, generator=g, dtype=DOUBLE)
    clean, _ = prior.denoise_with_vjp(plain, 2.0)
    # N(0; D, C): the twist of the first scale for exact measurements.
    variance = 4 / 5
    twist = -0.5 * (clean.square() / variance + math.log(variance)).sum((1, 2, 3))
    seen = float(twist.logsumexp(0)) - math.log(len(twist))
    assert seen == pytest.approx(biased, abs=0.02)
    assert abs(seen - right) > 0.05
    state = walk(sampler, posterior, 8, 0, shape)[-1]
    constant = 2 * math.log(1e-3)
    assert float(state.memory[EVIDENCE][0]) - constant == pytest.approx(right, abs=1e-3)


# Mixtures


@pytest.fixture(scope="module")
def bed() -> ModuleType:
    return load("_closed_form")


def log_evidence(problem: Any) -> float:
    """Log of the integral of prior times exp(-L), by the marginals of the measurements."""
    prior, operator, eta = problem.prior, problem.likelihood.operator, problem.noise_std
    d = problem.truth.numel()
    a = operator(torch.eye(d, dtype=DOUBLE).reshape(d, *problem.shape)).flatten(1).T
    y = problem.likelihood.y.flatten()
    c = prior.covariances
    logs = []
    for k in range(prior.num_components):
        full = (c.basis[k] * c.eigenvalues[k]) @ c.basis[k].T + c.variances[k] * torch.eye(d, dtype=DOUBLE)
        marginal = a @ full @ a.T / eta**2 + torch.eye(len(y), dtype=DOUBLE)
        off = (y - a @ prior.means[k].flatten()) / eta
        misfit = off @ torch.linalg.solve(marginal, off)
        logs.append(prior.weights[k].log() - 0.5 * misfit - 0.5 * torch.linalg.slogdet(marginal)[1])
    return float(torch.stack(logs).logsumexp(0))


class Runs(NamedTuple):
    """Independent runs: log evidence over the truth, mode weights by pooling and their errors, and all draws."""

    log_ratios: Tensor
    weights: Tensor
    errors: Tensor
    x: Tensor

    def evidence_off(self) -> float:
        """Standard errors between the mean estimate of the evidence and the truth, on the scale of logarithms."""
        num = len(self.log_ratios)
        mean = float(self.log_ratios.logsumexp(0)) - math.log(num)
        return abs(mean) / (float(self.log_ratios.std()) / math.sqrt(num))

    def weights_off(self, truth: Tensor) -> float:
        """Standard errors between the weight of the mode that is worst off and the truth's."""
        return float(((self.weights - truth).abs() / (self.errors + 2e-3)).max())


MIXTURE = TwistedSMC(annealers.Geometric(10.0, 0.05, 14), rank=12, num_runs=1)


def runs(problem: Any, num: int = 6, particles: int = 100) -> Runs:
    truth = log_evidence(problem)
    logs, shares, images = [], [], []
    for seed in range(num):
        state = walk(MIXTURE, problem.potential, particles, seed, problem.shape)[-1]
        logs.append(float(state.memory[EVIDENCE][0]) - truth)
        shares.append(problem.posterior.responsibilities(state.x.flatten(1)).mean(0))
        images.append(state.x)
    ratios, share = torch.tensor(logs, dtype=DOUBLE), torch.stack(shares)
    worth = (ratios - ratios.max()).exp()
    pooled = (worth[:, None] * share).sum(0) / worth.sum()
    scatter = worth[:, None] * (share - pooled) / worth.mean()
    return Runs(ratios, pooled, scatter.std(0) / math.sqrt(num), torch.cat(images))


# Student's t of 5 degrees is beyond 6.9 once in a thousand; there are five modes.
BEYOND = 8.0


@pytest.mark.parametrize("name", ["random80-8/0", "box-8/0"])
def test_mode_weights_spread_and_evidence_of_mixtures(bed: ModuleType, name: str) -> None:
    problem = bed.problem(name)
    found = runs(problem)
    truth = problem.posterior.weights
    assert found.evidence_off() < 6.9
    assert float(found.log_ratios.std()) < 0.5
    assert found.weights_off(truth) < BEYOND
    assert 0.5 * float((found.weights - truth).abs().sum()) < 0.1
    statistics = bed.statistics(problem, found.x)
    # 600 draws, some of them with common ancestors, in up to 64 correlated pixels.
    for region in problem.regions():
        assert statistics[f"within, {region}"] == pytest.approx(1.0, abs=0.06)
        assert statistics[f"cov, {region}"] == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("fault", ["weights", "resampling", "determinant", "precision"])
def test_planted_faults_are_seen_on_mixtures(bed: ModuleType, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    problem = bed.problem("random80-8/0")
    sharpened = DenoiserCovariance.sharpened
    if fault == "weights":
        monkeypatch.setattr(_Weights, "times", lambda self, *a: self)
    elif fault == "resampling":
        monkeypatch.setattr(_twisted, "systematic", lambda log_weights, g: torch.arange(len(log_weights)))
    elif fault == "determinant":
        leave_out_determinant(monkeypatch)
    else:
        monkeypatch.setattr(DenoiserCovariance, "sharpened", lambda self, p: sharpened(self, 0.5 * p if p > 0 else p))
    found = runs(problem)
    if fault in ("weights", "resampling"):
        truth = problem.posterior.weights
        assert 0.5 * float((found.weights - truth).abs().sum()) > 0.25
        assert found.weights_off(truth) > 10
    else:
        assert found.evidence_off() > 8


def test_the_memory_of_a_draw_tells_of_weights_that_are_worth_little(bed: ModuleType) -> None:
    """One direction does not see what the images' pixels have in common: weights collapse, again and again."""
    problem = bed.problem("box-8/0")
    poor = TwistedSMC(MIXTURE.annealer, rank=1, num_runs=1)
    good, bad = (walk(s, problem.potential, 64, 0, problem.shape) for s in (MIXTURE, poor))
    assert float(good[-1].memory[EFFECTIVE]) > 0.3
    assert float(bad[-1].memory[EFFECTIVE]) < 0.1
    # What is left since the last resampling looks well in spite of it.
    last = bad[-2].memory
    assert float(effective_sample_size(last["log_weight"])[0]) / 64 > 0.4
    assert len(last["family"].unique()) < 12


def test_sample_warns_of_weights_that_are_worth_little(bed: ModuleType) -> None:
    problem = bed.problem("box-8/0")
    poor = TwistedSMC(MIXTURE.annealer, rank=1, num_runs=1)
    with pytest.warns(DiagnosticWarning, match=r"weights were worth \d\.\d% of the particles, expected 10% or more"):
        pt.sample(problem.potential, poor, num_chains=64, progress=False)
    pt.sample(problem.potential, MIXTURE, num_chains=64, progress=False)


# Weights


def test_what_is_applied_and_what_is_owed_are_all_there_is() -> None:
    g = torch.Generator().manual_seed(0)
    weights = _Weights.of({}, 60, 3, torch.device("cpu"))
    total = torch.zeros(3, 20, dtype=DOUBLE)
    for size in (0.1, 30.0, 0.5, 3.0):
        factors = size * torch.randn(60, generator=g, dtype=DOUBLE)
        due = weights.log_owed + factors.reshape(3, 20)
        before = weights.log_weight
        weights = weights.times(factors, 0.2)
        total = total + factors.reshape(3, 20)
        torch.testing.assert_close(weights.log_weight + weights.log_owed, total)
        worth = conditional_effective_sample_size(before, weights.log_weight - before)
        assert bool((worth > 4.0 * (1 - 1e-6)).all())
        whole = conditional_effective_sample_size(before, due) >= 4.0
        assert torch.equal(~weights.log_owed.any(1), whole)
        # Not less than could be applied.
        torch.testing.assert_close(worth[~whole], torch.full_like(worth[~whole], 4.0), rtol=1e-4, atol=0.0)
    assert bool(whole.any() or weights.log_owed.any())
    assert torch.equal(_power(total, torch.zeros_like(total), 20.0), torch.ones(3, dtype=DOUBLE))


def test_resampling_keeps_the_evidence_and_what_particles_owe() -> None:
    g = torch.Generator().manual_seed(0)
    log_weight = torch.stack([torch.zeros(40), 3 * torch.randn(40, generator=g), 0.1 * torch.randn(40, generator=g)])
    owed = torch.randn(3, 40, generator=g, dtype=DOUBLE)
    family = torch.arange(120).reshape(3, 40)
    weights = _Weights(log_weight.double(), owed, torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), family)
    index, new = weights.resampled(0.5, chain_generators(0, range(120)))
    assert index is not None
    runs_of = index.reshape(3, 40) // 40
    assert torch.equal(runs_of, torch.arange(3)[:, None].expand(3, 40))
    kept = torch.tensor([0, 2])
    assert torch.equal(index.reshape(3, 40)[kept], torch.arange(120).reshape(3, 40)[kept])
    assert torch.equal(new.log_weight[kept], weights.log_weight[kept])
    assert not bool(new.log_weight[1].any())
    torch.testing.assert_close(new.log_sum[1], 2.0 + weights.log_weight[1].logsumexp(0) - math.log(40))
    torch.testing.assert_close(new.log_owed.reshape(-1), owed.reshape(-1)[index])
    # Copies come as often as weights say, to less than one.
    copies = torch.bincount(index.reshape(3, 40)[1] - 40, minlength=40)
    assert float((copies - 40 * weights.log_weight[1].softmax(0)).abs().max()) < 1
    assert torch.equal(new.family.reshape(-1), family.reshape(-1)[index])
    even = _Weights.of({}, 10, 2, torch.device("cpu"))
    assert even.resampled(0.5, g) == (None, even)


def test_runs_are_pooled_by_their_evidence() -> None:
    weights = _Weights(
        torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=DOUBLE),
        torch.zeros(2, 2, dtype=DOUBLE),
        torch.tensor([math.log(2.0), 0.0], dtype=DOUBLE),
        torch.arange(4).reshape(2, 2),
    )
    torch.testing.assert_close(weights.pooled().softmax(0), torch.tensor([0.2, 0.6, 0.1, 0.1], dtype=DOUBLE))
    assert float(weights.worth()) == pytest.approx(1 / (0.04 + 0.36 + 0.02) / 4)
    owing = weights._replace(log_owed=torch.tensor([[0.0, -math.log(3.0)], [0.0, 0.0]], dtype=DOUBLE))
    assert float(owing.worth()) == pytest.approx(36 / (2 * 4 + 2 * 1) / 4)
    # Two of one family count as one.
    kin = weights._replace(family=torch.tensor([[0, 0], [2, 3]]))
    assert float(kin.worth()) == pytest.approx(1 / (0.64 + 0.02) / 4)


# Through sample


def mixture_posterior(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = DOUBLE) -> pt.Sum:
    g = torch.Generator().manual_seed(3)
    means = torch.randn(2, *shape, generator=g, dtype=dtype)
    prior = energies.GaussianMixture(torch.tensor([0.6, 0.4]), means, variances=torch.tensor([0.04, 0.02]))
    mask = torch.zeros(shape[1:], dtype=dtype)
    mask[0, 0] = 1
    return prior + likelihoods.Gaussian(means.mean(0) * mask, likelihoods.Mask(mask), 0.5)


SMALL = TwistedSMC(annealers.Geometric(8.0, 0.1, 4), rank=2)


def draw(sampler: Any = SMALL, **options: Any) -> pt.Ensemble:
    return pt.sample(mixture_posterior(), sampler, **{"num_chains": 12, "seed": 5, "progress": False, **options})


def test_reproducible_for_a_seed() -> None:
    a, b, c = draw(num_draws=2).samples(), draw(num_draws=2).samples(), draw(num_draws=2, seed=6).samples()
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a[:, 0], a[:, 1])
    assert SMALL.independent_draws


@pytest.mark.parametrize(("chains", "num_runs", "expected"), [(12, 4, 4), (10, 4, 2), (7, 4, 1), (1, 4, 1), (3, 8, 3)])
def test_runs_divide_the_chains(chains: int, num_runs: int, expected: int) -> None:
    sampler = TwistedSMC(SMALL.annealer, rank=2, num_runs=num_runs)
    state = walk(sampler, mixture_posterior(), chains, 0)[-1]
    assert state.memory[EVIDENCE].shape == (expected,)
    assert bool(torch.isfinite(state.x).all())
    assert bool(torch.isfinite(state.memory[EVIDENCE]).all())
    assert draw(sampler, num_chains=chains).samples().shape == (chains, 1, *SHAPE)


@pytest.mark.parametrize(
    "sampler",
    [SMALL, SMALL >> Calibrated(10, anneal=False), SMALL >> Langevin(0.5, sigma=0.1, steps_per_draw=2)],
    ids=["alone", "calibrated", "langevin"],
)
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: Any) -> None:
    from potentia.io import _schema

    monkeypatch.setattr(_schema, "_CHUNK_BYTES", 1)  # one draw a block, so that there is something to interrupt
    options: dict[str, Any] = {"sampler": sampler, "num_draws": 4, "num_warmup": 0}
    whole = draw(**options, store=tmp_path / "whole.zarr")
    with stops_after(sampler, 2 * sampler.steps_per_draw + 2), pytest.raises(KeyboardInterrupt):
        draw(**options, store=tmp_path / "broken.zarr")
    assert pt.open_ensemble(tmp_path / "broken.zarr").num_draws == 2
    resumed = draw(**options, store=tmp_path / "broken.zarr", resume=True)
    assert torch.equal(resumed.samples(), whole.samples())
    stats = [e.tree["sample_stats"].to_dataset() for e in (resumed, whole)]
    assert stats[0].equals(stats[1])


def test_later_stages_take_copies_apart() -> None:
    alone = draw(SMALL >> Langevin(0.5, sigma=0.1, steps_per_draw=1), num_chains=16).samples()[:, 0]
    assert len(alone.flatten(1).unique(dim=0)) == 16


def test_single_precision() -> None:
    problem = gaussian_problem("blur")
    state = walk(EXACT, problem.posterior.float(), 2000, 2, dtype=torch.float32)[-1]
    assert state.x.dtype == torch.float32
    mean, second = whitened(state.x.double(), problem)
    assert mean < 4.1
    assert second < 4.6
    assert float((state.memory[EVIDENCE] - problem.log_evidence).abs().max()) < 2e-2
    assert float(state.memory[EFFECTIVE]) > 0.999
    single = draw(dtype="float32").samples()
    assert single.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (3, 1, 1), (2, 3, 1)])
def test_images_of_fewer_pixels_than_the_rank(shape: tuple[int, ...]) -> None:
    prior = energies.Gaussian(torch.zeros(shape, dtype=DOUBLE), 1.0)
    posterior = prior + likelihoods.Gaussian(torch.ones(shape, dtype=DOUBLE), None, 0.5)
    n = 2000
    x = walk(TwistedSMC(FEW), posterior, n, 1, shape)[-1].x.flatten(1)
    # mean 0.8, variance 0.2
    assert float((x.mean(0) - 0.8).abs().max()) < 4 * math.sqrt(0.2 / n)
    assert float((x.var(0) / 0.2 - 1).abs().max()) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("scales", [(0.02, 10.0), (0.05, 0.05), (0.01, 0.03), (0.3, 2.0)])
def test_scales_are_cut_to_the_priors(scales: tuple[float, float]) -> None:
    """A Gaussian prior known as a denoiser alone: right, however few or small its scales are."""

    def denoiser(x: Tensor, s: Tensor) -> Tensor:
        return x / (1 + s.square())[:, None, None, None]

    shape = (1, 1, 2)
    prior = energies.ScoreModel(denoiser, scales=scales, shape=shape)
    posterior = prior + likelihoods.Gaussian(torch.ones(shape, dtype=DOUBLE), None, 0.5)
    sampler = TwistedSMC()
    ladder = sampler._scales(posterior)
    assert scales[0] * (1 - 1e-6) <= min(ladder) <= max(ladder) <= scales[1] * (1 + 1e-6)
    assert ladder == sorted(ladder, reverse=True)
    n = 1000
    x = walk(sampler, posterior, n, 0, shape)[-1].x.flatten(1)
    assert float((x.mean(0) - 0.8).abs().max()) < 4 * math.sqrt(0.2 / n)
    assert float((x.var(0) / 0.2 - 1).abs().max()) < 4 * math.sqrt(2 / n)


def test_components_without_width_and_matrix_free_likelihoods() -> None:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(2, *SHAPE, generator=g, dtype=DOUBLE)
    points = energies.GaussianMixture(torch.tensor([0.7, 0.3]), means, variances=torch.zeros(2))
    operator = likelihoods.Matrix(torch.randn(1, PIXELS, generator=g, dtype=DOUBLE), SHAPE)
    # Measured half-way between: the two explain it alike.
    posterior = points + likelihoods.Gaussian(operator(means.mean(0)), operator, 1.0)
    sampler = TwistedSMC(annealers.Geometric(10.0, 0.05, 12), rank=2, num_runs=1)
    shares = [float(points.responsibilities(walk(sampler, posterior, 150, k)[-1].x, 0.05)[:, 0].mean()) for k in (0, 1)]
    # 150 particles are worth 100 or more: 0.046 each.
    assert sum(shares) / 2 == pytest.approx(0.7, abs=0.12)


# Refusals


def test_other_posteriors_are_refused() -> None:
    prior = mixture_posterior().prior
    data = mixture_posterior().likelihood
    flat = energies.Gaussian(torch.zeros(SHAPE, dtype=DOUBLE), 1.0)
    complex_prior = energies.Gaussian(torch.zeros(SHAPE, dtype=torch.complex128), 1.0)
    complex_data = likelihoods.Gaussian(torch.ones(SHAPE, dtype=torch.complex128), None, 0.5)
    for posterior, message in [
        (prior, "the posterior has no likelihood, expected prior"),
        (prior + energies.TotalVariation() + data, "has no quadratic form, expected a linear-Gaussian likelihood"),
        (prior + flat + data, "expected exactly one multi-scale prior, of weight one"),
        (0.5 * prior + data, "expected exactly one multi-scale prior, of weight one"),
        (complex_prior + complex_data, "expected real images, got complex ones"),
    ]:
        with pytest.raises(TypeError, match=f"TwistedSMC: .*{message}"):
            pt.sample(posterior, SMALL, num_chains=4, progress=False)
        x0 = torch.zeros(2, *SHAPE, dtype=torch.complex128 if posterior.is_complex else DOUBLE)
        generator = torch.Generator()
        with pytest.raises(TypeError, match=f"TwistedSMC: .*{message}"):
            SMALL.init(posterior, x0, generator)
    narrow = energies.ScoreModel(lambda x, s: 0.5 * x, scales=(0.01, 5.0), shape=SHAPE)
    with pytest.raises(ValueError, match=r"sigma is 8, expected 0\.01 to 5"):
        pt.sample(narrow + data, SMALL, num_chains=4, progress=False)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(TypeError, match="TwistedSMC: annealer is a list"):
        TwistedSMC([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the annealer has one scale"):
        TwistedSMC(annealers.Constant(1.0, 3))
    for name in ("rank", "num_runs"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            TwistedSMC(**{name: 0})
    with pytest.raises(ValueError, match="first_rounds must be at least 0"):
        TwistedSMC(first_rounds=-1)
    for name in ("resample_below", "least_effective"):
        with pytest.raises(ValueError, match=f"{name} must lie between 0 and 1, got 1.5"):
            TwistedSMC(**{name: 1.5})
