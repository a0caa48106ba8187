"""Calibration checks pass exact samplers of conjugate Gaussian models, and find planted faults."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from potentia import energies, likelihoods
from potentia._algebra import Sum
from potentia._potential import Likelihood, Potential, Sigma
from potentia._tensor import squared_norm
from potentia.inference import Langevin
from potentia.inference import _uniformity as uniformity
from potentia.inference._calibration import SBCResult, simulation_based_calibration
from potentia.inference._geweke import GewekeResult, geweke_test
from potentia.inference._rank_histogram import rank_histogram
from potentia.inference._summary import DiagnosticWarning
from potentia.inference._tarp import TARPResult, tarp
from potentia.io import EnsembleWriter

SHAPE = (1, 4, 4)
NOISE = 0.5
PRIOR = energies.Gaussian(torch.zeros(SHAPE, dtype=torch.float64), 1.0)


class Noisy(Likelihood):
    """Gaussian noise on images, with data for each entry of a batch: y (*batch, C, H, W)."""

    default_name = "noisy"

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.register_buffer("y", y)

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.5 * squared_norm(x - self.y) / NOISE**2

    def simulate(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def residual(self, x: Tensor) -> Tensor:
        return x - self.y


def prior_sample(generator: torch.Generator) -> Tensor:
    return PRIOR.sample(generator, 1)[0]


def make_posterior(x: Tensor, generator: torch.Generator) -> Potential:
    return PRIOR + Noisy(x + NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype))


def data_of(posterior: Potential) -> Tensor:
    assert isinstance(posterior, Sum)
    assert isinstance(posterior.likelihood, Noisy)
    return posterior.likelihood.y


def law(posterior: Potential, weight: float = 1.0) -> tuple[Tensor, float]:
    """Mean and std of the posterior whose likelihood has this weight."""
    precision = 1 + weight / NOISE**2
    return data_of(posterior) * (weight / NOISE**2) / precision, 1 / math.sqrt(precision)


def exact(num: int = 99, wide: float = 1.0, shift: float = 0.0, weight: float = 1.0) -> Callable[..., Tensor]:
    """Independent draws of one posterior, right or with a planted fault: (draws, C, H, W)."""

    def draw(posterior: Potential, generator: torch.Generator) -> Tensor:
        mean, std = law(posterior, weight)
        z = torch.randn(num, *mean.shape, generator=generator, dtype=torch.float64)
        return mean + shift + wide * std * z

    return draw


def batch_of(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for a batch of posteriors: (replications, draws, C, H, W)."""
    return lambda posterior, generator: draw(posterior, generator).transpose(0, 1)


FAULTS = {
    "too wide": exact(wide=1.2),
    "too narrow": exact(wide=1 / 1.2),
    "likelihood times 0.9": exact(weight=0.9),
    "biased": exact(shift=0.05),
}


def sbc(draw: Any, **options: Any) -> SBCResult:
    settings = {"num_replications": 500, "seed": 3, "batched": True} | options
    sampler = batch_of(draw) if settings["batched"] and callable(draw) else draw
    return simulation_based_calibration(prior_sample, make_posterior, sampler, **settings)


