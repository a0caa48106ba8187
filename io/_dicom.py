"""Images and series in DICOM files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._hdf5 import reading

SUFFIXES = (".dcm", ".ima")
NEEDED = ("Rows", "Columns", "PixelData")


def is_dicom(path: Path) -> bool:
    """Say whether a file carries the mark of DICOM, after its preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: str | Path) -> NDArray[Any]:
    """Read one image as (rows, columns), rescaled by its slope and intercept.

    Raises: ValueError for a file that cannot be read or decoded, or holds several frames or colours.
    """
    return _pixels(path, _dataset(path))


def read_series(folder: str | Path) -> NDArray[Any]:
    """Read the images of a folder, one series, as (rows, columns, slices) along the normal of the slices.

    Files without the mark of DICOM are passed over. The normal is the cross product of the directions along a row and
    down a column; the slice that lies least far along it is the first.

    Raises: ValueError for a folder without images, several series, shapes or orientations, images that do not say
        where they lie or lie in one place, and as ``read_dicom``.
    """
    files = sorted(file for file in Path(folder).iterdir() if file.is_file() and is_dicom(file))
    loaded = [(file, _dataset(file)) for file in files]
    images = [(file, dataset) for file, dataset in loaded if "DirectoryRecordSequence" not in dataset]
    if not images:
        raise ValueError(f"{folder}: is a folder, expected a file or a folder with the DICOM images of a series")
    for file, dataset in images:
        _check(file, dataset)
    series = sorted({str(getattr(dataset, "SeriesInstanceUID", "without a name")) for _, dataset in images})
    if len(series) > 1:
        raise ValueError(f"{folder}: holds {len(series)} series ({', '.join(series)}), expected one")
    planes = [_place(file, dataset) for file, dataset in images]
    directions = np.array([plane[0] for plane in planes])
    if not np.allclose(directions, directions[0], atol=1e-3):
        raise ValueError(f"{folder}: images have several orientations, expected parallel slices")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    heights = np.array([normal @ plane[1] for plane in planes])
    order = np.argsort(heights, kind="stable")
    if len(order) > 1 and np.diff(heights[order]).min() < 1e-3:
        at = int(np.diff(heights[order]).argmin())
        pair = " and ".join(images[order[i]][0].name for i in (at, at + 1))
        raise ValueError(f"{folder}: {pair} lie in one place, expected one image a slice")
    slices = [_pixels(images[at][0], images[at][1]) for at in order]
    shapes = sorted({image.shape for image in slices})
    if len(shapes) > 1:
        raise ValueError(f"{folder}: images have shapes {shapes}, expected one")
    return np.stack(slices, axis=-1)


def _dataset(path: str | Path) -> Any:
    try:
        import pydicom
    except ImportError as err:
        raise ImportError(f"{path}: pydicom is missing, expected it for DICOM: pip install 'potentia[mri]'") from err
    with warnings.catch_warnings(), reading(path, "DICOM"):
        warnings.simplefilter("ignore")  # of values that stretch the standard, which are none of those used here
        return pydicom.dcmread(path)


def _place(path: Path, dataset: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with reading(path, "DICOM"):
        values = [dataset.get(name) or () for name in ("ImageOrientationPatient", "ImagePositionPatient")]
        found = [np.array([float(n) for n in numbers]) for numbers in values]
    if [part.shape for part in found] != [(6,), (3,)] or not all(np.isfinite(part).all() for part in found):
        raise ValueError(f"{path}: does not say its position and orientation, expected both of an image of a series")
    return found[0], found[1]


def _check(path: str | Path, dataset: Any) -> None:
    with reading(path, "DICOM"):
        missing = [name for name in NEEDED if name not in dataset]
        if missing:
            raise ValueError(f"{path}: has no {', '.join(missing)}, expected an image")
        frames, colours = int(dataset.get("NumberOfFrames") or 1), str(dataset.get("PhotometricInterpretation"))
        if frames != 1 or colours != "MONOCHROME2" or "ModalityLUTSequence" in dataset:
            raise ValueError(
                f"{path}: has {frames} frames of {colours}, expected one of MONOCHROME2 and no look-up table of values"
            )


def _pixels(path: str | Path, dataset: Any) -> NDArray[Any]:
    with warnings.catch_warnings(), reading(path, "DICOM"):
        warnings.simplefilter("ignore")
        _check(path, dataset)
        stored = _decoded(path, dataset)
        slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
        return stored * (1.0 if slope is None else float(slope)) + (0.0 if intercept is None else float(intercept))


def _decoded(path: str | Path, dataset: Any) -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        return np.asarray(dataset.pixel_array)
    except (NotImplementedError, RuntimeError) as err:
        if not syntax.is_compressed:
            raise
        raise ValueError(f"{path}: its compression, {syntax.name}, cannot be decoded here: {err}") from err
