"""The summary of an ensemble gives the diagnostics of every pixel, and warns of what chance does not explain."""

import math
import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from potentia import energies
from potentia.inference import Langevin, sample
from potentia.inference import _summary as module
from potentia.inference._diagnostics import by_pixel, ess, mcse, nested_rhat, rhat
from potentia.inference._judge import FALSE_ALARMS, Method, between_chain_ess, beyond_chance
from potentia.inference._summary import DiagnosticWarning, Summary, summary, warn_if_suspect, without_diagnostics
from potentia.io import Ensemble, EnsembleWriter


def make(images: Tensor, lp: Tensor | float = 0.0, attrs: dict[str, object] | None = None, **stats: Any) -> Ensemble:
    """An ensemble of images (chain, draw, C, H, W), with statistics (chain, draw) or one for all."""
    chains, draws, *event = images.shape
    writer = EnsembleWriter.create(
        None, num_chains=chains, num_draws=draws, event_shape=event, is_complex=images.is_complex(),
        dtype="float64" if images.dtype in (torch.float64, torch.complex128) else "float32", attrs=attrs,
    )  # fmt: skip
    told = {"lp": lp, "acceptance_rate": 0.8, "n_grad": 0} | stats
    for k in range(draws):
        row = {name: v[:, k] if isinstance(v, Tensor) else v for name, v in told.items()}
        writer.append(images[:, k], row | {"n_grad": 10 * (k + 1)})
        if writer.ready_to_commit:
            writer.commit()
    return writer.close()