class TestSimulationBasedCalibration:
    def test_an_exact_sampler_passes(self) -> None:
        result = sbc(exact())
        assert result.p_value > 0.05
        assert result.ranks.shape == (500, 8)
        assert result.num_draws == 99
        assert (result.ranks >= 0).all()
        assert (result.ranks <= 99).all()
        # Ranks of 500 replications average to 0.5 within five standard errors.
        assert (result.uniform.mean(dim=0) - 0.5).abs().max() < 5 / math.sqrt(12 * 500)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_planted_faults_are_found(self, fault: str) -> None:
        assert sbc(FAULTS[fault]).p_value < 1e-4

    def test_a_sampler_that_ignores_the_data_is_found_by_the_statistics_that_do_not(self) -> None:
        def from_prior(posterior: Potential, generator: torch.Generator) -> Tensor:
            return torch.randn(99, *data_of(posterior).shape, generator=generator, dtype=torch.float64)

        result = sbc(from_prior)
        blind = [n for n in result.names if n not in ("potential", "likelihood")]
        assert min(result.chi_square_p[n] for n in blind) > 0.001
        assert result.chi_square_p["potential"] < 1e-10
        assert result.chi_square_p["likelihood"] < 1e-10

    def test_shape_of_the_fault_is_told(self) -> None:
        """Too narrow: truths at both ends. Too wide: in the middle. Biased upwards: below the draws."""

        def spread(result: SBCResult) -> float:
            return 12 * float((result.uniform[:, 0] - 0.5).square().mean())

        assert spread(sbc(FAULTS["too narrow"])) > 1.1
        assert spread(sbc(FAULTS["too wide"])) < 0.9
        mean = sbc(FAULTS["biased"])
        assert float(mean.uniform[:, mean.names.index("mean")].mean()) < 0.4

    def test_one_replication_after_the_other(self) -> None:
        good = sbc(exact(), batched=False, num_replications=200)
        assert good.p_value > 0.05
        assert sbc(FAULTS["too wide"], batched=False, num_replications=100).p_value < 1e-4
        again = sbc(exact(), batched=False, num_replications=200)
        assert torch.equal(good.ranks, again.ranks)
        assert not torch.equal(good.ranks, sbc(exact(), batched=False, num_replications=200, seed=4).ranks)

    def test_samplers_of_ours(self) -> None:
        """Leimkuhler-Matthews Langevin is exact on Gaussians; Euler's is too wide, by 2 / (2 - eps lam)."""

        def posterior(x: Tensor, generator: torch.Generator) -> Potential:
            return PRIOR + likelihoods.Gaussian(
                x + NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype), noise_std=NOISE
            )

        def run(rule: str) -> SBCResult:
            # A step of 0.7 leaves 0.3 of what the chain was: four steps leave a hundredth.
            sampler = Langevin(0.7, rule=rule, steps_per_draw=4)
            return simulation_based_calibration(
                prior_sample, posterior, sampler, num_replications=100, num_draws=2, num_chains=15, num_warmup=2, seed=5
            )

        good = run("leimkuhler-matthews")
        assert good.num_draws == 30
        assert good.p_value > 0.05
        assert run("euler").p_value < 1e-4

    def test_draws_thinned_too_little_are_told(self) -> None:
        def chain(posterior: Potential, generator: torch.Generator) -> Tensor:
            x = exact(160)(posterior, generator)
            mean, _ = law(posterior)
            for k in range(1, len(x)):
                x[k] = mean + 0.7 * (x[k - 1] - mean) + math.sqrt(1 - 0.49) * (x[k] - mean)
            return x

        with pytest.warns(DiagnosticWarning, match=r"neighbouring draws have autocorrelation 0\.[67]"):
            poor = sbc(chain, num_replications=300)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            good = sbc(chain, num_replications=300, thin=10)
        assert good.num_draws == 16
        assert max(good.autocorrelation.values()) < 0.1 < min(poor.autocorrelation.values())

    def test_own_statistics_and_ties(self) -> None:
        """A statistic of three values: ranks among ties are put in order at random, and stay uniform."""
        statistics = {"sign of the sum": lambda x, posterior: x.sum(dim=(1, 2, 3)).div(3).round().clamp(-1, 1)}
        result = sbc(exact(), statistics=statistics)
        assert result.names == ("sign of the sum",)
        assert result.chi_square_p["sign of the sum"] > 0.01

    def test_refusals(self) -> None:
        with pytest.raises(TypeError, match="sampler is a int, expected a sampler or a function"):
            sbc(3)
        with pytest.raises(ValueError, match=r"the sampler gave \(1, 4, 4\), expected draws"):
            sbc(lambda p, g: torch.zeros(SHAPE), batched=False)
        with pytest.raises(ValueError, match="one number an image"):
            sbc(exact(), statistics={"whole": lambda x, posterior: x})
        with pytest.raises(ValueError, match="statistic 'bad' is NaN"):
            sbc(exact(), statistics={"bad": lambda x, posterior: x.mean(dim=(1, 2, 3)) * math.nan})
        with pytest.raises(ValueError, match="batched runs have one chain a replication"):
            sbc(exact(), num_chains=2)
        with pytest.raises(ValueError, match="prior_sample gave"):
            simulation_based_calibration(lambda g: torch.zeros(3), make_posterior, exact())
        with pytest.raises(TypeError, match="make_posterior gave a Tensor"):
            simulation_based_calibration(prior_sample, lambda x, g: x, exact())  # type: ignore[arg-type, return-value]

    def test_table(self) -> None:
        told = repr(sbc(exact(9), num_replications=50))
        assert "50 replications, ranks among 9 draws" in told
        assert "potential" in told


