"""Exports read back, by the tools that they are for, as what was in the ensemble."""

import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr
from ensembles import ensemble_of, normal
from torch import Tensor

from potentia.io import Ensemble, _plot

nibabel = pytest.importorskip("nibabel")
arviz = pytest.importorskip("arviz")
pytest.importorskip("h5netcdf")
dask = pytest.importorskip("dask")


def make(path: Path | None, images: Tensor, **options: Any) -> Ensemble:
    return ensemble_of(images, path, block=2, **options)


class TestDask:
    def test_users_may_go_on_with_it(self, tmp_path: Path) -> None:
        images = normal(2, 6, 2, 4, 5)
        ensemble = make(tmp_path / "a.zarr", images)
        image = ensemble.dask()["posterior"]["image"]
        assert image.chunks == ((1, 1), (2, 2, 2), (2,), (4,), (5,))
        with dask.config.set(scheduler="threads", num_workers=2):
            np.testing.assert_allclose(image.max(("chain", "draw")), images.amax(dim=(0, 1)))
        other = ensemble.dask({"y": 2, "draw": 3})["posterior"]["image"]
        assert other.chunks[1] == (3, 3)
        assert other.chunks[3] == (2, 2)
        assert ensemble.image.chunks is None


class TestArviZ:
    def test_it_takes_the_ensemble(self) -> None:
        images = normal(4, 30, 1, 2, 2)
        data = make(None, images, observed={"y": images[0, 0]}).to_arviz()
        want = arviz.rhat(arviz.convert_to_dataset(images[:, :, 0, 1, 1].numpy()))["x"]
        assert float(arviz.rhat(data)["image"][0, 1, 1]) == pytest.approx(float(want))
        assert set(data.groups()) >= {"posterior", "sample_stats", "observed_data"}
        assert "writer" not in data.groups()


class TestNetCDF:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_everything_is_read_back(self, tmp_path: Path, dtype: torch.dtype) -> None:
        images = normal(2, 6, 2, 4, 5, dtype=dtype)
        attrs = {"seed": 4, "note": None, "nested": {"a": [1, 2]}, "flag": True}
        ensemble = make(tmp_path / "a.zarr", images, constant={"truth": images[0, 0]}, attrs=attrs)
        ensemble.set_summary("map", images[0, 0])
        path = ensemble.to_netcdf(tmp_path / "a.nc")
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            for name in ("posterior", "posterior_summary", "sample_stats", "constant_data"):
                xr.testing.assert_equal(tree[name].to_dataset(), ensemble.tree[name].to_dataset())
            assert '"seed": 4' in tree.attrs["potentia"]
            assert tree.attrs["inference_library"] == "potentia"
            assert "writer" not in tree.children
        assert [p.name for p in tmp_path.iterdir() if p.suffix == ".nc" or p.name.startswith(".")] == ["a.nc"]

    def test_arviz_reads_it(self, tmp_path: Path) -> None:
        images = normal(2, 6, 1, 4, 5)
        data = arviz.from_netcdf(make(None, images).to_netcdf(tmp_path / "a.nc"), engine="h5netcdf")
        np.testing.assert_array_equal(data["posterior"]["image"], images)

    def test_a_file_is_replaced_only_when_asked(self, tmp_path: Path) -> None:
        ensemble = make(None, normal(1, 2, 1, 2, 2))
        (tmp_path / "a.nc").write_text("mine")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            ensemble.to_netcdf(tmp_path / "a.nc")
        assert (tmp_path / "a.nc").read_text() == "mine"
        ensemble.to_netcdf(tmp_path / "a.nc", overwrite=True)
        assert (tmp_path / "a.nc").stat().st_size > 1000

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        ensemble = make(None, normal(1, 2, 1, 2, 2))
        with (
            mock.patch.object(xr.DataTree, "to_netcdf", side_effect=OSError("full")),
            pytest.raises(OSError, match="full"),
        ):
            ensemble.to_netcdf(tmp_path / "a.nc")
        assert list(tmp_path.iterdir()) == []