def normal(*shape: int, seed: int = 0, rho: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """AR(1) chains (chains, draws, *event) with standard normal marginals."""
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    for k in range(1, shape[1] if rho else 0):
        x[:, k] = rho * x[:, k - 1] + math.sqrt(1 - rho**2) * x[:, k]
    return x


class TestWhatItGives:
    def test_diagnostics_of_every_pixel_and_of_the_log_posterior(self) -> None:
        images, lp = normal(4, 120, 2, 3, 5, rho=0.3), normal(4, 120, seed=1)
        found = summary(make(images, lp))
        expected = {
            "rhat": rhat(images), "ess_bulk": ess(images), "ess_tail": ess(images, "tail"),
            "mcse_mean": mcse(images), "std": images.flatten(0, 1).std(dim=0),
        }  # fmt: skip
        for name, value in expected.items():
            assert found.pixels[name].dims == ("channel", "y", "x")
            np.testing.assert_allclose(found.pixels[name], value, rtol=1e-12)
        assert list(found.pixels["channel"].values) == ["0", "1"]
        assert found.lp["rhat"] == pytest.approx(float(rhat(lp)))
        assert found.lp["ess_bulk"] == pytest.approx(float(ess(lp)))
        place = np.unravel_index(int(rhat(images).argmax()), (2, 3, 5))
        assert found.where["rhat"] == (str(place[0]), place[1], place[2])
        assert found.worst["rhat"] == float(rhat(images).max())
        assert found.worst["ess_tail"] == float(ess(images, "tail").min())
        assert found.worst["mcse_mean"] / found.worst["std"] == pytest.approx(
            float((expected["mcse_mean"] / expected["std"]).max())
        )
        assert found.median["ess_bulk"] == pytest.approx(float(ess(images).median()))
        assert found.n_grad == 1200

    def test_tiles_change_nothing(self) -> None:
        ensemble = make(normal(4, 30, 2, 7, 5))
        whole = summary(ensemble)
        with mock.patch.object(module, "_TILE_BYTES", 4 * 30 * 2 * 5 * 8 * 3):
            tiled = summary(ensemble)
        assert whole.pixels.equals(tiled.pixels)

    def test_no_more_than_a_tile_is_read_at_once(self) -> None:
        ensemble = make(normal(4, 30, 2, 7, 5))
        seen = []

        def spy(x: Tensor, of: Any) -> Tensor:
            seen.append(tuple(x.shape))
            return by_pixel(x, of)

        row = 4 * 30 * 2 * 5 * 8
        with mock.patch.object(module, "by_pixel", spy), mock.patch.object(module, "_TILE_BYTES", 2 * row):
            summary(ensemble)
        assert [s for s in seen if len(s) == 5] == [(4, 30, 2, 2, 5)] * 3 + [(4, 30, 2, 1, 5)]

    def test_a_few_pixels_evenly_spread(self) -> None:
        ensemble = make(normal(4, 30, 1, 20, 30))
        whole, few = summary(ensemble), summary(ensemble, max_pixels=24)
        assert few.pixels["std"].shape == (1, 4, 6)
        rows, columns = few.pixels["y"].values, few.pixels["x"].values
        np.testing.assert_array_equal(np.diff(rows), 5)
        np.testing.assert_array_equal(few.pixels["rhat"], whole.pixels["rhat"].values[:, rows][:, :, columns])
        assert few.where["rhat"][1] in rows
        assert "Looked at 24 of 600 pixels" in repr(few)
        assert summary(make(normal(4, 30, 3, 1, 40)), max_pixels=10).pixels["std"].size > 0

    def test_complex_images_by_part(self) -> None:
        images = torch.complex(normal(4, 20, 1, 2, 2), 3 * normal(4, 20, 1, 2, 2, seed=1))
        found = summary(make(images))
        assert list(found.pixels["channel"].values) == ["re", "im"]
        np.testing.assert_allclose(found.pixels["std"].sel(channel=["im"]), images.imag.flatten(0, 1).std(dim=0))

    def test_a_table_for_people(self) -> None:
        rate = torch.full((4, 120), 0.9, dtype=torch.float64)
        rate[2] = 0.5
        told = repr(summary(make(normal(4, 120, 1, 3, 5), normal(4, 120), acceptance_rate=rate)))
        for part in ("4 chains of 120 draws", "R-hat", "bulk ESS", "acceptance 0.800 (lowest chain 0.500)",
                     "evaluations a chain 1200", "No concerns."):  # fmt: skip
            assert part in told

    def test_score_only_priors_have_no_log_posterior(self) -> None:
        found = summary(make(normal(4, 30, 1, 3, 3), math.nan))
        assert all(math.isnan(v) for v in found.lp.values())
        assert "log posterior is not known" in repr(found)
        assert found.concerns == ()

    def test_what_sample_gives(self) -> None:
        prior = energies.Gaussian(torch.zeros(1, 4, 4), 1.0)
        ensemble = sample(prior, Langevin(1.0, steps_per_draw=2), num_chains=4, num_draws=40, progress=False)
        found = summary(ensemble)
        # Langevin's exact rule with a step of one forgets the draw before: 160 independent ones.
        assert found.median["ess_bulk"] == pytest.approx(160, rel=0.2)
        assert math.isfinite(found.lp["rhat"])
        assert found.n_grad == 2 * (40 + Langevin().default_warmup)
        assert found.concerns == ()

    def test_refusals(self) -> None:
        with pytest.raises(TypeError, match="summary: got a Tensor, expected an ensemble"):
            summary(torch.zeros(3))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="max_pixels must be at least 1"):
            summary(make(normal(2, 4, 1, 2, 2)), max_pixels=0)


