"""Readers of images and arrays."""

import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._dicom import SUFFIXES as DICOM
from potentia.io._dicom import is_dicom, read_dicom, read_series

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
ARRAYS = (".npy", ".npz")
VOLUMES = (".nii", ".nii.gz")
# What numpy raises over damaged files, and over sizes that they claim.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_image(
    path: str | Path, *, dtype: str = "float32", slice_axis: int = 2, index: int | None = None
) -> NDArray[Any]:
    """Read an image as (C, H, W).

    Pictures (PNG, JPEG, TIFF) of 8 or 16 bits are scaled to [-1, 1], those of floats kept as they are; transparency is
    refused. Arrays (.npy, .npz) keep their values; of a NIfTI volume one slice is taken, its values kept. DICOM images
    (.dcm, .ima, or by their mark) are rescaled by their slope and intercept; a folder is read as one series, a volume
    (rows, columns, slices) in the order of the slices' positions, of which one slice is taken.

    Raises: FileNotFoundError; ValueError for a file that cannot be read, of another kind, or not finite.
    """
    image = _image(path, slice_axis, index)
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3:
        raise ValueError(f"{path}: image has shape {image.shape}, expected (H, W) or (C, H, W)")
    wanted = np.result_type(dtype, np.complex64) if np.iscomplexobj(image) else np.dtype(dtype)
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        return _finite(path, image.astype(wanted))


def _image(path: str | Path, slice_axis: int, index: int | None) -> NDArray[Any]:
    if Path(path).is_dir():
        return _take_slice(path, read_series(path), slice_axis, index)
    name = existing(path)
    if name.endswith(PICTURES):
        return _read_picture(path)
    if name.endswith(VOLUMES):
        return _read_slice(path, slice_axis, index)
    if name.endswith(DICOM) or (not name.endswith(ARRAYS) and is_dicom(Path(path))):
        return read_dicom(path)
    return read_array(path)


def read_array(path: str | Path) -> NDArray[Any]:
    """Read an array, such as a mask, coil maps or k-space: .npy, .npz of one array, or ``FILE.npz:NAME``.

    Raises: FileNotFoundError; ValueError for a file that cannot be read, pickled content, an npz of several arrays
        without a name, or entries that are not finite.
    """
    name = existing(path)
    if not name.endswith(ARRAYS):
        kinds = ", ".join(ARRAYS if name.endswith(PICTURES + VOLUMES + DICOM) else PICTURES + ARRAYS + VOLUMES + DICOM)
        raise ValueError(f"{path}: is of a kind that is not read here, expected {kinds}")
    array = _load(path)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{path}: array has dtype {array.dtype}, expected numbers")
    return _finite(path, array)


def scale_to_percentile(image: NDArray[Any], percentile: float = 99.0) -> tuple[NDArray[Any], float]:
    """Divide by a percentile of the magnitude: the image, and the factor that it was divided by.

    Raises: ValueError for a percentile outside (0, 100], or an image that is zero or not finite there.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"scale_to_percentile: percentile is {percentile}, expected a number in (0, 100]")
    values = image if image.dtype.kind in "fc" else image.astype(np.float64)
    factor = float(np.percentile(np.abs(values), percentile))
    if factor == 0 or not np.isfinite(factor):
        raise ValueError(
            f"scale_to_percentile: the {percentile:g}th percentile of the image is {factor:g}, expected above zero"
        )
    return values / np.asarray(factor, dtype=np.real(values).dtype), factor


def _split(path: str | Path) -> tuple[Path, str | None]:
    text = str(path)
    file, marker, key = text.partition(".npz:")
    return (Path(file + ".npz"), key) if marker else (Path(text), None)


def existing(path: str | Path) -> str:
    """Return the name of a file in lower case.

    Raises: FileNotFoundError; ValueError for a folder.
    """
    file = _split(path)[0]
    if not file.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if file.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    return file.name.lower()


def _load(path: str | Path) -> NDArray[Any]:
    file, key = _split(path)
    try:
        with file.open("rb") as opened:  # numpy leaves a file that it cannot read open
            loaded = np.load(opened, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return np.asarray(loaded)
            with loaded:
                name = _choose(path, loaded.files, key)
                return np.asarray(loaded[name])
    except _ChoiceError:
        raise
    except _UNREADABLE as err:
        raise ValueError(f"{path}: cannot be read as an array without pickles: {err}") from err


class _ChoiceError(ValueError):
    """An archive can be read, but does not say which array is meant."""


def _choose(path: str | Path, names: Sequence[str], key: str | None) -> str:
    if key is None and len(names) != 1:
        held = ", ".join(names) or "none"
        raise _ChoiceError(f"{path}: holds {len(names)} arrays ({held}), expected FILE.npz:NAME to choose one")
    if key is not None and key not in names:
        raise _ChoiceError(f"{path}: has no array {key!r}, expected one of {', '.join(names)}")
    return names[0] if key is None else key


def _finite(path: str | Path, array: NDArray[Any]) -> NDArray[Any]:
    bad = int((~np.isfinite(array)).sum()) if array.dtype.kind in "fc" else 0
    if bad:
        raise ValueError(f"{path}: has {bad} NaN or infinite of {array.size} entries, expected finite data")
    if array.size == 0:
        raise ValueError(f"{path}: is empty, shape {array.shape}")
    return array


def _read_picture(path: str | Path) -> NDArray[Any]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as err:
        raise ImportError(
            f"{path}: Pillow is missing, expected it for pictures: pip install 'potentia[images]'"
        ) from err
    try:
        with Image.open(path) as opened:
            opened.load()
            clear = opened.has_transparency_data
            picture = opened.convert("RGB") if opened.mode == "P" else opened.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ValueError(f"{path}: cannot be read as a picture: {err}") from err
    if picture.mode == "1":
        picture = picture.convert("L")
    if clear or not (picture.mode in ("L", "RGB", "F") or picture.mode.startswith("I;16")):
        found = picture.mode + (" and is transparent in places" if clear else "")
        raise ValueError(f"{path}: picture has mode {found}, expected grey or RGB of 8 or 16 bits, opaque")
    array = np.asarray(picture)
    if array.dtype.kind == "f":
        scaled = array.astype(np.float32)
    else:
        top = 255.0 if array.dtype == np.uint8 else 65535.0
        scaled = (array.astype(np.float32) * (2 / top) - 1).astype(np.float32)
    return np.moveaxis(scaled, -1, 0) if scaled.ndim == 3 else scaled


def _read_slice(path: str | Path, axis: int, index: int | None) -> NDArray[Any]:
    try:
        import nibabel
    except ImportError as err:
        raise ImportError(f"{path}: nibabel is missing, expected it for NIfTI: pip install 'potentia[images]'") from err
    try:
        volume = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    except Exception as err:  # nibabel raises a dozen unrelated types for damaged files
        raise ValueError(f"{path}: cannot be read as NIfTI: {err}") from err
    return volume if volume.ndim == 2 else _take_slice(path, volume, axis, index)


def _take_slice(path: str | Path, volume: NDArray[Any], axis: int, index: int | None) -> NDArray[Any]:
    if volume.ndim != 3:
        raise ValueError(f"{path}: volume has shape {volume.shape}, expected three dimensions")
    if not 0 <= axis < 3:
        raise ValueError(f"{path}: slice axis is {axis}, expected 0, 1 or 2")
    if index is None or not 0 <= index < volume.shape[axis]:
        raise ValueError(f"{path}: slice index is {index}, expected 0 to {volume.shape[axis] - 1} along axis {axis}")
    return np.asarray(np.take(volume, index, axis=axis))
