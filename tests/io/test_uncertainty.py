"""Uncertainty analysis: equal to what NumPy, xarray and ArviZ make of all draws at once, whatever the tiles."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import potentia as pt
from potentia import inference
from potentia.io import EnsembleWriter, StoreError
from potentia.io import _schema as schema
from potentia.io import _tiles as tiles


def written(images: torch.Tensor, path: Path | None = None, **options: Any) -> pt.Ensemble:
    """An ensemble of images (chain, draw, C, H, W)."""
    chains, draws, *event = images.shape
    wide = images.dtype in (torch.float64, torch.complex128)
    writer = EnsembleWriter.create(
        path, num_chains=chains, num_draws=draws, event_shape=event, is_complex=images.is_complex(),
        dtype="float64" if wide else "float32", **options,
    )  # fmt: skip
    for k in range(draws):
        writer.append(images[:, k], {"lp": 0.0, "n_grad": k})
        if writer.ready_to_commit:
            writer.commit()
    return writer.close()


def random_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def small_tiles() -> Iterator[None]:
    """Blocks of three draws, and tiles of few pixels."""
    with mock.patch.object(schema, "_CHUNK_BYTES", 3 * 8 * 2 * 6 * 5), mock.patch.object(tiles, "TILE_BYTES", 2000):
        yield


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(1, 2), st.integers(1, 6), st.integers(1, 5)),
    is_complex=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_statistics_are_those_of_all_draws_together(shape: tuple[int, ...], is_complex: bool, seed: int) -> None:
    images = random_images(*shape, seed=seed, dtype=torch.complex128 if is_complex else torch.float64)
    with (
        mock.patch.object(schema, "_CHUNK_BYTES", 2 * images[0, 0].nbytes),
        mock.patch.object(tiles, "TILE_BYTES", 700),
    ):
        ensemble = written(images)
        flat = images.flatten(0, 1).numpy()
        plain = np.abs(flat) if is_complex else flat
        np.testing.assert_allclose(ensemble.probability_above(0.3), (plain > 0.3).mean(0), rtol=1e-12)
        hit = ensemble.probability(lambda x: np.abs(x) > 1.0)
        np.testing.assert_allclose(hit, (np.abs(flat) > 1.0).mean(0), rtol=1e-12)
        whole = ensemble.image.values.reshape(-1, *ensemble.image.shape[2:])
        np.testing.assert_allclose(ensemble.quantile([0.1, 0.5, 0.9]), np.quantile(whole, [0.1, 0.5, 0.9], axis=0))
        table = ensemble.regions({"all": np.ones(shape[3:])}, threshold=0.3, pixel_size=2.0)
        per_draw = plain.reshape(len(plain), -1)
        volume = 2.0 * (per_draw > 0.3).sum(1)
        found = table.table.sel(region="all")
        assert float(found["mean"].sel(statistic="estimate")) == pytest.approx(per_draw.mean())
        assert float(found["volume"].sel(statistic="estimate")) == pytest.approx(volume.mean())
        assert float(found["mean"].sel(statistic="std")) == pytest.approx(per_draw.mean(1).std(ddof=1))


def test_the_tiles_cover_every_pixel_once(small_tiles: None) -> None:
    images = random_images(2, 7, 2, 6, 5)
    ensemble = written(images)
    seen = np.zeros((6, 5), int)
    parts = 0
    for tile in ensemble.tiles(2000):
        np.testing.assert_array_equal(tile.draws, images.numpy()[..., tile.rows, tile.columns])
        seen[tile.rows, tile.columns] += 1
        parts += 1
    assert (seen == 1).all()
    assert parts > 1


def test_diagnostics_of_pixels_are_arvizs(small_tiles: None) -> None:
    arviz = pytest.importorskip("arviz")
    images = random_images(3, 20, 1, 4, 5)
    images[:, 1:] += 0.7 * images[:, :-1]
    images[0, :, 0, 0, 0] += 4.0  # a chain that stands apart
    found = inference.pixel_diagnostics(written(images))
    for y, x in [(0, 0), (1, 3), (3, 4)]:
        draws = images[:, :, 0, y, x].numpy()
        at = found.isel(channel=0, y=y, x=x)
        assert float(at["rhat"]) == pytest.approx(float(arviz.rhat(draws)), abs=1e-6)
        assert float(at["ess_bulk"]) == pytest.approx(float(arviz.ess(draws)), rel=1e-6)
        assert float(at["ess_tail"]) == pytest.approx(float(arviz.ess(draws, method="tail")), rel=1e-6)
        assert float(at["mcse_mean"]) == pytest.approx(float(arviz.mcse(draws)), rel=1e-6)
    assert float(found["rhat"][0, 0, 0]) > 1.3 > float(found["rhat"][0, 2, 2])
    with pytest.raises(ValueError, match=r"statistics are \['r_hat'\], expected some of rhat"):
        inference.pixel_diagnostics(written(images), "r_hat")


def test_components_are_those_of_the_covariance(small_tiles: None) -> None:
    images = random_images(2, 9, 1, 6, 5) * torch.linspace(0.1, 3, 30, dtype=torch.float64).reshape(6, 5)
    ensemble = written(images)
    found = ensemble.components(17)
    flat = images.flatten(0, 1).flatten(1).numpy()
    values = np.linalg.eigvalsh(np.cov(flat.T))[::-1][:17]
    np.testing.assert_allclose(found["explained_variance"], values, rtol=1e-9)
    basis = found["component"].values.reshape(17, -1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(17), atol=1e-9)
    back = found["mean"].values.ravel() + found["score"].values.reshape(18, 17) @ basis
    np.testing.assert_allclose(back, flat, atol=1e-9)
    assert float(found["explained_variance_ratio"].sum()) == pytest.approx(1.0)


def test_distances_are_root_mean_squares(small_tiles: None) -> None:
    images = random_images(2, 4, 1, 6, 5)
    flat = images.flatten(0, 1).flatten(1).numpy()
    want = np.sqrt(np.square(flat[:, None] - flat[None]).mean(-1))
    np.testing.assert_allclose(written(images).distances(), want, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_modes_are_counted(seed: int) -> None:
    pytest.importorskip("sklearn")
    one = random_images(4, 50, 1, 6, 5, seed=seed)
    assert written(one).modes().count == 1
    two = one.clone()
    two[:1] += 3.0  # a quarter of the draws, 3 std in each of 30 pixels
    modes = written(two).modes()
    assert modes.count == 2
    assert modes.weights == pytest.approx((0.75, 0.25))
    assert modes.transitions == 0
    assert (modes.labels.values == np.array([1, 0, 0, 0])[:, None]).all()


def test_calibration_sees_intervals_that_are_too_narrow() -> None:
    g = torch.Generator().manual_seed(3)
    std = torch.linspace(0.5, 2.0, 400, dtype=torch.float64).reshape(20, 20)
    truth = std * torch.randn(1, 20, 20, generator=g, dtype=torch.float64)
    images = std * torch.randn(4, 60, 1, 20, 20, generator=g, dtype=torch.float64)
    right = written(images).calibration(truth, num_bins=4)
    # 400 pixels: the standard error of coverage is below 0.025, that of a root mean square 0.035.
    np.testing.assert_allclose(right.coverage, right.coverage["level"], atol=0.1)
    assert right.error_over_std == pytest.approx(1.0, abs=0.12)
    table = right.reliability
    np.testing.assert_allclose(table["rmse"] / table["predicted"], 1.0, atol=0.3)
    assert (np.diff(table["predicted"]) > 0).all()
    assert int(table["count"].sum()) == 400
    narrow = written(0.5 * images).calibration(truth)
    assert narrow.error_over_std == pytest.approx(2.0, abs=0.25)
    assert float(narrow.coverage.sel(level=0.9)) < 0.7
    with pytest.raises(ValueError, match="the store holds no truth"):
        written(images).calibration()


def test_rechunked_draws_give_the_same_and_are_not_read_when_stale(tmp_path: Path) -> None:
    images = random_images(2, 6, 1, 6, 5)
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 8 * 30):
        ensemble = written(images, tmp_path / "a.zarr")
    before = ensemble.quantile(0.3).values
    ensemble.finalize(rechunk=True)
    again = pt.open_ensemble(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.quantile(0.3), before)
    assert again.verify() > 0
    assert torch.equal(again.samples(), images)
    again.finalize()
    np.testing.assert_array_equal(pt.open_ensemble(tmp_path / "a.zarr").quantile(0.3), before)


def test_dask_computes_what_memory_does(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    images = random_images(2, 6, 1, 6, 5)
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 8 * 30):
        ensemble = written(images, tmp_path / "a.zarr")
    lazy = ensemble.dask()["posterior"]["image"]
    assert lazy.chunks is not None
    np.testing.assert_allclose(lazy.max(("chain", "draw")).compute(), images.amax((0, 1)))
    assert ensemble.dask({"chain": -1, "draw": -1, "y": 2})["posterior"]["image"].chunks[3] == (2, 2, 2)


class TestExport:
    @pytest.fixture
    def ensemble(self, tmp_path: Path) -> pt.Ensemble:
        images = random_images(2, 5, 1, 6, 5, dtype=torch.complex64)
        made = written(images, tmp_path / "a.zarr", observed={"y": images[0, 0]}, attrs={"seed": 3})
        made.set_summary("map", images[1, 2])
        return pt.open_ensemble(tmp_path / "a.zarr")

    def test_netcdf_holds_everything(self, ensemble: pt.Ensemble, tmp_path: Path) -> None:
        pytest.importorskip("h5netcdf")
        file = ensemble.to_netcdf(tmp_path / "a.nc")
        with xr.open_datatree(file, engine="h5netcdf") as tree:
            np.testing.assert_array_equal(tree["posterior"]["image"], ensemble.image)
            assert list(tree["posterior"]["channel"].values) == ["re", "im"]
            assert "y" in tree["observed_data"]
        with pytest.raises(FileExistsError):
            ensemble.to_netcdf(file)
        with pytest.raises(ValueError, match=r"\.nc"):
            ensemble.to_netcdf(tmp_path / "a.txt")

    def test_nifti_holds_an_image(self, ensemble: pt.Ensemble, tmp_path: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        affine = np.diag([2.0, 2.0, 3.0, 1.0])
        file = ensemble.to_nifti(tmp_path / "mean.nii.gz", affine=affine)
        image = nibabel.load(file)
        mean = ensemble.samples().mean((0, 1))[0].numpy()
        np.testing.assert_allclose(np.asarray(image.dataobj)[..., 0], mean.T, atol=1e-6)
        np.testing.assert_array_equal(image.affine, affine)
        kept = nibabel.load(ensemble.to_nifti(tmp_path / "map.nii", "map"))
        np.testing.assert_allclose(np.asarray(kept.dataobj)[..., 0], ensemble.samples()[1, 2, 0].numpy().T, atol=1e-6)
        with pytest.raises(ValueError, match="median"):
            ensemble.to_nifti(tmp_path / "median.nii", "median")

    def test_arviz_takes_it(self, ensemble: pt.Ensemble) -> None:
        arviz = pytest.importorskip("arviz")
        data = ensemble.to_arviz()
        np.testing.assert_array_equal(data["posterior"]["image"], ensemble.image)
        assert float(arviz.rhat(data)["image"].max()) > 0

    def test_figures_are_pictures(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        images = random_images(2, 6, 1, 12, 10)
        ensemble = written(images)
        found = ensemble.figures(tmp_path / "figures", truth=images[0, 0])
        names = {path.name for path in found}
        assert {"overview.png", "mean.png", "std.png", "error.png", "interval.png", "calibration.png"} <= names
        assert all(path.stat().st_size > 3000 for path in found)
        with pytest.raises(FileExistsError):
            ensemble.figures(tmp_path / "figures", truth=images[0, 0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.probability_above("high"), TypeError, "expected real numbers"),
        (lambda e: e.probability_above(np.zeros(7)), ValueError, r"broadcast against \(1, 6, 5\)"),
        (lambda e: e.probability(lambda x: x), TypeError, "probability"),
        (lambda e: e.probability(lambda x: x[:, 0] > 0), ValueError, "probability"),
        (lambda e: e.regions(np.zeros((6, 5))), ValueError, "pixel"),
        (lambda e: e.regions(np.ones((5, 6))), ValueError, "shape"),
        (lambda e: e.regions({}), ValueError, "no masks"),
        (lambda e: e.regions(np.ones((6, 5)), level=1.0), ValueError, "level"),
        (lambda e: e.components(0), ValueError, "components"),
        (lambda e: e.components(10**6), ValueError, "components"),
        (lambda e: e.distances(every=0), ValueError, "every"),
        (lambda e: e.modes(level=0.0), ValueError, "level"),
        (lambda e: e.calibration(np.zeros((1, 6, 5)), levels=[1.0]), ValueError, "levels"),
        (lambda e: e.calibration(np.zeros((1, 5, 6))), ValueError, "shape"),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(written(random_images(2, 5, 1, 6, 5)))


def test_a_damaged_store_gives_no_numbers(tmp_path: Path) -> None:
    ensemble = written(random_images(2, 5, 1, 6, 5), tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "posterior" / "image" / "c.1.0.0.0.0"
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(bytes(raw))
    opened = pt.open_ensemble(tmp_path / "a.zarr")
    for call in (opened.verify, lambda: opened.quantile(0.5), opened.samples, lambda: opened.probability_above(0.0),
                 lambda: inference.pixel_diagnostics(opened), lambda: ensemble.components(2)):  # fmt: skip
        with pytest.raises(StoreError, match="damaged"):
            call()
