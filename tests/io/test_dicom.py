"""DICOM images and series: values, order and orientation, and refusals."""

from pathlib import Path

import numpy as np
import pytest
from scan_files import letter, write_dicom

from potentia.io import read_array, read_image

pydicom = pytest.importorskip("pydicom")

PIXELS = (letter((12, 16)) * 100).astype("u2")


def series(folder: Path, positions: list[float], orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)) -> Path:
    """Slices whose values are their heights along the normal, written under names in another order."""
    folder.mkdir()
    normal = np.cross(orientation[:3], orientation[3:])
    for at, height in enumerate(positions):
        pixels = np.full((3, 4), 100 + height, "i2")
        write_dicom(folder / f"{at}.dcm", pixels, position=(normal * height).tolist(), orientation=orientation)
    return folder


class TestImage:
    @pytest.mark.parametrize("name", ["a.dcm", "a.IMA", "a", "a.000001"])
    def test_rows_and_columns_stay_where_they_are(self, tmp_path: Path, name: str) -> None:
        image = read_image(write_dicom(tmp_path / name, PIXELS))
        assert (image.dtype, image.shape) == (np.float32, (1, 12, 16))
        np.testing.assert_array_equal(image[0], PIXELS)
        assert [image[0, row, column] for row in (1, -2) for column in (1, -2)] == [200, 300, 400, 500]

    def test_slope_and_intercept(self, tmp_path: Path) -> None:
        path = write_dicom(tmp_path / "a.dcm", PIXELS.astype("i2") - 50, RescaleSlope="0.25", RescaleIntercept="-7")
        np.testing.assert_array_equal(read_image(path)[0], (PIXELS.astype(float) - 50) / 4 - 7)
        path = write_dicom(tmp_path / "a.dcm", PIXELS, RescaleSlope=2)
        np.testing.assert_array_equal(read_image(path)[0], 2.0 * PIXELS)

    def test_what_can_be_decompressed_is(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "a.dcm", PIXELS)
        image = pydicom.dcmread(tmp_path / "a.dcm")
        image.compress(pydicom.uid.RLELossless)
        image.save_as(tmp_path / "b.dcm")
        np.testing.assert_array_equal(read_image(tmp_path / "b.dcm")[0], PIXELS)

    def test_other_compression_is_refused_by_name(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "a.dcm", PIXELS)
        image = pydicom.dcmread(tmp_path / "a.dcm")
        image.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        image.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
        image["PixelData"].VR = "OB"
        image.save_as(tmp_path / "b.dcm", enforce_file_format=True)
        with pytest.raises(ValueError, match=r"b\.dcm: its compression, MPEG2 Main Profile.*, cannot be decoded here"):
            read_image(tmp_path / "b.dcm")

    def test_refusals(self, tmp_path: Path) -> None:
        path = tmp_path / "a.dcm"
        write_dicom(path, np.stack([PIXELS, PIXELS]), NumberOfFrames=2)
        with pytest.raises(ValueError, match=r"a\.dcm: has 2 frames of MONOCHROME2, expected one"):
            read_image(path)
        write_dicom(path, PIXELS, PhotometricInterpretation="MONOCHROME1")
        with pytest.raises(ValueError, match="has 1 frames of MONOCHROME1"):
            read_image(path)
        write_dicom(path, PIXELS, Rows=13)
        with pytest.raises(ValueError, match=r"a\.dcm: cannot be read as DICOM: "):
            read_image(path)
        image = pydicom.dcmread(write_dicom(path, PIXELS))
        del image.PixelData
        image.save_as(path)
        with pytest.raises(ValueError, match="has no PixelData, expected an image"):
            read_image(path)
        path.write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"a\.dcm: cannot be read as DICOM: InvalidDicomError"):
            read_image(path)
        with pytest.raises(ValueError, match=r"is of a kind that is not read here, expected \.npy"):
            read_array(path)


class TestSeries:
    @pytest.mark.parametrize(
        "orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (0.6, 0.8, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0)]
    )
    def test_slices_are_sorted_by_their_positions(self, tmp_path: Path, orientation: tuple[float, ...]) -> None:
        folder = series(tmp_path / "a", [12.5, -3, 4, 30, 0.5], orientation)
        found = [read_image(folder, index=at)[0] for at in range(5)]
        assert [image[0, 0] - 100 for image in found] == [-3, 0, 4, 12, 30]
        assert found[0].shape == (3, 4)
        assert read_image(folder, slice_axis=0, index=2).shape == (1, 4, 5)
        with pytest.raises(ValueError, match="slice index is None, expected 0 to 4 along axis 2"):
            read_image(folder)

    def test_other_files_are_passed_over(self, tmp_path: Path) -> None:
        folder = series(tmp_path / "a", [0, 1])
        (folder / "notes.txt").write_text("of no interest")
        (folder / "more").mkdir()
        assert read_image(folder, slice_axis=0, index=0).shape == (1, 4, 2)

    def test_refusals(self, tmp_path: Path) -> None:
        folder = series(tmp_path / "a", [0, 1])
        write_dicom(folder / "2.dcm", PIXELS[:3, :4], position=(0, 0, 1), series="1.2.4")
        with pytest.raises(ValueError, match=r"a: holds 2 series \(1\.2\.3, 1\.2\.4\), expected one"):
            read_image(folder, index=0)
        write_dicom(folder / "2.dcm", PIXELS[:3, :4], position=(0, 0, 1))
        with pytest.raises(ValueError, match=r"a: 1\.dcm and 2\.dcm lie in one place"):
            read_image(folder, index=0)
        write_dicom(folder / "2.dcm", PIXELS, position=(0, 0, 2))
        with pytest.raises(ValueError, match=r"images have shapes \[\(3, 4\), \(12, 16\)\]"):
            read_image(folder, index=0)
        write_dicom(folder / "2.dcm", PIXELS[:3, :4], position=(0, 0, 2), orientation=(0, 1, 0, 1, 0, 0))
        with pytest.raises(ValueError, match="several orientations"):
            read_image(folder, index=0)
        write_dicom(folder / "2.dcm", PIXELS[:3, :4], position=None)
        with pytest.raises(ValueError, match=r"2\.dcm: does not say its position"):
            read_image(folder, index=0)
        (folder / "2.dcm").write_bytes((folder / "1.dcm").read_bytes()[:200])
        with pytest.raises(ValueError, match=r"2\.dcm: "):
            read_image(folder, index=0)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="empty: is a folder, expected a file or a folder with the DICOM images"):
            read_image(tmp_path / "empty", index=0)


def test_a_brain_as_a_series_and_as_nifti(shared_data: Path, tmp_path: Path) -> None:
    """Axes of NIfTI are (i, j, k), rows of DICOM run down the image: one is the other transposed."""
    volume = [read_image(shared_data / "brain" / "cit168_t1.nii.gz", index=at)[0] for at in (70, 71, 72)]
    slope = max(float(image.max()) for image in volume) / 60000
    (tmp_path / "a").mkdir()
    for at, image in enumerate(volume):
        stored = np.round(image.T / slope).astype("u2")
        write_dicom(tmp_path / "a" / f"{9 - at}", stored, position=(0, 0, 0.7 * at), RescaleSlope=f"{slope:.10g}")
    for at, image in enumerate(volume):
        np.testing.assert_allclose(read_image(tmp_path / "a", index=at)[0], image.T, atol=0.51 * slope)
