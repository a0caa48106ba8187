"""Analysis of ensembles on disk: through Dask, pixel by pixel, and where the store is damaged."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ensembles import ensemble_of
from ensembles import normal as normal_images

import potentia as pt
from potentia import inference
from potentia.io import StoreError

normal = partial(normal_images, dtype=torch.float64)


def test_diagnostics_of_pixels_are_arvizs() -> None:
    arviz = pytest.importorskip("arviz")
    images = normal(3, 20, 1, 4, 5)
    images[:, 1:] += 0.7 * images[:, :-1]
    images[0, :, 0, 0, 0] += 4.0  # a chain that stands apart
    found = inference.pixel_diagnostics(ensemble_of(images))
    for y, x in [(0, 0), (1, 3), (3, 4)]:
        draws = images[:, :, 0, y, x].numpy()
        at = found.isel(channel=0, y=y, x=x)
        assert float(at["rhat"]) == pytest.approx(float(arviz.rhat(draws)), abs=1e-6)
        assert float(at["ess_bulk"]) == pytest.approx(float(arviz.ess(draws)), rel=1e-6)
        assert float(at["ess_tail"]) == pytest.approx(float(arviz.ess(draws, method="tail")), rel=1e-6)
        assert float(at["mcse_mean"]) == pytest.approx(np.asarray(arviz.mcse(draws)).item(), rel=1e-6)
    assert float(found["rhat"][0, 0, 0]) > 1.3 > float(found["rhat"][0, 2, 2])
    with pytest.raises(ValueError, match=r"statistics are \['r_hat'\], expected some of rhat"):
        inference.pixel_diagnostics(ensemble_of(images), "r_hat")


def test_dask_computes_what_memory_does(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    images = normal(2, 6, 1, 6, 5)
    ensemble = ensemble_of(images, tmp_path / "a.zarr", block=2)
    lazy = ensemble.dask()["posterior"]["image"]
    assert lazy.chunks is not None
    np.testing.assert_allclose(lazy.max(("chain", "draw")).compute(), images.amax((0, 1)))
    assert ensemble.dask({"chain": -1, "draw": -1, "y": 2})["posterior"]["image"].chunks[3] == (2, 2, 2)


def test_a_damaged_store_gives_no_numbers(tmp_path: Path) -> None:
    ensemble = ensemble_of(normal(2, 5, 1, 6, 5), tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "posterior" / "image" / "c.1.0.0.0.0"
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(bytes(raw))
    opened = pt.open_ensemble(tmp_path / "a.zarr")
    for call in (opened.verify, lambda: opened.quantile(0.5), opened.samples, lambda: opened.probability_above(0.0),
                 lambda: inference.pixel_diagnostics(opened), lambda: ensemble.components(2)):  # fmt: skip
        with pytest.raises(StoreError, match="damaged"):
            call()
