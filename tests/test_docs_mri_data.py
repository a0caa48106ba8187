"""The page on scanner files: its code runs, in order, on files that are made up."""

import re
from pathlib import Path

import numpy as np
import pytest
from scan_files import (
    complex_normal,
    ellipse,
    header,
    lines_of,
    noise_lines,
    smooth_maps,
    write_dicom,
    write_fastmri,
    write_ismrmrd,
)

from potentia.io._kspace import centre_crop, centred_fft

PAGE = Path(__file__).parent.parent / "docs" / "mri-data.md"


def write_files(folder: Path) -> None:
    """An ellipse seen by eight coils whose noise is correlated, oversampled twice, every second line and the middle."""
    nibabel = pytest.importorskip("nibabel")
    mixing = 0.02 * (np.eye(8) + 0.2 * complex_normal((8, 8), seed=5))
    wide = np.zeros((8, 96, 160), np.complex64)
    wide[..., 40:120] = smooth_maps(8, (96, 80)) * ellipse((96, 80))
    noisy = centred_fft(wide) + np.tensordot(mixing, complex_normal(wide.shape, seed=1), axes=1)
    noise = mixing @ complex_normal((8, 6400), seed=2)
    rows = [row for row in range(96) if row % 2 == 0 or 36 <= row < 60]
    xml = header((96, 160), fov=(400.0, 240.0, 5.0), recon=(80, 96), recon_fov=(200.0, 240.0))
    write_ismrmrd(folder / "scan.h5", noise_lines(noise) + lines_of(noisy[None], rows=rows), xml)
    kspace = noisy[None].swapaxes(-1, -2)
    reference = centre_crop(np.abs(kspace[:, 0]), (80, 80)).astype(np.float32)
    xml = header((96, 160), recon=(80, 80))
    write_fastmri(folder / "fastmri.h5", kspace, xml=xml, reference=reference)
    (folder / "series").mkdir()
    for at in range(3):
        write_dicom(folder / "series" / f"{at}.dcm", np.full((4, 5), at, "u2"), position=(0, 0, 3 * at))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), folder / "t1.nii")


def test_the_code_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ismrmrd", "pydicom", "sigpy"):
        pytest.importorskip(package)
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 11
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)


def test_every_name_on_the_page_exists() -> None:
    from potentia import io

    named = set(re.findall(r"\bio\.(\w+)", PAGE.read_text(encoding="utf-8"))) - {"_kspace"}
    assert named
    assert named <= set(io.__all__)