class TestMethods:
    """What is asked of how many chains and draws."""

    @pytest.mark.parametrize(
        ("chains", "draws", "independent", "rhat_kind", "ess_kind", "wanted"),
        [
            (8, 200, False, "split", "autocorrelation", 800),
            (256, 100, False, "split", "autocorrelation", 25600),
            (8, 20, False, "split", "autocorrelation", None),
            (8, 6, False, "split", "between chains", None),
            (256, 8, False, "nested", "between chains", None),
            (16, 99, False, "nested", "autocorrelation", None),
            (32, 4, True, "nested", "independent", None),
            (32, 1, False, None, "between chains", None),
            (4, 3, False, None, "between chains", None),
            (1, 50, False, None, "autocorrelation", None),
            (1, 5, False, None, None, None),
        ],
    )
    def test_which(
        self, chains: int, draws: int, independent: bool, rhat_kind: str, ess_kind: str, wanted: float
    ) -> None:
        method = Method(chains, draws, independent)
        assert (method.rhat, method.ess, method.ess_wanted) == (rhat_kind, ess_kind, wanted)

    @pytest.mark.parametrize(("chains", "draws"), [(1, 1), (1, 3), (1, 5), (1, 30), (2, 1), (3, 2), (40, 1), (20, 5)])
    def test_every_size_has_a_summary(self, chains: int, draws: int) -> None:
        found = summary(make(normal(chains, draws, 1, 3, 3), normal(chains, draws)))
        assert repr(found)
        assert found.concerns == ()

    def test_one_draw_a_chain_counts_chains(self) -> None:
        images = normal(32, 1, 1, 3, 3)
        found = summary(make(images))
        np.testing.assert_allclose(found.pixels["ess_bulk"], 32)
        np.testing.assert_allclose(found.pixels["ess_tail"], 32)
        np.testing.assert_allclose(found.pixels["mcse_mean"], images[:, 0].std(dim=0) / math.sqrt(32))
        assert np.isnan(found.pixels["rhat"]).all()
        assert "nothing here tells whether the chains have converged" in repr(found)

    def test_independent_draws_count_where_the_ensemble_says_so(self) -> None:
        images = normal(32, 4, 1, 3, 3)
        found = summary(make(images, attrs={"independent_draws": True}))
        np.testing.assert_array_equal(found.pixels["ess_bulk"], 128)
        np.testing.assert_allclose(found.pixels["mcse_mean"], images.flatten(0, 1).std(dim=0) / math.sqrt(128))

    def test_between_chain_ess_is_right_on_average(self) -> None:
        """Chains of 6 draws with rho 0.5: the variance of a chain's mean is known, and ESS = chains / (its share)."""
        x = normal(64, 6, 4000, rho=0.5)
        lags = torch.arange(1, 6)
        of_mean = (6 + 2 * ((6 - lags) * 0.5**lags).sum()) / 36
        found = between_chain_ess(x.permute(2, 0, 1))
        # The inverse of a chi-square with 63 degrees of freedom averages 63 / 61; 4,000 pixels settle it to 0.3 %.
        assert float(found.mean()) == pytest.approx(float(64 / of_mean) * 63 / 61, rel=0.02)

    def test_nested_rhat_is_of_chains_that_began_close(self) -> None:
        """Chains that stay where they began are seen, which arbitrary superchains of them would hardly be."""
        start = normal(256, 1, 40)
        x = start + 0.3 * normal(256, 8, 40, seed=1)
        method = Method(256, 8)
        value, excess = by_pixel(x, lambda p: torch.stack(method.rhat_and_excess(p)))
        assert float(value.min()) > 1.5
        assert float(method.rhat_tail(excess).max()) < 1e-12
        assert float(nested_rhat(x, 8).max()) < 1.1


def p_values(method: Method, x: Tensor) -> tuple[Tensor, Tensor]:
    """Those of R-hat and of bulk ESS, of every pixel."""
    excess = by_pixel(x, lambda pixels: method.rhat_and_excess(pixels)[1])
    return method.rhat_tail(excess), method.ess_tail(by_pixel(x, lambda pixels: method.sizes(pixels)[0]))


def share_below(p: Tensor, level: float) -> tuple[float, float]:
    """Share of p-values at or below a level, and what chance allows of a valid test, five standard errors above."""
    n = p.numel()
    return float((p <= level).double().mean()), level + 5 * math.sqrt(level / n)


