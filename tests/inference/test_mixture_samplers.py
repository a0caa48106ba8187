"""The calibrated recipe, twisted particles and moment matching on mixtures whose posterior is written out."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from mixture_posteriors import Problem, inpainting
from torch import Tensor

import potentia as pt
from potentia import Sum, annealers, energies, likelihoods
from potentia._random import chain_generators
from potentia.inference import ALPS, MMPS, Calibrated, Langevin, Sampler, TwistedSMC, _twisted, without_diagnostics
from potentia.inference._mmps import matched_mean

D = torch.float64
CHAINS = 400


def drawn(posterior: pt.Potential, sampler: Sampler, chains: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """The first draw of every chain: (chains, C, H, W)."""
    generators = chain_generators(seed, range(chains))
    state = sampler.init(posterior, sampler.start(posterior, (chains, *shape), D, generators), generators)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
    return state.x


def gaussian(noise_std: float = 0.2) -> tuple[Sum, Tensor]:
    """A Gaussian image of std 0.5 with texture 0.05, half of it measured; the posterior's variance a pixel."""
    g = torch.Generator().manual_seed(0)
    shape = (1, 6, 6)
    factors = torch.linalg.qr(torch.randn(36, 5, generator=g, dtype=D))[0] * 1.5
    mean = torch.randn(1, *shape, generator=g, dtype=D)
    variances = torch.full((1,), 0.05**2, dtype=D)
    prior = energies.GaussianMixture(torch.ones(1, dtype=D), mean, factors=factors[None], variances=variances)
    mask = torch.ones(6, 6, dtype=D)
    mask[:, 3:] = 0
    operator = likelihoods.Mask(mask)
    y = operator.measure(prior.sample(g, 1)[0], noise_std, g)
    covariance = factors @ factors.T + 0.05**2 * torch.eye(36, dtype=D)
    precision = torch.linalg.inv(covariance) + torch.diag(mask.reshape(-1)) / noise_std**2
    return prior + likelihoods.Gaussian(y, operator, noise_std), torch.linalg.inv(precision).diagonal()


def spread(x: Tensor, truth: Tensor) -> float:
    """Root mean square std over the truth."""
    return float((x.flatten(1).var(0) / truth).mean().sqrt())


@pytest.mark.parametrize("noise_std", [0.2, 0.02])
def test_the_calibrated_spread_is_right(noise_std: float) -> None:
    posterior, variance = gaussian(noise_std)
    x = drawn(posterior, ALPS.calibrated(), CHAINS, (1, 6, 6))
    # The ratio has a relative error below 1 / sqrt(2 * chains) = 0.035 / sqrt(independent directions), here 5 or more.
    assert abs(spread(x, variance) - 1) < 0.05
    # What it is better than: an end above the texture, and the published rule.
    coarse = drawn(posterior, ALPS(annealers.Geometric(10.0, 0.1, 20), 5), CHAINS, (1, 6, 6))
    assert abs(spread(coarse, variance) - 1) > 0.1
    published = drawn(posterior, ALPS(annealers.Karras(10.0, 0.1, 20), 5, rule="published"), CHAINS, (1, 6, 6))
    assert abs(spread(published, variance) - 1) > 0.1


def test_calibrated_finds_the_texture_and_counts_its_budget() -> None:
    posterior, _ = gaussian()
    for budget in (40, 100):
        with without_diagnostics():
            ensemble = pt.sample(posterior, ALPS.calibrated(budget), num_chains=3, num_draws=2, progress=False)
        stats = ensemble.tree["sample_stats"]
        assert int(stats["n_grad"].max()) == 2 * budget
        # A tenth of the finest texture, of std 0.05.
        assert abs(float(stats["sigma"].mean()) / 0.005 - 1) < 0.1
        assert 0.6 < float(stats["acceptance_rate"].mean()) < 0.98
    state = Calibrated().init(posterior, torch.zeros(2, 1, 6, 6, dtype=D), chain_generators(0, range(2)))
    assert abs(math.sqrt(float(state.memory["adapted_texture"])) / 0.05 - 1) < 0.05


