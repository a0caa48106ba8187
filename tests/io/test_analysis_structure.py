"""Components, distances, modes and calibration: exact where algebra says what they are, and right on planted cases."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ensembles import ensemble_of
from ensembles import normal as normal_images
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial.distance import cdist
from torch import Tensor

from potentia.io import Ensemble
from potentia.io import _components as components
from potentia.io._dip import dip, dip_p_value

EVENT = (1, 6, 5)


normal = partial(normal_images, dtype=torch.float64)


def flat(images: Tensor) -> np.ndarray:
    x = torch.view_as_real(images).movedim(-1, 3) if images.is_complex() else images
    return x.flatten(0, 1).flatten(1).numpy()


class TestComponents:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
    @pytest.mark.parametrize("shape", [(2, 5, 1, 6, 5), (4, 20, 1, 3, 4)])
    def test_they_are_those_of_scikit_learn(
        self, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = normal(*shape, dtype=dtype) * torch.linspace(1, 3, shape[-1], dtype=dtype.to_real())
        monkeypatch.setattr(components, "_TILE_BYTES", shape[0] * shape[1] * 8 * 7)
        found = ensemble_of(images).components(4)
        theirs = pytest.importorskip("sklearn.decomposition").PCA(4, svd_solver="full").fit(flat(images))
        tolerance = 1e-5 if dtype == torch.float32 else 1e-9
        np.testing.assert_allclose(found["explained_variance"], theirs.explained_variance_, rtol=tolerance)
        np.testing.assert_allclose(found["explained_variance_ratio"], theirs.explained_variance_ratio_, rtol=tolerance)
        np.testing.assert_allclose(found["mean"].values.ravel(), theirs.mean_, rtol=tolerance, atol=tolerance)
        own = found["component"].values.reshape(4, -1)
        signs = np.sign((own * theirs.components_).sum(axis=1))[:, None]
        np.testing.assert_allclose(own * signs, theirs.components_, atol=50 * tolerance)
        assert (own[np.arange(4), np.abs(own).argmax(axis=1)] > 0).all()

    def test_all_of_them_make_up_the_draws(self) -> None:
        images = normal(2, 6, *EVENT)
        found = ensemble_of(images).components(11)
        again = found["mean"] + (found["score"] * found["component"]).sum("component")
        np.testing.assert_allclose(again.transpose("chain", "draw", ...), images, atol=1e-12)
        basis = found["component"].values.reshape(11, -1)
        np.testing.assert_allclose(basis @ basis.T, np.eye(11), atol=1e-10)
        assert float(found["explained_variance_ratio"].sum()) == pytest.approx(1)

    def test_a_planted_direction_is_found(self) -> None:
        pattern = torch.zeros(EVENT, dtype=torch.float64)
        pattern[0, 2, 1:4] = 1 / math.sqrt(3)
        images = 0.05 * normal(2, 100, *EVENT) + 3 * normal(2, 100, 1, 1, 1, seed=1) * pattern
        found = ensemble_of(images).components(2)
        np.testing.assert_allclose(found["component"][0], pattern, atol=0.02)
        # the variance of 200 normal numbers has a relative error of 10 %
        assert float(found["explained_variance"][0]) == pytest.approx(9, rel=0.4)
        assert float(found["explained_variance_ratio"][0]) > 0.98

    def test_far_from_zero(self) -> None:
        images = normal(2, 10, *EVENT)
        near, far = ensemble_of(images).components(3), ensemble_of(images + 1e6).components(3)
        np.testing.assert_allclose(far["explained_variance"], near["explained_variance"], rtol=1e-6)

    def test_thinning(self) -> None:
        images = normal(2, 9, *EVENT)
        thin = ensemble_of(images).components(3, every=2)
        np.testing.assert_allclose(
            thin["component"], ensemble_of(images[:, ::2]).components(3)["component"], atol=1e-12
        )
        assert thin["draw"].values.tolist() == [0, 2, 4, 6, 8]

    def test_draws_that_do_not_differ_have_no_components(self) -> None:
        found = ensemble_of(torch.ones(1, 4, *EVENT, dtype=torch.float64)).components(2)
        assert not found["explained_variance"].values.any()
        assert not found["component"].values.any()

    @pytest.mark.parametrize(
        ("images", "options", "message"),
        [
            (normal(2, 3, *EVENT), {"num": 6}, "num is 6, expected at most 5, one less than the samples"),
            (normal(2, 3, *EVENT), {"num": 0}, "num must be at least 1"),
            (normal(2, 3, *EVENT), {"num": 1, "every": 0}, "every must be at least 1"),
            (normal(1, 1, *EVENT), {"num": 1}, "there is 1 sample, expected at least 2"),
        ],
    )
    def test_bad_input_is_refused(self, images: Tensor, options: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ensemble_of(images).components(**options)

    def test_nan_is_refused(self) -> None:
        images = normal(2, 3, *EVENT)
        images[0, 1, 0, 2, 2] = math.nan
        with pytest.raises(ValueError, match="NaN or infinite"):
            ensemble_of(images).components(2)

    def test_too_many_samples_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(components, "_MOST_SAMPLES", 5)
        ensemble = ensemble_of(normal(2, 6, *EVENT))
        with pytest.raises(ValueError, match="there are 12 samples, expected at most 5: thin them by every=3"):
            ensemble.components(2)
        assert ensemble.components(2, every=3).sizes["draw"] == 2


class TestDistances:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_they_are_those_of_scipy(self, dtype: torch.dtype) -> None:
        images = normal(2, 5, 2, 6, 5, dtype=dtype) + 3
        found = ensemble_of(images).distances()
        want = cdist(flat(images).astype(np.float64), flat(images).astype(np.float64)) / math.sqrt(2 * 6 * 5)
        np.testing.assert_allclose(found, want, atol=1e-6)
        assert found["chain"].values.tolist() == [0] * 5 + [1] * 5
        assert found["draw"].values.tolist() == [0, 1, 2, 3, 4] * 2


def dip_by_programming(values: np.ndarray) -> float:
    """The dip from its definition: over all modes, the nearest distribution function that is convex up to the mode and
    concave from there, by linear programming."""
    x = np.sort(values)
    n = len(x)
    after = np.arange(1, n + 1) / n
    before = after - 1 / n
    best = math.inf
    for mode in range(n):
        left, right = list(range(mode + 1)), {i: 1 + i for i in range(mode, n)}
        rows, limits = [], []

        def most(terms: list[tuple[int, float]], limit: float, rows: list = rows, limits: list = limits) -> None:
            row = np.zeros(n + 2)
            for place, factor in terms:
                row[place] += factor
            rows.append(row)
            limits.append(limit)

        for i in range(mode + 1):  # the left side stops short of the jump at the mode
            most([(left[i], -1), (n + 1, -1)], -(after[i] if i < mode else before[i]))
            most([(left[i], 1), (n + 1, -1)], before[i])
        for i in range(mode, n):
            most([(right[i], -1), (n + 1, -1)], -after[i])
            most([(right[i], 1), (n + 1, -1)], before[i] if i > mode else after[i])
        most([(left[mode], 1), (right[mode], -1)], 0)
        for place, lo, hi, sign in ((left, 0, mode, 1), (right, mode, n - 1, -1)):
            for i in range(lo, hi):
                most([(place[i], 1), (place[i + 1], -1)], 0)
            for i in range(lo + 1, hi):
                a, b = sign / (x[i] - x[i - 1]), sign / (x[i + 1] - x[i])
                most([(place[i], a + b), (place[i - 1], -a), (place[i + 1], -b)], 0)
        cost = np.zeros(n + 2)
        cost[n + 1] = 1
        found = linprog(cost, A_ub=np.array(rows), b_ub=limits, bounds=[(0, 1)] * (n + 1) + [(0, None)])
        best = min(best, found.fun if found.status == 0 else math.inf)
    return best


class TestDip:
    @settings(max_examples=30, deadline=None)
    @given(n=st.integers(2, 11), seed=st.integers(0, 9999), apart=st.sampled_from([0.0, 1.0, 5.0]))
    def test_it_is_what_its_definition_says(self, n: int, seed: int, apart: float) -> None:
        rng = np.random.default_rng(seed)
        values = rng.random(n) + apart * (rng.random(n) < 0.5)
        assert dip(values) == pytest.approx(dip_by_programming(values), abs=1e-7)

    @settings(max_examples=20)
    @given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=30), scale=st.sampled_from([0.5, 4.0]))
    def test_shift_scale_and_mirror_do_not_matter(self, values: list[float], scale: float) -> None:
        x = np.round(np.array(values), 2)
        assert dip(-scale * x + 2) == pytest.approx(dip(x), abs=1e-9)

    def test_extremes(self) -> None:
        assert dip(np.arange(10.0)) == pytest.approx(1 / 20)  # the least of ten numbers
        assert dip(np.array([0.0] * 50 + [1.0] * 50)) == pytest.approx(0.25)  # the greatest there is
        assert dip(np.ones(7)) == 0.0

    @pytest.mark.parametrize(("n", "critical"), [(50, 0.0702), (100, 0.0503), (200, 0.0363)])
    def test_p_values_agree_with_the_published_table(self, n: int, critical: float) -> None:
        """The 95 % points of Hartigan and Hartigan 1985, table 1, themselves simulated."""
        assert 0.03 < dip_p_value(critical, n) < 0.075

    @pytest.mark.parametrize("n", [30, 1000])
    def test_p_values_of_uniform_numbers_are_uniform(self, n: int) -> None:
        rng = np.random.default_rng(n)
        p = np.array([dip_p_value(dip(rng.random(n)), n) for _ in range(300)])
        for level in (0.05, 0.5):
            assert abs((p < level).mean() - level) < 5 * math.sqrt(level * (1 - level) / 300)


def two_modes(distance: float, share: float, seed: int, *, chains: int = 4, draws: int = 60) -> tuple[Tensor, Tensor]:
    """Unit Gaussians in 64 pixels about two means at a distance: images, and which mean each has."""
    images = normal(chains, draws, 1, 8, 8, seed=seed)
    second = torch.rand(chains, draws, generator=torch.Generator().manual_seed(seed + 1)) < share
    apart = normal(1, 8, 8, seed=seed + 2)
    return images + second[..., None, None, None] * distance * apart / apart.norm(), second


class TestModes:
    @pytest.mark.parametrize("spread", [1.0, 20.0])
    def test_a_gaussian_has_one(self, spread: float) -> None:
        """White, and with one direction of a much greater spread; false alarms are at most as frequent as the level."""
        alarms = 0
        for seed in range(12):
            images = normal(4, 60, 1, 8, 8, seed=seed)
            images[..., 0, 0] *= spread
            alarms += ensemble_of(images).modes().count > 1
        assert alarms <= 1  # of 12 at 1 %, two or more have a probability of 0.6 %

    @pytest.mark.parametrize("share", [0.5, 0.3])
    def test_two_well_separated_modes(self, share: float) -> None:
        images, second = two_modes(12.0, share, seed=5)
        found = ensemble_of(images).modes()
        assert found.count == 2
        agree = (found.labels.values == second.numpy()).mean()
        assert max(agree, 1 - agree) > 0.99
        lesser = min(second.double().mean().item(), 1 - second.double().mean().item())
        assert found.weights == pytest.approx((1 - lesser, lesser), abs=0.01)
        for mode, (chain, draw) in enumerate(found.representatives):
            assert int(found.labels[chain, draw]) == mode
        assert found.transitions == np.abs(np.diff(found.labels.values, axis=1)).sum()
        assert found.transitions > 10
        assert "Modes(2: weights" in repr(found)
        assert found.p_values[0] < 0.01

    def test_modes_apart_in_a_direction_of_little_variance(self) -> None:
        """Clusters by k-means alone would halve the long direction, where there is one mode."""
        images = 0.1 * normal(4, 60, 1, 8, 8)
        images[..., 0, 0] *= 200
        second = torch.rand(4, 60, generator=torch.Generator().manual_seed(1)) < 0.5
        images[:, :, 0, 3, 3] += 3.0 * second
        found = ensemble_of(images).modes()
        assert found.count == 2
        agree = (found.labels.values == second.numpy()).mean()
        assert max(agree, 1 - agree) > 0.98

    def test_four_modes_and_no_more_than_asked_for(self) -> None:
        images = normal(4, 100, 1, 8, 8)
        corner = torch.randint(4, (4, 100), generator=torch.Generator().manual_seed(1))
        images[:, :, 0, 0, 0] += 14 * (corner % 2)
        images[:, :, 0, 5, 5] += 14 * (corner // 2)
        assert ensemble_of(images).modes().count == 4
        assert ensemble_of(images).modes(most=3).count == 3
        assert ensemble_of(images).modes(most=1).count == 1

    def test_chains_that_never_cross_are_told_of(self) -> None:
        images = normal(2, 60, 1, 8, 8)
        images[1] += 3.0
        found = ensemble_of(images).modes()
        assert (found.count, found.transitions) == (2, 0)
        assert "no chain went from one to another" in repr(found)

    def test_modes_close_by_are_one(self) -> None:
        images, _ = two_modes(1.0, 0.5, seed=7)
        assert ensemble_of(images).modes().count == 1

    def test_few_samples_are_not_split(self) -> None:
        images, _ = two_modes(30.0, 0.5, seed=5, chains=2, draws=11)
        found = ensemble_of(images).modes()
        assert (found.count, found.p_values) == (1, ())

    def test_identical_draws(self) -> None:
        assert ensemble_of(torch.ones(2, 30, 1, 3, 3)).modes().count == 1

    def test_without_halves_the_test_would_see_modes_in_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The planted fault: directions tested on the samples that they were found on."""
        from potentia.io import _modes

        def same_samples(scores: np.ndarray, num_components: int) -> Any:
            directions = _modes._directions(scores - scores.mean(axis=0), num_components)
            line = scores @ directions.T
            depths = [dip(line[:, k]) for k in range(len(directions))]
            best = int(np.argmax(depths))
            along = line[:, best]
            p = min(1.0, len(directions) * dip_p_value(depths[best], len(scores)))
            return p, along > _modes._cut(along)

        # As many directions as samples: k-means finds a gap between any two halves of such noise.
        ensemble = ensemble_of(normal(2, 20, 1, 40, 40))
        assert ensemble.modes(num_components=39, level=0.05).count == 1
        monkeypatch.setattr(_modes, "_two_sides", same_samples)
        assert ensemble.modes(num_components=39, level=0.05).count > 1

    @pytest.mark.parametrize("options", [{"level": 0.0}, {"num_components": 0}, {"most": 0}, {"every": 0}])
    def test_bad_numbers_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=rf"modes: {next(iter(options))}"):
            ensemble_of(normal(2, 20, *EVENT)).modes(**options)