Kernel = Callable[[Potential, Tensor, torch.Generator], Tensor]


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def redraw(wide: float = 1.0, shift: float = 0.0, weight: float = 1.0) -> Kernel:
    """Keep half of what the image was, and draw the rest from the posterior, right or wrong."""

    def move(posterior: Potential, x: Tensor, generator: torch.Generator) -> Tensor:
        mean, std = law(posterior, weight)
        return mean + shift + 0.5 * (x - mean) + math.sqrt(0.75) * wide * std * noise(x, generator)

    return move


def langevin(adjusted: bool, step: float = 0.06) -> Kernel:
    """One step of (unadjusted or Metropolis-adjusted) Langevin dynamics, acceptance about 0.6."""

    def move(posterior: Potential, x: Tensor, generator: torch.Generator) -> Tensor:
        grad = posterior.grad(x)
        y = x - step * grad + math.sqrt(2 * step) * noise(x, generator)
        if not adjusted:
            return y
        back = posterior.grad(y)
        forth_and_back = squared_norm(y - x + step * grad) - squared_norm(x - y + step * back)
        log_ratio = posterior(x) - posterior(y) + forth_and_back / (4 * step)
        accept = torch.rand(len(x), generator=generator, dtype=x.dtype).log() < log_ratio
        return torch.where(accept[:, None, None, None], y, x)

    return move


class TestGeweke:
    def run(self, kernel: Any, **options: Any) -> GewekeResult:
        settings = {"num_steps": 160, "num_chains": 150, "batched": True, "seed": 1} | options
        return geweke_test(prior_sample, make_posterior, kernel, **settings)

    @pytest.mark.parametrize("kernel", [redraw(), langevin(adjusted=True)], ids=["half redrawn", "MALA"])
    def test_invariant_kernels_pass(self, kernel: Kernel) -> None:
        result = self.run(kernel)
        assert result.p_value > 0.05
        assert float(result.z.abs().max()) < 4

    @pytest.mark.parametrize(
        "kernel",
        [redraw(wide=1.03), redraw(weight=0.9), redraw(shift=0.01), langevin(adjusted=False)],
        ids=["too wide by 3 %", "likelihood times 0.9", "biased by 0.01", "unadjusted"],
    )
    def test_planted_faults_are_found(self, kernel: Kernel) -> None:
        assert self.run(kernel).p_value < 1e-6

    def test_z_scores_are_standard_normal_over_seeds(self) -> None:
        """Neither too many alarms nor errors blown up: 25 runs of 16 correlated tests, std within 0.8 to 1.2."""
        runs = [self.run(redraw(), num_steps=40, num_chains=30, seed=s).z for s in range(25)]
        z = torch.stack(runs)
        assert 0.8 < float(z.std()) < 1.2
        assert float((z.abs() > 2.576).double().mean()) < 0.03

    def test_one_chain_after_the_other_and_samplers_of_ours(self) -> None:
        """Euler's Langevin, started anew for every move, is not invariant."""

        def posterior(x: Tensor, generator: torch.Generator) -> Potential:
            y = x + NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            return PRIOR + likelihoods.Gaussian(y, noise_std=NOISE)

        def run(kernel: Any) -> GewekeResult:
            return geweke_test(prior_sample, posterior, kernel, num_steps=150, num_chains=2, num_independent=300)

        def honest(p: Potential, x: Tensor, generator: torch.Generator) -> Tensor:
            form = p.quadratic()
            assert form is not None
            return form.mode() + form.draw(generator, x.shape)

        assert run(honest).p_value > 0.05
        assert run(Langevin(0.9, rule="euler", steps_per_draw=3)).p_value < 1e-4

    def test_refusals_and_table(self) -> None:
        with pytest.raises(TypeError, match="kernel is a int"):
            self.run(3)
        with pytest.raises(ValueError, match=r"the moved image has shape \(4, 4\)"):
            self.run(lambda p, x, g: x[0, 0])
        with pytest.raises(ValueError, match="num_steps must be at least 20"):
            self.run(redraw(), num_steps=5)
        told = repr(self.run(redraw(), num_steps=20))
        assert "spread of potential" in told


