"""``potentia sample --task mri`` on what scans are like: folders, several slices, no calibration lines, one coil."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scan_files import complex_normal, ellipse, header, lines_of, smooth_maps, write_fastmri, write_ismrmrd

from potentia import io
from potentia._cli import EXIT_BAD_INPUT, run
from potentia._cli._dataset import EXIT_SOME_FAILED, DataItem, DatasetOptions, list_items
from potentia._cli._mri import prepare_scan
from potentia._cli._options import SampleOptions
from potentia.io._collection import open_collection
from potentia.io._kspace import centred_fft
from potentia.io._read_scan import count_slices

pytest.importorskip("sigpy.mri.app", reason="sigpy is not installed")

SHAPE = (32, 28)
COILS = 3
QUICK = ["--prior", "gaussian-field", "--levels", "2", "--steps", "1", "--chains", "2"]


def kspace(slices: int = 1, noise: float = 0.02) -> np.ndarray:
    """(slices, coils, ky, kx), fully sampled, each slice weaker than the one before."""
    clean = centred_fft(smooth_maps(COILS, SHAPE) * 10 * ellipse(SHAPE))
    planes = [clean / (1 + k) + complex_normal(clean.shape, k, noise) for k in range(slices)]
    return np.stack(planes).astype(np.complex64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scans of one slice and of several, one that is broken, a picture, BART's header."""
    data = tmp_path / "data"
    data.mkdir()
    write_fastmri(data / "brain.h5", kspace(2))
    np.save(data / "knee.npy", kspace()[0])
    np.savez(data / "knees.npz", kspace=kspace(2))
    io.write_cfl(data / "bart", kspace(2))
    (data / "torn.h5").write_bytes((data / "brain.h5").read_bytes()[:3000])
    (data / "picture.png").write_bytes(b"x")
    return data


def options(data: Path, **changes: Any) -> SampleOptions:
    return SampleOptions(str(data), None, str(data.parent / "out.zarr"), task="mri", **changes)


def test_slices_of_scans_are_items(folder: Path) -> None:
    lines = lines_of(kspace(3))
    write_ismrmrd(folder / "lines.mrd", lines, header(shape=SHAPE))
    items = list_items(options(folder), DatasetOptions())
    assert list(items) == [
        *("bart.cfl.z000", "bart.cfl.z001", "brain.h5.z000", "brain.h5.z001", "knee.npy"),
        *("knees.npz.z000", "knees.npz.z001", "lines.mrd.z000", "lines.mrd.z001", "lines.mrd.z002", "torn.h5"),
    ]
    assert items["brain.h5.z001"] == DataItem(str(folder / "brain.h5"), 1)
    assert items["knee.npy"] == DataItem(str(folder / "knee.npy"))
    assert list(list_items(options(folder / "knees.npz"), DatasetOptions(slices="1"))) == ["knees.npz.z001"]
    with pytest.raises(ValueError, match="--array: does not go with --task mri"):
        list_items(options(folder), DatasetOptions(array="kspace"))
    (folder / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"has no items, expected files of \.h5, \.hdf5, \.mrd, \.ismrmrd, \.cfl, \.npy"
    ):
        list_items(options(folder / "empty"), DatasetOptions())


def test_slices_are_counted_as_they_are_read(folder: Path) -> None:
    for file in folder.iterdir():
        try:
            expected = len(io.read_scan(file).kspace)
        except ValueError:
            expected = 1
        assert count_slices(file) == expected
    assert count_slices(folder / "missing.npy") == 1
    np.savez(folder / "other.npz", image=np.ones(3))
    assert count_slices(folder / "other.npz") == 1


def test_a_folder_of_scans_is_sampled_and_gone_on_with(
    folder: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bart.cfl", "bart.hdr", "knees.npz"):
        (folder / name).unlink()
    out = folder.parent / "out"
    command = ["sample", "--task", "mri", "--data", str(folder), "--store", str(out), *QUICK, "--scheduler", scheduler]
    command += ["--acceleration", "2", "--noise-std", "0.02"]
    assert run(command) == EXIT_SOME_FAILED
    told = capsys.readouterr().out
    assert "3 of 4 items complete" in told
    assert re.search(r"^torn\.h5 +.*cannot be read as HDF5", told, re.MULTILINE)
    write_fastmri(folder / "torn.h5", kspace())
    assert run([*command, "--resume"]) == 0
    assert "4 of 4 items complete" in capsys.readouterr().out
    collection = open_collection(out)
    assert collection.names == ("brain.h5.z000", "brain.h5.z001", "knee.npy", "torn.h5")
    # Another slice of the file: its unit is another.
    scales = [float(collection[name].tree["constant_data"]["scale"]) for name in ("brain.h5.z000", "brain.h5.z001")]
    assert scales[1] == pytest.approx(scales[0] / 2, rel=0.02)
    assert run([*command, "--coils", "2", "--resume"]) == EXIT_BAD_INPUT
    assert "coils of the stored collection is None, this run has 2" in capsys.readouterr().err


def test_several_slices_in_one_file_want_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "scan.npy", kspace(2))
    assert run(["sample", "--task", "mri", "--data", str(tmp_path / "scan.npy"), "--store", str(tmp_path / "o")]) != 0
    assert "holds 2 slices, expected --index 0 to 1, or --slices :" in capsys.readouterr().err


