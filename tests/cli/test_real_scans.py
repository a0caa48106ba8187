"""The command line on the real coil maps, scans and faces beside the project."""

from pathlib import Path

import numpy as np
import pytest
import torch

import potentia as pt
from potentia import likelihoods
from potentia._cli import run
from potentia._random import standard_normal

pytestmark = pytest.mark.shared_data


def test_measured_coil_maps_and_a_brain(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(shared_data / "mri" / "coilmaps16_96.npz") as held:
        maps = torch.from_numpy(held["maps"])[::4]
    volume = pt.io.read_image(shared_data / "brain" / "cit168_t1.nii.gz", index=80)
    image = torch.from_numpy(volume[:, ::2, ::2])
    truth = torch.zeros(1, 96, 96, dtype=torch.complex64)
    height, width = (min(n, 96) for n in image.shape[-2:])
    truth[:, :height, :width] = image[:, :height, :width] / image.max()
    operator = likelihoods.Sense(maps, likelihoods.cartesian_mask((96, 96), 2.0))
    np.save(tmp_path / "kspace.npy", operator.measure(truth, 0.02, torch.Generator().manual_seed(0)).numpy())
    np.save(tmp_path / "maps.npy", maps.numpy())
    files = ["--data", str(tmp_path / "kspace.npy"), "--coil-maps", str(tmp_path / "maps.npy")]
    anneal = ["--sigma-max", "0.5", "--levels", "8", "--steps", "3", "--chains", "2"]
    assert run(["sample", *files, "--noise-std", "0.02", "--store", str(tmp_path / "out.zarr"), *anneal]) == 0
    assert "Sense(4 coils, 50.0% of (96, 96) sampled)" in capsys.readouterr().out
    mean = pt.open_ensemble(tmp_path / "out.zarr").samples().mean(dim=(0, 1))
    zero_filled = operator.adjoint(torch.from_numpy(np.load(tmp_path / "kspace.npy")))
    seen = maps.abs().square().sum(0) > 0.25 * maps.abs().square().sum(0).max()

    def error(x: torch.Tensor) -> float:
        return float((x - truth)[:, seen].abs().square().mean())

    assert error(mean) < 0.5 * error(zero_filled)


def test_a_real_multi_coil_scan_says_that_it_needs_maps(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = shared_data / "mri" / "brain_8coil_ksp_230x180.npy"
    assert run(["sample", "--data", str(scan), "--noise-std", "1", "--store", str(tmp_path / "out.zarr")]) == 2
    assert "(8, 230, 180) has several coils, expected --coil-maps" in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()


def test_sense_adjoint_on_measured_maps(shared_data: Path) -> None:
    with np.load(shared_data / "mri" / "coilmaps16_96.npz") as held:
        operator = likelihoods.Sense(held["maps"], likelihoods.cartesian_mask((96, 96), 4.0)).double()
    g = torch.Generator().manual_seed(0)
    x = standard_normal((1, 96, 96), g, dtype=torch.complex128)
    y = standard_normal((16, 96, 96), g, dtype=torch.complex128)
    left, right = (operator(x).conj() * y).sum(), (x.conj() * operator.adjoint(y)).sum()
    assert abs(left - right) < 1e-10 * float(operator(x).abs().square().sum())