class TestFalseAlarms:
    """Independent pixels of runs that are just good enough: each test's p-values are no smaller than uniform ones."""

    @pytest.mark.parametrize(
        ("chains", "draws", "rho"),
        [(4, 4, 0.0), (8, 20, 0.0), (4, 100, 0.0), (2, 400, 0.6), (8, 300, 0.5), (16, 4, 0.0), (256, 8, 0.0),
         (64, 16, 0.5)],
    )  # fmt: skip
    def test_p_values_are_valid(self, chains: int, draws: int, rho: float) -> None:
        method = Method(chains, draws)
        x = normal(chains, draws, min(8000, 4_000_000 // (chains * draws)), rho=rho)

        of_rhat, of_ess = p_values(method, x)
        for level in (0.1, 0.01, 0.001):
            for p in (of_rhat, of_ess):
                share, most = share_below(p[~torch.isnan(p)], level) if not torch.isnan(p).all() else (0.0, 1.0)
                assert share <= most

    def test_half_the_draws_of_that_would_be_found_out(self) -> None:
        """The bound has teeth: half the effective draws, and p-values are far too small."""
        method = Method(4, 200)
        x = normal(4, 200, 3000, rho=0.6)  # 50 effective draws a chain
        p = p_values(method, x)
        for of in p:
            share, most = share_below(of, 0.1)
            assert share > most

    def test_combination_holds_its_level_whatever_the_dependence(self) -> None:
        g = torch.Generator().manual_seed(0)
        alone = torch.rand(4000, 50, generator=g, dtype=torch.float64)
        together = torch.rand(4000, 1, generator=g, dtype=torch.float64).expand(4000, 50)
        lp = torch.rand(4000, generator=g, dtype=torch.float64)
        for tails in (alone, together):
            alarms = sum(bool(beyond_chance(t, float(v))) for t, v in zip(tails, lp, strict=True))
            assert alarms / 4000 <= FALSE_ALARMS + 5 * math.sqrt(FALSE_ALARMS / 4000)
        assert beyond_chance(torch.full((50,), 1e-3, dtype=torch.float64), 0.5) == ["median"]
        assert beyond_chance(torch.tensor([1e-5] + [0.5] * 49), 0.5) == ["worst"]
        assert beyond_chance(torch.tensor([0.5, math.nan]), 1e-3) == ["log posterior"]
        assert beyond_chance(torch.tensor([math.nan]), math.nan) == []

    @pytest.mark.parametrize(
        ("chains", "draws", "side"), [(4, 10, 48), (8, 50, 32), (4, 200, 32), (256, 8, 12), (32, 4, 24), (16, 1, 24)]
    )
    def test_independent_draws_are_no_concern_though_rhat_exceeds_its_limit(
        self, chains: int, draws: int, side: int
    ) -> None:
        found = summary(make(normal(chains, draws, 1, side, side, dtype=torch.float32), normal(chains, draws, seed=3)))
        assert found.concerns == ()
        if draws >= 4 and (chains, draws) != (256, 8):
            assert found.worst["rhat"] > 1.01


class TestConcerns:
    def names(self, found: Summary) -> list[str]:
        return [c.statistic for c in found.concerns]

    def test_chains_in_modes_of_their_own_in_a_corner(self) -> None:
        images = normal(4, 200, 1, 16, 16)
        images[..., 4:7, 4:7] += 2 * torch.tensor([1.0, -1, 1, -1])[:, None, None, None, None]
        found = summary(make(images, normal(4, 200, seed=1)))
        assert self.names(found) == ["R-hat", "bulk ESS"]
        concern = found.concerns[0]
        assert concern.value == found.worst["rhat"] > 1.5
        assert concern.limit == 1.01
        assert found.where["rhat"][1] in (4, 5, 6)
        assert found.median["rhat"] < 1.02
        assert "expected at most 1.01" in concern.message
        assert "Warm up and run longer" in concern.message

    def test_slow_chains(self) -> None:
        found = summary(make(normal(4, 400, 1, 8, 8, rho=0.95), normal(4, 400, rho=0.95, seed=1)))
        assert self.names(found) == ["R-hat", "bulk ESS"]
        assert "expected at least 400, 100 for each of 4 chains" in found.concerns[1].message

    def test_everywhere_a_little_is_found_in_the_median_pixel(self) -> None:
        images = normal(8, 200, 1, 16, 16)
        images += 0.25 * normal(8, 1, 1, 16, 16, seed=5)
        found = summary(make(images))
        assert found.median["rhat"] > 1.02
        assert "R-hat" in self.names(found)

    def test_the_log_posterior_alone(self) -> None:
        lp = normal(4, 200, seed=1)
        lp[0] += 3
        found = summary(make(normal(4, 200, 1, 8, 8), lp))
        assert self.names(found) == ["R-hat", "bulk ESS"]
        assert "for the log posterior" in found.concerns[0].message
        assert found.concerns[0].value == found.lp["rhat"]

    def test_a_short_run_that_disagrees(self) -> None:
        images = 0.2 * normal(4, 6, 1, 8, 8) + normal(4, 1, 1, 8, 8, seed=1)
        assert self.names(summary(make(images))) == ["R-hat"]

    def test_many_short_chains_that_remember_their_start(self) -> None:
        images = 0.5 * normal(64, 8, 1, 8, 8) + normal(64, 1, 1, 8, 8, seed=1)
        found = summary(make(images))
        assert self.names(found) == ["R-hat"]
        assert "nested R-hat is" in found.concerns[0].message
        assert "superchains" in repr(found)

    def test_many_short_chains_of_correlated_draws_that_forgot_it_are_none(self) -> None:
        assert summary(make(normal(64, 30, 1, 16, 16, rho=0.6))).concerns == ()

    def test_divergences(self) -> None:
        diverging = torch.zeros(4, 30, dtype=torch.bool)
        diverging[1, 3:6] = True
        found = summary(make(normal(4, 30, 1, 3, 3), diverging=diverging))
        assert found.divergences == 3
        assert self.names(found) == ["divergences"]
        assert "3 of 120 draws (2.50%) diverged" in found.concerns[0].message

    def test_a_chain_that_never_moved(self) -> None:
        images = normal(4, 40, 1, 6, 6)
        images[2] = images[2, :1]
        found = summary(make(images))
        assert found.stuck_chains == (2,)
        assert "stuck chains" in self.names(found)
        # R-hat itself tells of it, too.
        assert "R-hat" in self.names(found)

    def test_all_chains_stuck_at_one_point(self) -> None:
        found = summary(make(normal(1, 1, 1, 6, 6).expand(4, 40, 1, 6, 6).clone()))
        assert found.stuck_chains == (0, 1, 2, 3)
        assert "36 of 36 pixels are the same in all draws" in repr(found)


class TestWarnings:
    def test_one_a_statistic_naming_it(self) -> None:
        images = normal(4, 200, 1, 8, 8)
        images[0] += 2
        diverging = torch.zeros(4, 200, dtype=torch.bool)
        diverging[0, 0] = True
        with pytest.warns(DiagnosticWarning) as caught:
            warn_if_suspect(make(images, diverging=diverging))
        told = [str(w.message) for w in caught]
        assert len(told) == 3
        for message, statistic in zip(told, ("R-hat is", "bulk ESS is", "diverged, expected none"), strict=True):
            assert statistic in message
        assert all(w.filename == __file__ for w in caught)
        assert issubclass(DiagnosticWarning, UserWarning)

    def test_silence(self) -> None:
        bad = make(normal(4, 200, 1, 8, 8, rho=0.98))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_if_suspect(make(normal(4, 200, 1, 8, 8)))
            with without_diagnostics():
                warn_if_suspect(bad)
        with pytest.warns(DiagnosticWarning):
            warn_if_suspect(bad)

    def test_it_looks_at_a_part_of_a_large_image(self) -> None:
        seen = []

        def spy(ensemble: Ensemble, *, max_pixels: int | None = None) -> Summary:
            seen.append(summary(ensemble, max_pixels=max_pixels))
            return seen[-1]

        images = normal(2, 10, 1, 200, 200, dtype=torch.float32)
        with mock.patch.object(module, "summary", spy):
            warn_if_suspect(make(images))
        assert 100 < seen[0].pixels["std"].size <= 200