def test_no_calibration_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = kspace()[0]
    scan[:, ::2] = 0
    np.save(tmp_path / "scan.npy", scan)
    command = ["sample", "--task", "mri", "--data", str(tmp_path / "scan.npy"), "--store", str(tmp_path / "o"), *QUICK]
    assert run(command) == EXIT_BAD_INPUT
    assert "sampled in full has side 0" in (told := capsys.readouterr().err)
    assert "give calibration lines, or coil maps found elsewhere" in told
    np.save(tmp_path / "maps.npy", smooth_maps(COILS, SHAPE))
    assert run([*command, "--coil-maps", str(tmp_path / "maps.npy")]) == 0
    np.save(tmp_path / "maps.npy", smooth_maps(COILS + 1, SHAPE))
    assert run([*command, "--overwrite", "--coil-maps", str(tmp_path / "maps.npy")]) == EXIT_BAD_INPUT
    assert "maps have shape (4, 32, 28), expected (3, 32, 28) as the scan" in capsys.readouterr().err


def test_no_noise_scan_and_no_border(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = kspace()[0] * np.pad(np.ones((12, 10)), ((10, 10), (9, 9)))
    np.save(tmp_path / "scan.npy", scan)
    command = ["sample", "--task", "mri", "--data", str(tmp_path / "scan.npy"), "--store", str(tmp_path / "o"), *QUICK]
    assert run(command) == EXIT_BAD_INPUT
    assert "has no noise scan, and 1 samples outside the middle half of k-space" in capsys.readouterr().err
    assert run([*command, "--noise-std", "0.3", "--sigma-max", "1"]) == 0


def test_maps_given_are_whitened_with_the_data(tmp_path: Path) -> None:
    """The planted fault: maps of the scanner's coils beside k-space of whitened ones leave a misfit far above noise."""
    mixing = np.array([[1, 0.4, 0], [0, 3, 0.2j], [0, 0, 0.5]])
    maps, image = smooth_maps(COILS, SHAPE), 10 * ellipse(SHAPE)
    noise = io.mix_coils(0.02 * mixing, complex_normal((COILS, 40_000), 1), axis=0)
    scan = centred_fft(maps * image) + io.mix_coils(0.02 * mixing, complex_normal(maps.shape, 2))
    np.savez(tmp_path / "scan.npz", kspace=scan, noise=noise)
    np.save(tmp_path / "maps.npy", maps[None])
    prepared = prepare_scan(options(tmp_path / "scan.npz", coil_maps=str(tmp_path / "maps.npy"), coils=2))
    likelihood = prepared.likelihood
    truth = np.asarray(image / prepared.constants["scale"])[None]
    parts = 2 * 2 * SHAPE[0] * SHAPE[1]
    chi2 = 2 * float(likelihood(torch.from_numpy(truth.astype(np.complex64))))
    assert abs(chi2 / parts - 1) < 5 * np.sqrt(2 / parts) + 0.05
    power = likelihood.operator.coil_maps.abs().square().sum(0)  # type: ignore[union-attr]
    assert float(power.max()) == pytest.approx(1, abs=1e-4)


def test_averages_have_less_noise(tmp_path: Path) -> None:
    """Lines measured four times stand with half of the noise beside lines measured once."""
    pytest.importorskip("ismrmrd")
    noisy = [kspace(noise=0.3)] + [
        (centred_fft(smooth_maps(COILS, SHAPE) * 10 * ellipse(SHAPE)) + complex_normal((COILS, *SHAPE), k, 0.3))[None]
        for k in range(10, 13)
    ]
    lines = [
        line for at, scan in enumerate(noisy) for line in lines_of(scan, idx_average=at, rows=range(at % 2 * 16, 32))
    ]
    write_ismrmrd(tmp_path / "scan.mrd", lines, header(shape=SHAPE))
    level = prepare_scan(options(tmp_path / "scan.mrd")).likelihood.noise_std
    assert float(level[-1, 0] / level[0, 0]) == pytest.approx((2 / 4) ** 0.5, rel=1e-4)


def test_priors_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prior of real images says so before anything is written, one that cannot have this size says which it can."""
    np.save(tmp_path / "scan.npy", kspace()[0])
    plain = ["sample", "--task", "mri", "--data", str(tmp_path / "scan.npy"), *QUICK[2:]]
    assert run([*plain, "--prior", "digits-28", "--store", str(tmp_path / "a")]) == EXIT_BAD_INPUT
    assert "is complex and has 2 real channels, the network takes 1" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert run([*plain, "--prior", "tv + 0.1*wavelet", "--store", str(tmp_path / "b")]) == EXIT_BAD_INPUT
    assert "wavelet db4: 3 levels need sides divisible by 8, got 32 by 28" in capsys.readouterr().err
    assert run([*plain, "--prior", "tv", "--store", str(tmp_path / "c")]) == 0


def test_one_coil(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "scan.npy", kspace()[0, :1])
    command = ["sample", "--task", "mri", "--data", str(tmp_path / "scan.npy"), "--store", str(tmp_path / "o"), *QUICK]
    assert run([*command, "--acceleration", "2"]) == 0
    assert "Sense(1 coils, 50.0% of (32, 28) sampled)" in capsys.readouterr().out