class TestNifti:
    def test_axes_and_affine(self, tmp_path: Path) -> None:
        ensemble = make(None, normal(2, 3, 1, 4, 5))
        affine = np.diag([0.5, 0.7, 3.0, 1.0])
        for what, want in (("mean", ensemble.mean()), ("std", ensemble.std())):
            read = nibabel.load(ensemble.to_nifti(tmp_path / f"{what}.nii.gz", what, affine))
            assert read.shape == (5, 4, 1)
            np.testing.assert_allclose(np.asarray(read.dataobj)[:, :, 0].T, want[0], rtol=1e-6)
            np.testing.assert_allclose(read.affine, affine)
            np.testing.assert_allclose(read.header.get_zooms(), [0.5, 0.7, 3.0])

    def test_channels_and_summaries(self, tmp_path: Path) -> None:
        images = normal(2, 3, 3, 4, 5)
        ensemble = make(None, images)
        ensemble.set_summary("map", images[0, 1])
        read = np.asarray(nibabel.load(ensemble.to_nifti(tmp_path / "a.nii", "map")).dataobj)
        assert read.shape == (5, 4, 1, 3)
        np.testing.assert_array_equal(read[:, :, 0].transpose(2, 1, 0), images[0, 1])

    def test_complex_images(self, tmp_path: Path) -> None:
        images = normal(2, 3, 1, 4, 5, dtype=torch.complex64)
        ensemble = make(None, images)
        read = np.asarray(nibabel.load(ensemble.to_nifti(tmp_path / "a.nii")).dataobj)
        assert read.dtype == np.complex64
        np.testing.assert_allclose(read[:, :, 0].T, images.mean(dim=(0, 1))[0], rtol=1e-5)
        spread = np.asarray(nibabel.load(ensemble.to_nifti(tmp_path / "b.nii", "std")).dataobj)
        np.testing.assert_allclose(spread[:, :, 0].T, images.flatten(0, 1).std(dim=0)[0], rtol=1e-5)

    def test_arrays_of_ones_own(self, tmp_path: Path) -> None:
        ensemble = make(None, normal(2, 3, 1, 4, 5))
        chance = ensemble.probability_above(0.2)
        read = nibabel.load(ensemble.to_nifti(tmp_path / "a.nii", chance))
        np.testing.assert_allclose(np.asarray(read.dataobj)[:, :, 0].T, chance[0], rtol=1e-6)
        assert b"probability" in read.header["descrip"].item()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (("a.nii", "median"), ValueError, "what is 'median', expected one of mean, std"),
            (("a.nii", "mean", np.eye(3)), ValueError, r"affine has shape \(3, 3\), expected a finite \(4, 4\)"),
            (("a.nii", "mean", np.full((4, 4), np.nan)), ValueError, "expected a finite"),
            (("a.nii", np.ones((4, 5))), ValueError, r"what has shape \(4, 5\)"),
            (("a.img",), ValueError, r"ends in \.nii or \.nii\.gz"),
            (("nowhere/a.nii",), FileNotFoundError, "does not exist"),
        ],
    )
    def test_bad_input_is_refused(self, tmp_path: Path, arguments: Any, error: type[Exception], message: str) -> None:
        ensemble = make(None, normal(2, 3, 1, 4, 5))
        with pytest.raises(error, match=message):
            ensemble.to_nifti(tmp_path / arguments[0], *arguments[1:])
        assert list(tmp_path.iterdir()) == []


class TestFigures:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_a_folder_of_pictures(self, tmp_path: Path, dtype: torch.dtype) -> None:
        pytest.importorskip("matplotlib")
        images, truth = normal(2, 8, 1, 6, 8, dtype=dtype), normal(1, 6, 8, dtype=dtype, seed=1)
        ensemble = make(None, images)
        known = {"overview", "mean", "std", "interval", "components", "error", "calibration"}
        for told, names in ((None, known - {"error", "calibration"}), (truth, known)):
            paths = ensemble.figures(tmp_path / "new" / "folder", truth=told, overwrite=True)
            assert {p.stem for p in paths} == names
            assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
        with pytest.raises(FileExistsError, match="overwrite=True"):
            ensemble.figures(tmp_path / "new" / "folder")

    def test_one_sample_has_a_mean_only(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        paths = make(None, normal(1, 1, 1, 4, 4)).figures(tmp_path)
        assert {p.stem for p in paths} == {"overview", "mean"}

    def test_pictures_do_not_read_all_draws_at_once(self) -> None:
        pytest.importorskip("matplotlib")
        ensemble = make(None, normal(2, 6, 1, 4, 4))
        with mock.patch.object(Ensemble, "samples", side_effect=AssertionError):
            assert _plot.plot_ensemble(ensemble, None, None, 2) is not None

    @pytest.mark.parametrize("truth", [normal(1, 4, 5), math.nan * normal(1, 4, 4)])
    def test_another_truth_is_refused(self, tmp_path: Path, truth: Tensor) -> None:
        pytest.importorskip("matplotlib")
        with pytest.raises(ValueError, match="figures: truth has"):
            make(None, normal(2, 3, 1, 4, 4)).figures(tmp_path, truth=truth)

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("")
        with pytest.raises(FileExistsError, match="expected a folder"):
            make(None, normal(2, 3, 1, 4, 4)).figures(tmp_path / "a")
