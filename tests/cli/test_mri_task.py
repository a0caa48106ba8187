"""``potentia sample --task mri``: from a scanner's file to an ensemble and a page."""

import re
from pathlib import Path

import numpy as np
import pytest
from scan_files import complex_normal, ellipse, header, lines_of, noise_lines, smooth_maps, write_fastmri, write_ismrmrd

import potentia as pt
from potentia._cli import run
from potentia.io._kspace import centred_fft

SHAPE = (48, 40)
QUICK = ["--prior", "gaussian-field", "--levels", "3", "--steps", "2", "--chains", "2"]
NOISE = 0.02


def kspace(slices: int = 1, noise: float = NOISE) -> np.ndarray:
    """(slices, coils, ky, kx), fully sampled, with noise of that std a part."""
    clean = centred_fft(smooth_maps(4, SHAPE) * 10 * ellipse(SHAPE))
    return np.stack([clean + complex_normal(clean.shape, seed, noise) for seed in range(slices)]).astype(np.complex64)


def told(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """What a row of the command's output says."""
    found = re.search(rf"^{name}\s+(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    return found[1]


def test_a_fastmri_scan_is_undersampled_and_compared_with_all_of_it(tmp_path: Path) -> None:
    file = write_fastmri(tmp_path / "scan.h5", kspace(2))
    store, page, plot = tmp_path / "out.zarr", tmp_path / "out.html", tmp_path / "out.png"
    options = ["--index", "1", "--acceleration", "3", "--report", str(page), "--plot", str(plot)]
    assert run(["sample", "--task", "mri", "--data", str(file), "--store", str(store), *QUICK, *options]) == 0
    ensemble = pt.open_ensemble(store)
    constants = ensemble.tree["constant_data"].to_dataset()
    assert abs(float(constants["mask"].values.mean()) - 1 / 3) < 0.03
    truth = constants["truth"].values[0] + 1j * constants["truth"].values[1]
    # The 99th percentile of its magnitude is one, and it is the ellipse in that unit.
    assert abs(float(np.percentile(np.abs(truth), 99)) - 1) < 1e-3
    expected = 10 * np.abs(ellipse(SHAPE)) / float(constants["scale"])
    whitened = np.abs(truth[0]).sum() / expected.sum()  # the whitening's unit is in the scale
    assert np.abs(np.abs(truth[0]) / whitened - expected)[expected > 0.2 * expected.max()].max() < 0.1 * expected.max()
    assert page.stat().st_size > 50_000
    assert plot.exists()


def test_an_ismrmrd_scan_is_whitened_by_its_noise_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = kspace()
    noise = complex_normal((4, 4096), 7, NOISE)
    xml = header(shape=SHAPE)
    file = write_ismrmrd(tmp_path / "scan.mrd", noise_lines(noise) + lines_of(scan), xml)
    store = tmp_path / "out.zarr"
    assert run(["sample", "--task", "mri", "--data", str(file), "--store", str(store), *QUICK, "--coils", "3"]) == 0
    said = capsys.readouterr().out
    assert "white by the noise scan of 4096 samples" in said
    assert "4 compressed to 3" in said
    y = pt.open_ensemble(store).tree["observed_data"].to_dataset()["y"].values
    assert y.shape == (2, 3, *SHAPE)


def test_the_noise_level_is_found_without_a_noise_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = 0.3  # enough for the border of so coarse a scan to hold little else
    whole = kspace(noise=noise)[0]
    scan = whole.copy()
    scan[:, :, ::2] = 0
    scan[:, :, 8:32] = whole[:, :, 8:32]
    np.save(tmp_path / "scan.npy", scan)
    store = tmp_path / "out.zarr"
    assert run(["sample", "--task", "mri", "--data", str(tmp_path / "scan.npy"), "--store", str(store), *QUICK]) == 0
    scale = float(pt.open_ensemble(store).tree["constant_data"].to_dataset()["scale"])
    said = told(capsys, "scale")
    assert f"divided by {scale:.4g}" in said
    std = float(said.rsplit("std ", 1)[1].split()[0])
    assert 0.7 * noise / 9 < std < 2 * noise / 9  # the image's 99th percentile is about 9, the border not all noise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"holds 2 slices, expected --index 0 to 1"),
        (["--index", "0", "--blur", "1.0"], r"--blur: does not go with --task mri"),
        (["--index", "0", "--mask", "m.npy"], r"--mask: does not go with --task mri"),
        (["--index", "5"], r"5"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    file = write_fastmri(tmp_path / "scan.h5", kspace(2))
    store = tmp_path / "out.zarr"
    assert run(["sample", "--task", "mri", "--data", str(file), "--store", str(store), *QUICK, *options]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not store.exists()


def test_undersampled_scans_are_not_undersampled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = kspace()[0]
    scan[:, :, 1] = 0
    np.save(tmp_path / "scan.npy", scan)
    options = ["--data", str(tmp_path / "scan.npy"), "--store", str(tmp_path / "out.zarr"), "--acceleration", "2"]
    assert run(["sample", "--task", "mri", *options, *QUICK]) != 0
    assert "of k-space was measured, expected all of it for --acceleration" in capsys.readouterr().err


def test_options_of_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "image.npy", np.zeros((8, 8), np.float32))
    plain = ["sample", "--data", str(tmp_path / "image.npy"), "--store", str(tmp_path / "out.zarr")]
    for options, message in (
        (["--noise-std", "0.1", "--acceleration", "2"], "--acceleration: goes with --task mri"),
        (["--noise-std", "0.1", "--coils", "2"], "--coils: goes with --task mri"),
        ([], "--noise-std: is missing"),
        (["--noise-std", "0.1", "--task", "ct"], "--task: 'ct' is unknown, expected mri"),
    ):
        assert run([*plain, *options]) != 0
        assert message in capsys.readouterr().err