def test_a_calibrated_chain_does_not_depend_on_the_others() -> None:
    posterior, _ = gaussian()
    few = drawn(posterior, Calibrated(30), 2, (1, 6, 6))
    many = drawn(posterior, Calibrated(30), 5, (1, 6, 6))
    torch.testing.assert_close(many[:2], few, rtol=1e-9, atol=1e-9)


def test_calibrated_takes_scores_textures_beside_the_prior_and_complex_images() -> None:
    posterior, variance = gaussian()
    mixture, data = posterior.terms["mixture"], posterior.terms["gaussian"]
    score = energies.ScoreModel(mixture.denoise, (0.001, 20.0), shape=(1, 6, 6))
    x = drawn(score + data, Calibrated(), CHAINS, (1, 6, 6))
    assert abs(spread(x, variance) - 1) < 0.05
    assert torch.isfinite(drawn(posterior + 0.5 * energies.TotalVariation(), Calibrated(30), 4, (1, 6, 6))).all()
    shape = (1, 8, 8)
    field = energies.GaussianField.power_law(shape, std=0.5, mean=torch.zeros(1, 1, 1, dtype=torch.complex64))
    operator = likelihoods.Sense(likelihoods.birdcage_maps(2, (8, 8)), likelihoods.cartesian_mask((8, 8), 2.0))
    y = operator.measure(field.sample(torch.Generator().manual_seed(0), 1)[0], 0.1, torch.Generator().manual_seed(1))
    with without_diagnostics():
        found = pt.sample(field + likelihoods.Gaussian(y, operator, 0.1), num_chains=3, progress=False)
    assert found.is_complex
    assert torch.isfinite(torch.view_as_real(found.samples())).all()


def tv(problem: Problem, x: Tensor) -> float:
    """Total variation between the modes' weights and the truth."""
    return float(0.5 * (problem.weights_of(x).mean(0) - problem.truth.weights).abs().sum())


def unevenly(seed: int) -> Problem:
    """Two modes of weights 0.7 and 0.3, or 0.28 and 0.72, after the measurement."""
    return inpainting(seed, sigma=0.0, widths=(0.4, 0.3))


@pytest.mark.parametrize("seed", [4, 8])
def test_twisted_particles_have_the_weights_of_the_modes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = unevenly(seed)
    sampler = TwistedSMC(annealers.Geometric(10.0, 0.05, 20))
    # A weight of 0.3 has a standard error of 0.026 if 300 of the 600 particles are effective.
    assert tv(problem, drawn(problem.posterior, sampler, 600, (1, 4, 4))) < 0.08
    times = _twisted._Weights.times
    for power in (0.0, 3.0):  # the faults: weights left out, and applied more than once
        monkeypatch.setattr(_twisted._Weights, "times", lambda self, f, least, p=power: times(self, p * f, 0.0))
        assert tv(problem, drawn(problem.posterior, sampler, 600, (1, 4, 4))) > 0.1


def test_weights_are_one_on_a_gaussian_prior() -> None:
    posterior, variance = gaussian()
    state_of = TwistedSMC(annealers.Geometric(50.0, 0.05, 6), num_runs=1)
    generators = chain_generators(0, range(200))
    state = state_of.init(posterior, state_of.start(posterior, (200, 1, 6, 6), D, generators), generators)
    for _ in range(6):
        state, info = state_of.step(posterior, state)
    assert float(state.memory["adapted_effective"]) > 0.9
    assert abs(spread(state.x, variance) - 1) < 0.08
    assert info.n_vjp == 17


