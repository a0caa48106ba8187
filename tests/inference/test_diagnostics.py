"""R-hat, effective sample sizes and Monte-Carlo errors equal ArviZ's, pixel by pixel, and mean what they say."""

import math
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from potentia.inference import _diagnostics as diagnostics
from potentia.inference import _special as tails
from potentia.inference._diagnostics import ess, mcse, nested_rhat, rhat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ArviZ announces its next major version on import
    az = pytest.importorskip("arviz")
az.utils.Numba.disable_numba()  # where numba is there, its variance is less exact, and errors come as arrays of one

ESS_KINDS = ("bulk", "tail", "mean", "std", "median", 0.3)
MCSE_KINDS = ("mean", "std", "median", 0.3)


def autoregressive(rho: float, *shape: int, seed: int = 0) -> Tensor:
    """AR(1) chains (chains, draws, *event) with standard normal marginals."""
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for k in range(1, shape[1]):
        x[:, k] = rho * x[:, k - 1] + math.sqrt(1 - rho**2) * x[:, k]
    return x


@st.composite
def chains(draw: st.DrawFn) -> Tensor:
    """Chains of three pixels: autocorrelated or antithetic, with ties, skew, heavy tails, drifts and offsets."""
    rho = draw(st.sampled_from([0.0, 0.5, 0.95, -0.5, -0.9]))
    x = autoregressive(rho, draw(st.integers(1, 5)), draw(st.integers(4, 45)), 3, seed=draw(st.integers(0, 9999)))
    kind = draw(st.sampled_from(["plain", "rounded", "coarse", "skewed", "heavy", "drifting", "apart", "far away"]))
    ramp = torch.linspace(-2, 2, x.shape[1], dtype=torch.float64)[:, None]
    apart = torch.arange(x.shape[0], dtype=torch.float64)[:, None, None]
    return {
        "plain": lambda: x,
        "rounded": lambda: (x * 10).round() / 10,
        "coarse": lambda: x.round(),
        "skewed": lambda: x.exp(),
        "heavy": lambda: x**5,
        "drifting": lambda: x + ramp,
        "apart": lambda: x + apart,
        "far away": lambda: 1e6 + 1e-3 * x,
    }[kind]()


