"""Quantiles, probabilities, regions and diagnostics of every pixel, in tiles, equal NumPy's over all draws at once."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from ensembles import ensemble_of, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potentia.inference import ess, mcse, rhat
from potentia.inference._pixels import pixel_diagnostics
from potentia.io import Ensemble, EnsembleWriter, StoreError, open_ensemble
from potentia.io import _rechunk as rechunk
from potentia.io import _tiles as tiles
from potentia.io._analysis import _quantiles
from potentia.io._tiles import rectangles, tile_sides

EVENT = (2, 5, 7)


def make(path: Path | None, images: Tensor, stop: int | None = None, **options: Any) -> Ensemble:
    return ensemble_of(images, path, stop=stop, block=2, **options)


def harm(file: Path, damage: str, byte: int) -> None:
    """Remove a file, cut it short, or flip a bit of one byte."""
    raw = bytearray(file.read_bytes())
    raw[byte] ^= 1
    file.unlink()
    if damage != "removed":
        file.write_bytes(raw if damage == "flipped" else raw[:-4])


def pooled(images: Tensor) -> np.ndarray:
    return images.flatten(0, 1).numpy()


@pytest.fixture
def small_tiles() -> Iterator[None]:
    """Tiles of four pixels, so that an image takes several, within its rows too."""
    size = 4 * 2 * 6 * 2 * 4
    with mock.patch.object(tiles, "TILE_BYTES", size), mock.patch.object(tiles, "WHOLE_READ_BYTES", size):
        yield


@given(height=st.integers(1, 9), width=st.integers(1, 9), pixels=st.integers(0, 100))
def test_tiles_cover_every_pixel_once_and_keep_to_their_size(height: int, width: int, pixels: int) -> None:
    seen = np.zeros((height, width), int)
    for rows, columns in rectangles(height, width, *tile_sides(height, width, pixels)):
        seen[rows, columns] += 1
        assert seen[rows, columns].size <= max(1, pixels)
    assert (seen == 1).all()


@pytest.mark.usefixtures("small_tiles")
class TestTiles:
    @pytest.mark.parametrize("where", ["memory", "folder", "zip"])
    @pytest.mark.parametrize("rechunked", [False, True])
    def test_tiles_are_the_draws(self, tmp_path: Path, where: str, rechunked: bool) -> None:
        images = normal(2, 6, *EVENT)
        ensemble = make(None if where == "memory" else tmp_path / "a.zarr", images)
        if rechunked:
            with mock.patch.object(rechunk, "_CHUNK_BYTES", 6 * 2 * 6 * 2 * 4):
                ensemble.finalize(rechunk=True)
        if where == "zip":
            ensemble = ensemble.save(tmp_path / "a.zip")
        for _ in range(2):  # the second time, chunks that are files are read in part
            got = np.full(images.shape, np.nan, np.float32)
            count = 0
            for tile in ensemble.tiles():
                got[..., tile.rows, tile.columns] = tile.draws
                count += 1
            np.testing.assert_array_equal(got, images)
            assert count > 5

    @pytest.mark.parametrize("threads", [1, 3])
    def test_tiles_come_in_order_from_threads(self, threads: int) -> None:
        ensemble = make(None, normal(2, 6, *EVENT))
        with mock.patch.object(torch, "get_num_threads", return_value=threads):
            found = list(ensemble.map_tiles(lambda draws: draws.sum()))
        assert [f[:2] for f in found] == [(t.rows, t.columns) for t in ensemble.tiles()]
        np.testing.assert_allclose([f[2] for f in found], [t.draws.sum() for t in ensemble.tiles()])

    @pytest.mark.parametrize("threads", [1, 3])
    def test_an_error_within_a_tile_is_passed_on(self, threads: int) -> None:
        ensemble = make(None, normal(2, 6, *EVENT))
        with mock.patch.object(torch, "get_num_threads", return_value=threads), pytest.raises(ZeroDivisionError):
            list(ensemble.map_tiles(lambda draws: 1 / 0))

    def test_only_committed_draws_count(self, tmp_path: Path) -> None:
        images = normal(2, 6, *EVENT)
        ensemble = make(tmp_path / "a.zarr", images, stop=4)
        np.testing.assert_allclose(ensemble.quantile(0.3), np.quantile(pooled(images[:, :4]), 0.3, axis=0), rtol=1e-6)
        assert all(tile.draws.shape[1] == 4 for tile in ensemble.tiles())

    @pytest.mark.parametrize("damage", ["flipped", "removed", "truncated"])
    @pytest.mark.parametrize("read_before", [False, True])
    def test_a_chunk_damaged_after_opening_is_refused(self, tmp_path: Path, damage: str, read_before: bool) -> None:
        ensemble = make(tmp_path / "a.zarr", normal(2, 6, *EVENT))
        if read_before:
            ensemble.quantile(0.5)
            if damage == "flipped":
                pytest.skip("chunks are held to their checksum once")
        file = tmp_path / "a.zarr" / "posterior/image/c.1.1.0.0.0"
        harm(file, damage, 17)
        with pytest.raises(StoreError):
            ensemble.quantile(0.5)


@pytest.mark.usefixtures("small_tiles")
class TestQuantiles:
    @given(
        values=st.lists(st.floats(-10, 10, width=32) | st.sampled_from([0.0, math.inf]), min_size=1, max_size=9),
        q=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    )
    def test_any_numbers(self, values: list[float], q: list[float]) -> None:
        got = _quantiles(np.array(values, np.float32)[:, None], np.array(q), "linear")[:, 0]
        with np.errstate(invalid="ignore"):
            want = np.quantile(np.array(values), q)
        known = ~np.isnan(want)  # between a number and infinity, NumPy gives NaN in places
        np.testing.assert_allclose(got[known], want[known], rtol=1e-6, atol=1e-6)

    def test_nan_is_passed_on_where_it_is(self) -> None:
        images = normal(2, 6, *EVENT)
        images[1, 3, 0, 2, 4] = math.nan
        found = np.isnan(make(None, images).quantile([0.1, 0.9]))
        assert found[:, 0, 2, 4].all()
        assert found.sum() == 2

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    def test_magnitudes(self, dtype: torch.dtype) -> None:
        images = normal(2, 6, 2, 5, 7, dtype=dtype)
        ensemble = make(None, images)
        sizes = np.abs(pooled(images))
        np.testing.assert_allclose(
            ensemble.quantile([0.2, 0.5], magnitude=True), np.quantile(sizes, [0.2, 0.5], axis=0), rtol=1e-5
        )
        got = ensemble.interval(0.5, magnitude=True)
        np.testing.assert_allclose(got, np.quantile(sizes, [0.25, 0.75], axis=0, method="weibull"), rtol=1e-5)
        assert list(got["channel"].values) == ["0", "1"]


class TestProbability:
    @settings(max_examples=10)
    @given(threshold=st.floats(-2, 2), seed=st.integers(0, 99))
    def test_shares_of_the_draws(self, threshold: float, seed: int) -> None:
        images = normal(2, 5, *EVENT, dtype=torch.float64, seed=seed)
        ensemble = make(None, images)
        want = (pooled(images) > threshold).mean(axis=0)
        np.testing.assert_array_equal(ensemble.probability(lambda x: x > threshold), want)
        np.testing.assert_array_equal(ensemble.probability_above(threshold), want)

    def test_magnitudes_of_complex_images(self) -> None:
        images = normal(2, 5, 1, 5, 7, dtype=torch.complex64)
        ensemble = make(None, images)
        want = (np.abs(pooled(images)) > 0.7).mean(axis=0)
        np.testing.assert_array_equal(ensemble.probability_above(0.7), want)
        np.testing.assert_array_equal(ensemble.probability(lambda x: abs(x) > 0.7), want)
        np.testing.assert_array_equal(
            ensemble.probability(lambda x: x.imag > 0), (pooled(images).imag > 0).mean(axis=0)
        )
        with pytest.raises(TypeError, match=r"gave float32, expected booleans.*compare abs"):
            ensemble.probability(abs)

    def test_events_see_whole_images(self) -> None:
        images = normal(2, 5, *EVENT)
        got = make(None, images).probability(lambda x: x > np.roll(x, 1, axis=-1))
        np.testing.assert_array_equal(got, (images > images.roll(1, -1)).double().mean(dim=(0, 1)))

    @pytest.mark.parametrize("shape", [(), (7,), (5, 1), (2, 1, 1), (2, 5, 7), (1, 1, 7)])
    def test_a_threshold_of_each_pixel(self, shape: tuple[int, ...]) -> None:
        images, threshold = normal(2, 5, *EVENT), normal(*shape, seed=1)
        got = make(None, images).probability_above(threshold)
        np.testing.assert_array_equal(got, (images > threshold).double().mean(dim=(0, 1)))

    def test_nan_has_no_probability(self) -> None:
        images = normal(2, 5, *EVENT)
        images[0, 0, 1, 2, 3] = math.nan
        ensemble = make(None, images)
        for got in (ensemble.probability_above(0.0), ensemble.probability(lambda x: x > 0)):
            assert np.isnan(got[1, 2, 3])
            assert np.isnan(got).sum() == 1

    @pytest.mark.parametrize(
        ("threshold", "error"),
        [(math.nan, ValueError), (1j, TypeError), ("high", TypeError), (np.zeros((5, 6)), ValueError),
         (np.zeros((1, 2, 5, 7)), ValueError)],
    )  # fmt: skip
    def test_other_thresholds_are_refused(self, threshold: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"probability_above: threshold has"):
            make(None, normal(1, 2, *EVENT)).probability_above(threshold)

    def test_an_event_of_another_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"gave shape \(2, 5, 7\), expected \(2, 2, 5, 7\)"):
            make(None, normal(1, 2, *EVENT)).probability(lambda x: (x > 0)[:, 0])


class TestRegions:
    def test_each_draw_has_a_mean_and_a_volume(self) -> None:
        images = normal(3, 6, *EVENT, dtype=torch.float64)
        mask = np.zeros(EVENT[1:], bool)
        mask[1:3, 2:6] = True
        found = make(None, images).regions({"a": mask, "b": ~mask}, threshold=0.4, level=0.8, pixel_size=2.5)
        inside = images.numpy()[..., mask]
        np.testing.assert_allclose(found.draws["mean"].sel(region="a"), inside.mean(axis=(2, 3)), rtol=1e-12)
        volumes = (inside > 0.4).sum(axis=(2, 3)) * 2.5
        np.testing.assert_array_equal(found.draws["volume"].sel(region="a"), volumes)
        row = found.table.sel(region="a")["volume"]
        assert float(row.sel(statistic="estimate")) == pytest.approx(volumes.mean())
        assert float(row.sel(statistic="std")) == pytest.approx(volumes.std(ddof=1))
        low, high = np.quantile(volumes, [0.1, 0.9], method="weibull")
        assert [float(row.sel(statistic=s)) for s in ("lower", "upper")] == pytest.approx([low, high])
        other = images.numpy()[..., ~mask].mean(axis=(2, 3))
        np.testing.assert_allclose(found.draws["mean"].sel(region="b"), other, rtol=1e-12)

    def test_it_prints_as_a_table(self) -> None:
        images = torch.arange(4.0).reshape(1, 4, 1, 1, 1).expand(1, 4, *EVENT)
        told = repr(make(None, images.contiguous()).regions({"all": np.ones(EVENT, bool)}, threshold=5.0, level=0.5))
        heads, mean, volume = told.splitlines()
        assert heads.split() == ["50%", "intervals", "estimate", "std", "lower", "upper"]
        assert mean.split() == ["mean", "of", "all", "1.5", "1.291", "0.25", "2.75"]
        assert volume.split() == ["volume", "of", "all", "0", "0", "0", "0"]

    def test_pixels_that_vary_together_widen_the_interval(self) -> None:
        """The point of going by draws: a common offset does not average out over a region."""
        alone = normal(1, 200, *EVENT)
        together = normal(1, 200, 1, 1, 1).expand(1, 200, *EVENT)
        spread = [
            float(make(None, x.contiguous()).regions(np.ones(EVENT, bool)).table["mean"][0, 1])
            for x in (alone, together)
        ]
        assert spread[1] > 5 * spread[0]

    def test_complex_images_count_by_magnitude(self) -> None:
        images = normal(2, 3, 1, 5, 7, dtype=torch.complex64)
        found = make(None, images).regions(torch.ones(5, 7), threshold=1.0)
        np.testing.assert_allclose(found.draws["mean"][0], images.abs().mean(dim=(2, 3, 4)), rtol=1e-5)
        np.testing.assert_array_equal(found.draws["volume"][0], (images.abs() > 1).sum(dim=(2, 3, 4)))

    def test_intervals_hold_what_they_say(self) -> None:
        """The truth is one more draw: the share of 400 regions whose interval holds it is the level."""
        images = normal(39, 1, 1, 20, 20, seed=3)
        truth = normal(1, 20, 20, seed=4).numpy()
        masks = {}
        for k in range(400):
            masks[str(k)] = np.zeros((20, 20), bool)
            masks[str(k)].flat[k] = True
        table = make(None, images).regions(masks, level=0.9).table["mean"]
        held = ((table[:, 2] <= truth.ravel()) & (truth.ravel() <= table[:, 3])).mean()
        assert abs(float(held) - 0.9) < 5 * math.sqrt(0.09 / 400)

    @pytest.mark.parametrize(
        ("masks", "options", "error", "message"),
        [
            (np.ones((5, 6)), {}, ValueError, r"mask region has shape \(5, 6\), expected \(5, 7\) or \(2, 5, 7\)"),
            ({"a": np.zeros((5, 7))}, {}, ValueError, "mask a leaves no pixel"),
            (np.full((5, 7), 0.5), {}, TypeError, "expected booleans"),
            ({}, {}, ValueError, "no masks"),
            (np.ones((5, 7)), {"level": 1.0}, ValueError, "level is 1.0"),
            (np.ones((5, 7)), {"threshold": math.nan}, ValueError, "threshold must be finite"),
            (np.ones((5, 7)), {"pixel_size": 0.0}, ValueError, "pixel_size must be positive"),
        ],
    )
    def test_bad_input_is_refused(self, masks: Any, options: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            make(None, normal(1, 2, *EVENT)).regions(masks, **options)


@pytest.mark.usefixtures("small_tiles")
class TestPixelDiagnostics:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
    def test_they_are_those_of_the_draws(self, dtype: torch.dtype) -> None:
        images = normal(3, 12, 2, 3, 4, dtype=dtype)
        ensemble = make(None, images)
        draws = torch.from_numpy(ensemble.image.values.copy())
        found = pixel_diagnostics(
            ensemble, ["rhat", "ess_bulk", "ess_tail", "ess_mean", "ess_std", "mcse_mean", "mcse_std"]
        )
        want = {
            "rhat": rhat(draws), "ess_bulk": ess(draws), "ess_tail": ess(draws, "tail"), "ess_mean": ess(draws, "mean"),
            "ess_std": ess(draws, "std"), "mcse_mean": mcse(draws), "mcse_std": mcse(draws, "std"),
        }  # fmt: skip
        assert set(found.data_vars) == set(want)
        for name, values in want.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)

    def test_single_precision_takes_no_part_of_the_ranks(self) -> None:
        """Ranks of float32 numbers are those of the same numbers in double precision, ties and signed zeros too."""
        images = normal(3, 24, 1, 4, 5)
        images[..., 0, :] = (images[..., 0, :] * 2).round()
        images[..., 1, :] *= 1e-38
        images[:, ::7, :, 2] = -0.0
        images[:, 1::7, :, 2] = 0.0
        images[..., 3, :] += 1e6
        found = pixel_diagnostics(make(None, images), ["rhat", "ess_bulk"])
        np.testing.assert_allclose(found["rhat"], rhat(images.double()), rtol=1e-12)
        np.testing.assert_allclose(found["ess_bulk"], ess(images.double()), rtol=1e-12)

    def test_a_pixel_whose_chains_disagree_stands_out(self) -> None:
        images = normal(3, 50, 1, 3, 4)
        images[0, :, 0, 1, 2] += 3
        found = pixel_diagnostics(make(None, images), "rhat")["rhat"]
        assert float(found[0, 1, 2]) > 1.3
        assert int((found > 1.2).sum()) == 1

    @pytest.mark.parametrize(("chains", "draws", "unknown"), [(1, 8, {"rhat"}), (3, 3, {"rhat", "ess_bulk"})])
    def test_what_cannot_be_said_is_nan(self, chains: int, draws: int, unknown: set[str]) -> None:
        found = pixel_diagnostics(make(None, normal(chains, draws, 1, 2, 2)), ["rhat", "ess_bulk"])
        assert {name for name in found.data_vars if np.isnan(found[name]).all()} == unknown

    @pytest.mark.parametrize("names", [["rhat", "r_hat"], [], "ess"])
    def test_unknown_statistics_are_refused(self, names: Any) -> None:
        with pytest.raises(ValueError, match="expected some of rhat, ess_bulk"):
            pixel_diagnostics(make(None, normal(2, 4, *EVENT)), names)

    def test_a_tensor_is_refused(self) -> None:
        with pytest.raises(TypeError, match="got a Tensor, expected an ensemble"):
            pixel_diagnostics(normal(2, 4, *EVENT))  # type: ignore[arg-type]


class TestFinalize:
    def make_by_pixel(self, path: Path, images: Tensor, **options: Any) -> Ensemble:
        ensemble = make(path, images, **options)
        with mock.patch.object(rechunk, "_CHUNK_BYTES", 6 * images[:, :, :, 0, 0].nbytes):
            ensemble.finalize(rechunk=True)
        return ensemble

    def test_the_copy_is_read(self, tmp_path: Path) -> None:
        """Planted: other numbers in the copy show."""
        images = normal(2, 6, *EVENT)
        self.make_by_pixel(tmp_path / "a.zarr", images)
        ensemble = open_ensemble(tmp_path / "a.zarr")
        np.testing.assert_allclose(ensemble.quantile(0.5), np.quantile(pooled(images), 0.5, axis=0), rtol=1e-6)
        with ensemble._location.together("planted") as root:
            root["posterior_by_pixel/image"][...] = 7.0
        assert (open_ensemble(tmp_path / "a.zarr").quantile(0.5) == 7.0).all()

    @pytest.mark.parametrize("damage", ["flipped", "removed", "truncated"])
    def test_a_damaged_copy_is_refused(self, tmp_path: Path, damage: str) -> None:
        self.make_by_pixel(tmp_path / "a.zarr", normal(2, 6, *EVENT))
        file = tmp_path / "a.zarr" / "posterior_by_pixel/image/c.0.0.0.1.1"
        harm(file, damage, 5)
        ensemble = open_ensemble(tmp_path / "a.zarr")
        with pytest.raises(StoreError):
            ensemble.quantile(0.5)
        ensemble.finalize(rechunk=True)
        assert ensemble.quantile(0.5).shape == EVENT

    def test_the_tree_does_not_hold_the_draws_twice(self, tmp_path: Path) -> None:
        ensemble = self.make_by_pixel(tmp_path / "a.zarr", normal(2, 6, *EVENT))
        assert "posterior_by_pixel" not in open_ensemble(tmp_path / "a.zarr").tree.children
        ensemble.finalize(rechunk=False)
        assert not (tmp_path / "a.zarr/posterior_by_pixel").exists()
        assert ensemble.quantile(0.5).shape == EVENT

    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_a_stop_in_the_middle_leaves_a_store_that_opens(self, tmp_path: Path, after: int) -> None:
        images = normal(2, 6, *EVENT)
        path = tmp_path / "a.zarr"
        ensemble = make(path, images)
        band, calls = tiles.Draws.read, []

        def failing(draws: Any, *where: slice) -> Any:
            calls.append(where)
            if len(calls) > after:
                raise KeyboardInterrupt
            return band(draws, *where)

        small = mock.patch.object(tiles, "WHOLE_READ_BYTES", 1)
        chunk = mock.patch.object(rechunk, "_CHUNK_BYTES", 4 * images[:, :, :, 0, 0].nbytes)
        with small, chunk, mock.patch.object(tiles.Draws, "read", failing), pytest.raises(KeyboardInterrupt):
            ensemble.finalize(rechunk=True)
        assert len(calls) == after + 1
        shutil.copytree(path, tmp_path / "killed.zarr")  # what a kill would leave
        for found in (ensemble, open_ensemble(path), open_ensemble(tmp_path / "killed.zarr")):
            np.testing.assert_allclose(found.quantile(0.5), np.quantile(pooled(images), 0.5, axis=0), rtol=1e-6)
        with chunk:
            ensemble.finalize(rechunk=True)
        np.testing.assert_allclose(
            open_ensemble(path).quantile(0.5), np.quantile(pooled(images), 0.5, axis=0), rtol=1e-6
        )

    def test_a_copy_of_fewer_draws_is_not_read(self, tmp_path: Path) -> None:
        images = normal(2, 6, *EVENT)
        self.make_by_pixel(tmp_path / "a.zarr", images, stop=4)
        writer, _ = EnsembleWriter.resume(tmp_path / "a.zarr", expect={})
        for k in (4, 5):
            writer.append(images[:, k], {})
        writer.commit()
        ensemble = writer.close()
        assert ensemble.num_draws == 6
        np.testing.assert_allclose(ensemble.quantile(0.5), np.quantile(pooled(images), 0.5, axis=0), rtol=1e-6)