def test_the_whole_recipe_for_modes_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = unevenly(4)
    sampler = ALPS.calibrated(20, modes=True)
    monkeypatch.setattr("potentia.io._schema._CHUNK_BYTES", 256)
    settings = dict(num_chains=8, num_draws=4, seed=3, progress=False)
    step, count = Calibrated.step, 0

    def stop(self, posterior, state):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count > 25:
            raise KeyboardInterrupt
        return step(self, posterior, state)

    with without_diagnostics():
        whole = pt.sample(problem.posterior, sampler, store=tmp_path / "whole.zarr", **settings).samples()
        monkeypatch.setattr(Calibrated, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            pt.sample(problem.posterior, sampler, store=tmp_path / "cut.zarr", **settings)
        monkeypatch.setattr(Calibrated, "step", step)
        cut = pt.sample(problem.posterior, sampler, store=tmp_path / "cut.zarr", resume=True, **settings).samples()
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


@pytest.mark.parametrize("sampler", [TwistedSMC(), MMPS(annealers.Geometric(10.0, 0.05, 10))])
def test_posteriors_without_a_denoiser_or_a_quadratic_form_are_refused(sampler: Sampler) -> None:
    posterior, _ = gaussian()
    mixture, data = posterior.terms["mixture"], posterior.terms["gaussian"]
    x = torch.zeros(2, 1, 6, 6, dtype=D)
    generators = chain_generators(0, range(2))
    for wrong, words in (
        (mixture, "no likelihood"),
        (posterior + energies.TotalVariation(), "tv has no quadratic form"),
        (mixture + posterior, "exactly one multi-scale prior"),
        (0.5 * mixture + data, "exactly one multi-scale prior"),
    ):
        with pytest.raises(TypeError, match=words):
            sampler.init(wrong, x, generators)


def test_matched_means_are_those_of_the_gaussian() -> None:
    posterior, _ = gaussian()
    prior, form = posterior.terms["mixture"], posterior.terms["gaussian"].quadratic()
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(2), dtype=D)
    clean, pull = prior.denoise_with_vjp(x, 0.5)
    units = torch.eye(36, dtype=D).reshape(36, 1, 1, 6, 6).expand(-1, 3, -1, -1, -1)
    covariance = 0.25 * torch.stack([pull(u) for u in units]).flatten(2).permute(1, 0, 2)
    precision = torch.diag(form.structure.precision.expand(1, 6, 6).reshape(-1))
    slope = (form.linear - form.structure.apply(clean)).flatten(1)
    want = clean.flatten(1) + torch.linalg.solve(torch.linalg.inv(covariance) + precision, slope[..., None])[..., 0]
    got, products = matched_mean(form, clean, pull, 0.5, 60, tolerance=1e-12)
    torch.testing.assert_close(got.flatten(1), want, rtol=1e-7, atol=1e-7)
    assert products <= 61
    # Negative curvature ends an image's iterations and leaves finite numbers.
    safe, _ = matched_mean(form, clean, lambda v: -v, 0.5, 20)
    torch.testing.assert_close(safe, clean)


def test_moment_matching_hands_on_to_langevin() -> None:
    posterior, variance = gaussian()
    fine = annealers.Geometric(10.0, 0.05, 40)
    sampler = MMPS(fine, steps_per_level=2, max_iterations=6) >> ALPS(annealers.Geometric(0.05, 0.01, 6), 8)
    assert sampler.steps_per_draw == 39 * 2 + 1 + 48
    alone = drawn(posterior, MMPS(fine, max_iterations=6) >> Langevin(sigma=0.01, steps_per_draw=30), 300, (1, 6, 6))
    # The start of Langevin decides what it does not reach in 30 steps: within a tenth.
    assert abs(spread(alone, variance) - 1) < 0.15


def test_sample_warns_where_chains_have_not_moved() -> None:
    posterior, _ = gaussian()
    with pytest.warns(pt.DiagnosticWarning):
        pt.sample(
            posterior,
            Langevin(1e-4, sigma=0.02, steps_per_draw=1),
            num_chains=4,
            num_draws=200,
            num_warmup=0,
            progress=False,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pt.sample(posterior, num_chains=8, num_draws=4, progress=False)
