"""Analysis of ensembles on disk: through Dask, pixel by pixel, and where the store is damaged."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import potentia as pt
from potentia import inference
from potentia.io import EnsembleWriter, StoreError
from potentia.io import _schema as schema


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


def test_diagnostics_of_pixels_are_arvizs() -> None:
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


def test_dask_computes_what_memory_does(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    images = random_images(2, 6, 1, 6, 5)
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 8 * 30):
        ensemble = written(images, tmp_path / "a.zarr")
    lazy = ensemble.dask()["posterior"]["image"]
    assert lazy.chunks is not None
    np.testing.assert_allclose(lazy.max(("chain", "draw")).compute(), images.amax((0, 1)))
    assert ensemble.dask({"chain": -1, "draw": -1, "y": 2})["posterior"]["image"].chunks[3] == (2, 2, 2)


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