def theirs(function: Callable[..., Any], x: Tensor, **options: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array([function(x[:, :, k].numpy().copy(), **options) for k in range(x.shape[2])], dtype=np.float64)


def assert_equal(ours: Tensor, function: Callable[..., Any], x: Tensor, **options: Any) -> None:
    """Equal to 1e-6. Where a sum of autocorrelations is zero but for rounding, ArviZ's depends on the chains' order."""
    one, other = theirs(function, x, **options), theirs(function, x.flip(0), **options)
    same = [np.isclose(ours, v, rtol=1e-6, atol=1e-13, equal_nan=True) for v in (one, other)]
    # All half-chains at a stand: between variance over a rounding error.
    huge = (ours.numpy() > 1e6) & (one > 1e6)
    constant = (x.amax(dim=(0, 1)) == x.amin(dim=(0, 1))).numpy()
    assert (same[0] | same[1] | huge | constant).all(), (options, ours, one)


@given(x=chains())
@settings(max_examples=60)
def test_rhat_and_ess_equal_those_of_arviz(x: Tensor) -> None:
    if len(x) > 1:
        assert_equal(rhat(x), az.rhat, x, method="rank")
    for kind in ESS_KINDS:
        method = {"method": "quantile", "prob": kind} if isinstance(kind, float) else {"method": kind}
        method["method"] = {"std": "sd"}.get(str(method["method"]), method["method"])
        assert_equal(ess(x, kind), az.ess, x, **method)


@given(x=chains())
@settings(max_examples=40)
def test_monte_carlo_errors_equal_those_of_arviz(x: Tensor) -> None:
    for kind in MCSE_KINDS:
        method = {"method": "quantile", "prob": kind} if isinstance(kind, float) else {"method": kind}
        method["method"] = {"std": "sd"}.get(str(method["method"]), method["method"])
        assert_equal(mcse(x, kind), az.mcse, x, **method)


@pytest.mark.parametrize("rho", [0.0, 0.9, -0.7])
def test_long_chains_equal_those_of_arviz(rho: float) -> None:
    x = autoregressive(rho, 4, 1001, 2)
    assert_equal(rhat(x), az.rhat, x, method="rank")
    assert_equal(ess(x), az.ess, x, method="bulk")
    assert_equal(mcse(x, 0.9), az.mcse, x, method="quantile", prob=0.9)


def test_the_comparison_finds_a_planted_fault() -> None:
    """Bessel's correction forgotten in the between-chain variance, or the cap of antithetic chains."""
    x = autoregressive(0.5, 4, 40, 3)
    honest = diagnostics.split_rhat
    with mock.patch.object(diagnostics, "split_rhat", lambda z: honest(z) * (1 + 1e-5)), pytest.raises(AssertionError):
        assert_equal(rhat(x), az.rhat, x, method="rank")
    y = autoregressive(-0.9, 4, 40, 3)
    with mock.patch.object(diagnostics.math, "log10", return_value=1e9), pytest.raises(AssertionError):
        assert_equal(ess(y), az.ess, y, method="bulk")


class TestWhatTheyMean:
    def test_ess_of_an_autoregression(self) -> None:
        """S (1 - rho) / (1 + rho), to 3 % over 400 pixels."""
        for rho in (0.0, 0.6, -0.3):
            x = autoregressive(rho, 4, 800, 400)
            truth = 3200 * (1 - rho) / (1 + rho)
            assert float(ess(x, "mean").median()) == pytest.approx(truth, rel=0.03)

    @pytest.mark.parametrize(("kind", "estimate"), [
        ("mean", lambda x: x.mean(dim=(0, 1))),
        ("std", lambda x: x.std(dim=(0, 1))),
        (0.9, lambda x: x.flatten(0, 1).quantile(0.9, dim=0)),
    ])  # fmt: skip
    def test_errors_are_the_spread_of_estimates_over_runs(
        self, kind: Any, estimate: Callable[[Tensor], Tensor]
    ) -> None:
        """Pixels are runs: 3,000 of them give the spread of an estimate to 1.3 %."""
        x = autoregressive(0.5, 4, 200, 3000)
        spread = float(estimate(x).std())
        assert float(mcse(x, kind).square().mean().sqrt()) == pytest.approx(spread, rel=0.06)

    def test_rhat_sees_chains_apart_and_chains_of_other_spread(self) -> None:
        x = autoregressive(0.0, 4, 200, 1)
        assert float(rhat(x)) < 1.02
        apart, wide = x.clone(), x.clone()
        apart[0] += 1
        wide[0] *= 3
        assert float(rhat(apart)) > 1.05
        assert float(rhat(wide)) > 1.05
        # Without folding the second would go unseen.
        bulk = diagnostics.by_pixel(wide, lambda p: diagnostics.split_rhat(p.scores))
        assert float(bulk) < 1.02

    def test_splitting_sees_a_drift(self) -> None:
        x = autoregressive(0.0, 4, 200, 1) + torch.linspace(-1, 1, 200)[:, None]
        assert float(rhat(x)) > 1.1

    def test_ties_share_their_rank(self) -> None:
        """Order among equal draws carries nothing: a permutation of chains changes no digit."""
        x = autoregressive(0.3, 4, 30, 5).round()
        assert torch.allclose(rhat(x), rhat(x.flip(0)), rtol=1e-12)


class TestNested:
    @given(superchains=st.integers(2, 4), size=st.integers(1, 4), draws=st.integers(1, 5), seed=st.integers(0, 999))
    def test_it_is_the_definition(self, superchains: int, size: int, draws: int, seed: int) -> None:
        x = autoregressive(0.4, superchains * size, draws, 2, seed=seed)
        if size == draws == 1:
            with pytest.raises(ValueError, match="have no spread"):
                nested_rhat(x, superchains)
            return
        for pixel in range(2):
            y = x[..., pixel].numpy().reshape(superchains, size, draws)
            within = y.var(axis=2, ddof=1).mean(axis=1) if draws > 1 else np.zeros(superchains)
            among = y.mean(axis=2).var(axis=1, ddof=1) if size > 1 else np.zeros(superchains)
            between = y.mean(axis=(1, 2)).var(ddof=1)
            expected = math.sqrt(1 + between / (within + among).mean())
            assert float(nested_rhat(x, superchains)[pixel]) == pytest.approx(expected, rel=1e-12)

    def test_many_short_independent_chains_are_no_alarm_but_plain_rhat_is(self) -> None:
        x = autoregressive(0.0, 256, 8, 500)
        assert float(nested_rhat(x, 16).median()) < 1.01
        assert float(rhat(x).max()) > 1.01

    def test_superchains_that_remember_their_start_are_seen(self) -> None:
        x = autoregressive(0.0, 64, 4, 1)
        x += torch.randn(8, generator=torch.Generator().manual_seed(0)).repeat_interleave(8)[:, None, None]
        assert float(nested_rhat(x, 8)) > 1.2

    def test_refusals(self) -> None:
        x = autoregressive(0.0, 6, 3, 2)
        with pytest.raises(ValueError, match="num_superchains is 4, expected a divisor of the 6 chains"):
            nested_rhat(x, 4)
        with pytest.raises(ValueError, match="num_superchains must be at least 2, got 1"):
            nested_rhat(x, 1)


class TestEdges:
    def test_event_dimensions_chunks_and_dtypes_change_nothing(self) -> None:
        x = autoregressive(0.5, 3, 21, 2, 3, 4)
        flat = x.reshape(3, 21, 24)
        for of in (rhat, ess, lambda v: mcse(v, 0.2), lambda v: nested_rhat(v, 3)):
            whole = of(x)
            assert whole.shape == (2, 3, 4)
            assert whole.dtype == torch.float64
            assert torch.equal(whole.flatten(), of(flat))
            for chunk in (1, 63 * 5):
                with mock.patch.object(diagnostics, "_CHUNK", chunk):
                    assert torch.allclose(of(x), whole, rtol=1e-13)
            # torch's sort, for many threads and other devices, in place of NumPy's
            with mock.patch.object(diagnostics, "_FEW_THREADS", 0):
                assert torch.allclose(of(x), whole, rtol=1e-13)
            single = x.float()
            assert torch.equal(of(single), of(single.double()))
            kept = x.clone()
            of(x)
            assert torch.equal(x, kept)

    def test_no_more_than_a_chunk_is_looked_at_at_once(self) -> None:
        seen = []
        original = diagnostics.Pixels

        def spy(x: Tensor, *rest: Any) -> Any:
            seen.append(x.numel())
            return original(x, *rest)

        with mock.patch.object(diagnostics, "Pixels", spy), mock.patch.object(diagnostics, "_CHUNK", 4 * 50 * 7):
            rhat(autoregressive(0.0, 4, 50, 100))
        assert max(seen) == 4 * 50 * 7
        assert sum(seen) == 4 * 50 * 100

    def test_too_little_gives_nan(self) -> None:
        for of in (rhat, ess, lambda v: ess(v, "tail"), mcse, lambda v: mcse(v, 0.3)):
            assert torch.isnan(of(autoregressive(0.0, 4, 3, 2))).all()
        assert torch.isnan(rhat(autoregressive(0.0, 1, 30, 2))).all()
        assert torch.isfinite(ess(autoregressive(0.0, 1, 30, 2))).all()
        assert rhat(torch.zeros(3, 8, 0)).shape == (0,)

    def test_a_nan_spoils_its_own_pixel_alone(self) -> None:
        x = autoregressive(0.0, 4, 20, 3)
        clean = rhat(x)
        x[1, 7, 1] = math.nan
        for of in (rhat, ess, mcse, lambda v: mcse(v, 0.3), lambda v: nested_rhat(v, 2)):
            assert torch.isnan(of(x)).tolist() == [False, True, False]
        assert rhat(x)[0] == clean[0]

    def test_what_stands_still(self) -> None:
        x = autoregressive(0.0, 4, 20, 3)
        x[..., 0] = 0.1  # one value for all
        x[..., 1] = torch.arange(4)[:, None].double()  # each chain at its own
        assert torch.isnan(rhat(x))[0]
        assert torch.isinf(rhat(x))[1]
        assert float(ess(x)[0]) == 80
        assert float(ess(x)[1]) < 10
        assert float(mcse(x)[0]) == float(mcse(x, "std")[0]) == float(mcse(x, 0.3)[0]) == 0
        assert torch.isnan(nested_rhat(x, 2))[0]
        assert float(nested_rhat(x, 2)[1]) > 2

    @pytest.mark.parametrize("of", [rhat, ess, mcse, lambda v: nested_rhat(v, 2)])
    def test_complex_draws_are_refused_with_what_to_do(self, of: Callable[[Tensor], Tensor]) -> None:
        x = torch.randn(4, 10, 3, dtype=torch.complex64)
        with pytest.raises(TypeError, match=r"draws are complex .*view_as_real"):
            of(x)
        assert of(torch.view_as_real(x)).shape == (3, 2)

    def test_wrong_arguments(self) -> None:
        x = autoregressive(0.0, 4, 20, 1)
        with pytest.raises(ValueError, match=r"draws have shape \(5,\), expected \(chains, draws, \*event\)"):
            rhat(torch.zeros(5))
        for kind in ("bulky", 0.0, 1.0, True, None):
            with pytest.raises(ValueError, match=r"ess: kind is .* expected bulk, tail"):
                ess(x, kind)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=r"mcse: kind is .* expected mean, std"):
                mcse(x, kind)  # type: ignore[arg-type]

    def test_plain_tables_and_arrays(self) -> None:
        x = autoregressive(0.0, 4, 20)
        assert rhat(x).shape == ()
        assert float(rhat(x.numpy())) == float(rhat(x))  # type: ignore[arg-type]
        assert float(ess(torch.randint(0, 5, (4, 20)))) > 0