class TestCalibration:
    """A truth drawn as the samples are is one more draw: the posterior is calibrated by construction."""

    def drawn(self, factor: float = 1.0, seed: int = 0) -> tuple[Ensemble, Tensor]:
        scale = torch.linspace(0.5, 4, 40 * 50, dtype=torch.float64).reshape(1, 40, 50)
        images, truth = normal(4, 20, 1, 40, 50, seed=seed) * scale, normal(1, 40, 50, seed=seed + 1) * scale
        return ensemble_of(images * factor), truth

    def test_a_calibrated_posterior(self) -> None:
        ensemble, truth = self.drawn()
        found = ensemble.calibration(truth, num_bins=5)
        pixels = truth.numel()
        for level in found.coverage["level"].values:
            error = math.sqrt(level * (1 - level) / pixels)
            assert abs(float(found.coverage.sel(level=level)) - level) < 5 * error
        assert found.error_over_std == pytest.approx(1, abs=5 / math.sqrt(2 * pixels) + 0.01)
        table = found.reliability
        np.testing.assert_allclose(table["rmse"], table["predicted"], rtol=5 / math.sqrt(2 * pixels / 5) + 0.01)
        assert (np.diff(table["predicted"]) > 0).all()
        assert int(table["count"].sum()) == pixels

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_a_wrong_std_is_seen(self, factor: float) -> None:
        ensemble, truth = self.drawn(factor)
        found = ensemble.calibration(truth)
        assert found.error_over_std == pytest.approx(1 / factor, rel=0.1)
        assert (float(found.coverage.sel(level=0.9)) < 0.7) == (factor < 1)
        assert (np.sign(found.reliability["rmse"] - found.reliability["predicted"]) == (1 if factor < 1 else -1)).all()

    def test_it_agrees_with_coverage(self) -> None:
        ensemble, truth = self.drawn()
        mask = np.zeros((40, 50), bool)
        mask[:7] = True
        found = ensemble.calibration(truth, levels=[0.3, 0.9], mask=mask)
        for level in (0.3, 0.9):
            assert float(found.coverage.sel(level=level)) == ensemble.coverage(truth, level, mask=mask)
        assert int(found.reliability["count"].sum()) == mask.sum()
        assert "coverage" in repr(found)

    def test_the_stored_truth(self) -> None:
        images, truth = normal(2, 10, 1, 6, 5, dtype=torch.complex128), normal(1, 6, 5, dtype=torch.complex128, seed=1)
        ensemble = ensemble_of(images, constant={"truth": truth})
        np.testing.assert_array_equal(ensemble.calibration().coverage, ensemble.calibration(truth).coverage)
        assert int(ensemble.calibration().reliability["count"].sum()) == 60

    def test_a_pixel_that_is_certain_and_wrong(self) -> None:
        images, truth = normal(2, 10, *EVENT), normal(*EVENT, seed=1)
        images[..., 0, 0] = truth[..., 0, 0] = 1.0
        assert math.isfinite(ensemble_of(images).calibration(truth).error_over_std)
        truth[..., 0, 0] = 2.0
        assert ensemble_of(images).calibration(truth).error_over_std == math.inf

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"levels": [0.5, 1.0]}, "levels are"),
            ({"levels": []}, "levels are"),
            ({"num_bins": 31}, "num_bins is 31, expected at most 30"),
            ({"num_bins": 0}, "num_bins must be at least 1"),
            ({"mask": np.zeros((6, 5))}, "mask leaves no pixel"),
            ({"mask": np.zeros((6, 4))}, r"mask has shape \(6, 4\)"),
            ({"truth": normal(1, 6, 4)}, "calibration: truth has shape"),
            ({"truth": None}, "the store holds no truth"),
        ],
    )
    def test_bad_input_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ensemble_of(normal(2, 10, *EVENT)).calibration(**({"truth": normal(*EVENT)} | options))