def simulated(num: int, draws: int, wide: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (num, draws, C, H, W) of posteriors, their truths and data."""
    g = torch.Generator().manual_seed(7)
    truths = PRIOR.sample(g, num)
    posterior = make_posterior(truths, g)
    return exact(draws, wide, shift)(posterior, g).transpose(0, 1), truths, data_of(posterior)


class TestTARP:
    def test_exact_samples_pass(self) -> None:
        samples, truths, y = simulated(400, 80)
        assert tarp(samples, truths).p_value > 0.05
        assert tarp(samples, truths, references=y).p_value > 0.05

    @pytest.mark.parametrize(("wide", "sign"), [(1.2, 1), (1 / 1.2, -1)])
    def test_wrong_spread_is_found_and_told(self, wide: float, sign: int) -> None:
        samples, truths, _ = simulated(400, 80, wide=wide)
        result = tarp(samples, truths)
        assert result.p_value < 1e-4
        assert sign * result.area > 0.03

    def test_a_bias_is_found(self) -> None:
        samples, truths, y = simulated(400, 80, shift=0.1)
        assert tarp(samples, truths, references=y + 1).p_value < 1e-3

    def test_samples_of_the_prior_pass_unless_references_see_the_data(self) -> None:
        _, truths, y = simulated(400, 80)
        samples = PRIOR.sample(torch.Generator().manual_seed(8), 400 * 80).reshape(400, 80, *SHAPE)
        assert tarp(samples, truths).p_value > 0.01
        assert tarp(samples, truths, references=y).p_value < 1e-6

    def test_curve_error_area_and_p_value_are_of_the_same_numbers(self) -> None:
        u = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 1.3
        result = TARPResult(u, 50)
        np.testing.assert_allclose(result.coverage, [(u <= a).double().mean() for a in result.levels])
        found = stats.kstest(u.numpy(), "uniform")
        assert result.coverage_error == pytest.approx(found.statistic)
        assert result.p_value == pytest.approx(found.pvalue, rel=0.1)
        fine = torch.linspace(0.5, 1, 20001, dtype=torch.float64)
        curve = torch.searchsorted(u.sort().values, fine, right=True).double() / 300 - fine
        assert result.area == pytest.approx(float(torch.trapezoid(curve, fine)), abs=1e-4)

    def test_references_are_somebody_elses(self) -> None:
        """A truth as its own reference would have no sample nearer."""
        samples, truths, _ = simulated(2, 9)
        ranks = [
            (r.uniform * 10).floor() for r in (tarp(samples, truths), tarp(samples, truths, references=truths.flip(0)))
        ]
        assert torch.equal(*ranks)
        assert float(tarp(samples, truths, references=truths).uniform.max()) <= 0.1

    def test_complex_and_refusals(self) -> None:
        g = torch.Generator().manual_seed(0)
        samples = torch.randn(50, 20, 1, 2, 2, dtype=torch.complex64, generator=g)
        truths = torch.randn(50, 1, 2, 2, dtype=torch.complex64, generator=g)
        both = tarp(torch.view_as_real(samples), torch.view_as_real(truths))
        torch.testing.assert_close(tarp(samples, truths).uniform, both.uniform)
        with pytest.raises(ValueError, match="truths has shape"):
            tarp(samples, truths[:3])
        with pytest.raises(ValueError, match="two replications or more"):
            tarp(samples[:1], truths[:1])
        with pytest.raises(TypeError, match="expected a tensor or a sequence of ensembles"):
            tarp(3, truths)


class TestRankHistogram:
    def test_exact_samples_are_flat(self) -> None:
        samples, truths, _ = simulated(200, 39)
        result = rank_histogram(samples, truths)
        assert int(result.counts.sum()) == 200 * 16
        assert result.p_value > 0.05
        assert float(((result.counts - result.expected).square() / result.expected).sum()) < 60  # 19 degrees of freedom

    @pytest.mark.parametrize(
        ("wide", "shift"), [(1.2, 0.0), (1 / 1.2, 0.0), (1.0, 0.05)], ids=["wide", "narrow", "biased"]
    )
    def test_faults_are_found_and_told(self, wide: float, shift: float) -> None:
        samples, truths, _ = simulated(200, 39, wide, shift)
        result = rank_histogram(samples, truths)
        assert result.p_value < 1e-4
        if shift:
            assert result.mean_rank < 0.49
        else:
            assert (result.spread - 1) * (1 - wide) > 0.02

    def test_spread_of_flat_ranks_is_one_whatever_the_number_of_samples(self) -> None:
        for draws in (3, 10):
            samples, truths, _ = simulated(2000, draws)
            result = rank_histogram(samples, truths)
            assert result.spread == pytest.approx(1, abs=5 * result.spread_error)

    def test_an_ensemble_with_its_truth(self) -> None:
        g = torch.Generator().manual_seed(0)
        images = torch.randn(5, 4, 1, 8, 8, generator=g)
        writer = EnsembleWriter.create(None, num_chains=5, num_draws=4, event_shape=(1, 8, 8))
        for k in range(4):
            writer.append(images[:, k], {})
            if writer.ready_to_commit:
                writer.commit()
        ensemble, truth = writer.close(), torch.randn(1, 8, 8, generator=g)
        mask = torch.zeros(8, 8)
        mask[:2] = 1
        alone, masked = rank_histogram(ensemble, truth), rank_histogram(ensemble, truth, mask=mask)
        assert math.isnan(alone.p_value)
        assert (alone.num_draws, int(alone.counts.sum()), int(masked.counts.sum())) == (20, 64, 16)
        ranks = (images.flatten(0, 1) < truth).sum(dim=0)[:, :2].flatten()
        assert torch.equal(masked.counts, uniformity.histogram(ranks, 20, 20))
        assert torch.equal(tarp([ensemble] * 2, torch.stack([truth] * 2)).uniform < 1, torch.tensor([True] * 2))
        with pytest.raises(ValueError, match="mask leaves no pixel"):
            rank_histogram(ensemble, truth, mask=torch.zeros(8, 8))
        with pytest.raises(ValueError, match="truth has 1 NaN"):
            rank_histogram(ensemble, torch.where(torch.arange(64).reshape(1, 8, 8) == 3, math.nan, truth))

    def test_complex_parts_count_one_each(self) -> None:
        g = torch.Generator().manual_seed(0)
        samples = torch.randn(6, 9, 1, 2, 2, dtype=torch.complex64, generator=g)
        truth = torch.randn(6, 1, 2, 2, dtype=torch.complex64, generator=g)
        mask = torch.tensor([[True, False], [True, True]])
        result = rank_histogram(samples, truth, mask=mask)
        assert int(result.counts.sum()) == 6 * 3 * 2


class TestUniformity:
    @pytest.mark.parametrize("num_draws", [9, 30, 99])
    def test_chi_square_p_values_are_uniform_with_bins_that_do_not_divide(self, num_draws: int) -> None:
        g = torch.Generator().manual_seed(0)
        bins = uniformity.num_bins(200, num_draws)
        assert float(uniformity.expected_shares(bins, num_draws).sum()) == pytest.approx(1)
        p = [
            uniformity.chi_square_p(torch.randint(0, num_draws + 1, (200,), generator=g), bins, num_draws)
            for _ in range(400)
        ]
        assert stats.kstest(p, "uniform").pvalue > 1e-4
        # With equal expectations where they are not, ranks would look uneven.
        if num_draws == 30:
            counts = uniformity.histogram(torch.arange(31).repeat(200), bins, 30)
            assert stats.chisquare(counts.numpy()).pvalue < 1e-10

    @pytest.mark.parametrize("n", [30, 300])
    def test_band_and_p_value_of_the_ecdf(self, n: int) -> None:
        """95 of 100 uniform samples stay within the band, and 5 have a p-value below 0.05."""
        g = torch.Generator().manual_seed(1)
        levels, low, high = uniformity.ecdf_band(n)
        u = torch.rand(1000, n, generator=g, dtype=torch.float64)
        counts = (u[:, :, None] <= levels).sum(dim=1)
        within = (counts >= (low * n).round()) & (counts <= (high * n).round())
        inside = within.all(dim=1).double().mean()
        # The level is itself from 1,000 simulations, and steps of the counts are coarse for few numbers.
        assert 0.92 < float(inside) < 0.985
        p = torch.tensor([uniformity.ecdf_p(row) for row in u[:300]])
        assert float((p <= 0.05).double().mean()) < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 300)
        assert uniformity.ecdf_p(u[0] ** 1.5) < 0.05 if n == 300 else True
        assert uniformity.ecdf_p(u[0] * 0.1) < 1e-6

    def test_bonferroni(self) -> None:
        assert uniformity.bonferroni([0.01, 0.5, math.nan]) == pytest.approx(0.02)
        assert uniformity.bonferroni([0.9, 0.8]) == 1


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    samples, truths, _ = simulated(60, 19)
    results: dict[str, Any] = {
        "sbc": sbc(exact(19), num_replications=60),
        "one": sbc(exact(19), num_replications=60, statistics={"one": lambda x, posterior: x[:, 0, 0, 0]}),
        "geweke": TestGeweke().run(redraw(), num_steps=20, num_chains=10),
        "tarp": tarp(samples, truths),
        "ranks": rank_histogram(samples, truths),
    }
    for name, result in results.items():
        figure = result.plot(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert any(axis.get_visible() for axis in figure.axes)
        assert repr(result)