class TestTails:
    """The distribution functions against SciPy's, which the package itself does without."""

    @given(a=st.floats(0.1, 1e4), b=st.floats(0.1, 1e4), p=st.floats(1e-6, 1 - 1e-6))
    def test_beta(self, a: float, b: float, p: float) -> None:
        x = float(special.betaincinv(a, b, p))
        got = float(tails.beta_cdf(torch.tensor(x, dtype=torch.float64), a, b))
        assert got == pytest.approx(float(special.betainc(a, b, x)), rel=1e-8, abs=1e-12)

    def test_far_tails(self) -> None:
        f = torch.tensor([0.1, 1.0, 3.0, 10.0, math.inf], dtype=torch.float64)
        np.testing.assert_allclose(tails.f_tail(f, 15, 784), stats.f.sf(f, 15, 784), rtol=1e-7)
        k = torch.arange(-1, 31)
        p = torch.tensor(0.3, dtype=torch.float64)
        np.testing.assert_allclose(tails.binomial_cdf(k, 30, p), stats.binom.cdf(k, 30, 0.3), rtol=1e-10)
        chi = torch.tensor([0.5, 20.0, 90.0], dtype=torch.float64)
        np.testing.assert_allclose(tails.chi_square_tail(chi, 19), stats.chi2.sf(chi, 19), rtol=1e-9)
        np.testing.assert_allclose(tails.normal_tail(-chi[:2]), 2 * stats.norm.sf(chi[:2]), rtol=1e-9)
        assert torch.isnan(tails.f_tail(torch.tensor([math.nan]), 3, 5)).all()

    @pytest.mark.parametrize(("n", "tolerance"), [(10, 0.03), (100, 0.015), (1000, 0.005)])
    def test_kolmogorov(self, n: int, tolerance: float) -> None:
        for t in (0.3, 0.7, 1.0, 1.4, 2.0):
            d = t / math.sqrt(n)
            assert tails.kolmogorov_tail(d, n) == pytest.approx(float(stats.kstwo.sf(d, n)), abs=tolerance)
