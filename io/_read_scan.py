"""Scans from files of several formats."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._bart import read_cfl
from potentia.io._fastmri import chosen, read_fastmri
from potentia.io._hdf5 import member, open_hdf5, reading
from potentia.io._ismrmrd import read_ismrmrd
from potentia.io._kspace import sampling_mask
from potentia.io._readers import ARRAYS, existing, read_array
from potentia.io._scan import Scan

HDF5 = (".h5", ".hdf5", ".mrd", ".ismrmrd")
BART = (".cfl", ".hdr")
# Arrays of an .npz, with their dimensions in a scan.
DIMS = {"kspace": 4, "mask": 3, "noise": 2, "coil_maps": 4, "calibration": 4}


def read_scan(path: str | Path, *, index: int | None = None, select: Mapping[str, int] | None = None) -> Scan:
    """Read k-space, and what its file says of it, in the axis order (slices, coils, ky, kx).

    Values are those of the file: nothing is cropped, filtered or scaled, except that lines of ISMRMRD are sorted,
    centred and averaged and its noise scans are scaled to the dwell time of the imaging lines.

    - HDF5 (.h5, .hdf5, .mrd, .ismrmrd): fastMRI, which holds ``kspace``, or ISMRMRD, of which ``select`` chooses,
      as {"repetition": 0}, where there are several.
    - BART (.cfl with .hdr): the dimensions of readout, phase encoding, coils and slices.
    - .npy, and .npz with ``kspace`` and, if there are, ``mask``, ``noise``, ``coil_maps`` and ``calibration``:
      (ky, kx) of one coil, (coils, ky, kx), or (slices, coils, ky, kx); lines along the last axis.

    ``index`` takes one slice. Where a file does not say what was measured, that is wherever any coil is not zero.

    Raises: FileNotFoundError; ValueError for a file that cannot be read, of another kind, or not finite; ImportError
        where a format's package is missing.
    """
    name = existing(path)
    if select and not name.endswith(HDF5):
        raise ValueError(f"{path}: select is {dict(select)}, expected none but for ISMRMRD")
    if name.endswith(HDF5):
        return _read_hdf5(path, index, select or {})
    if name.endswith(BART):
        return _plain(path, {"kspace": read_cfl(path)}, index)
    if name.endswith(".npy"):
        return _plain(path, {"kspace": read_array(path)}, index)
    if not name.endswith(".npz"):
        kinds = ", ".join((*HDF5, *BART, *ARRAYS))
        raise ValueError(f"{path}: is of a kind that is not read here, expected {kinds}")
    with reading(path, "arrays"), zipfile.ZipFile(path) as archive:
        held = [entry.removesuffix(".npy") for entry in archive.namelist()]
    if "kspace" not in held:
        raise ValueError(f"{path}: holds {', '.join(held) or 'nothing'}, expected kspace")
    return _plain(path, {key: read_array(f"{path}:{key}") for key in DIMS if key in held}, index)


def count_slices(path: str | Path) -> int:
    """How many slices ``read_scan`` finds; 1 for a file that cannot be read, which says why when it is.

    Arrays are looked at by their headers; lines of ISMRMRD are read, since they alone say of which slice they are.
    """
    name = str(path).lower()
    try:
        if name.endswith(HDF5):
            with open_hdf5(path) as file:
                shape = getattr(member(path, file, "kspace"), "shape", None)
            return len(read_scan(path).kspace) if shape is None else int(shape[0])
        if name.endswith(".npz"):
            with reading(path, "arrays"), zipfile.ZipFile(path) as archive, archive.open("kspace.npy") as entry:
                shape = _npy_shape(entry)
        elif name.endswith(".npy"):
            with reading(path, "arrays"), Path(path).open("rb") as entry:
                shape = _npy_shape(entry)
        else:
            shape = read_cfl(path).shape
    except (ValueError, IndexError, FileNotFoundError):
        return 1
    return int(shape[0]) if len(shape) == DIMS["kspace"] else 1


def _npy_shape(file: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return tuple(read(file)[0])


def _read_hdf5(path: str | Path, index: int | None, select: Mapping[str, int]) -> Scan:
    with open_hdf5(path) as file:
        if file.get("kspace", getlink=True) is not None:  # without following a link
            if select:
                raise ValueError(f"{path}: select is {dict(select)}, expected none for a fastMRI file")
            return read_fastmri(path, file, index)
        groups = [group for name in file if hasattr(group := member(path, file, name), "keys")]
        groups = [group for group in groups if "xml" in group and "data" in group]
        if len(groups) != 1:
            names = ", ".join(group.name for group in groups) or ", ".join(file) or "nothing"
            raise ValueError(f"{path}: holds {names}, expected kspace (fastMRI) or one group of xml and data (ISMRMRD)")
        return read_ismrmrd(path, groups[0], index, select)


def _plain(path: str | Path, arrays: Mapping[str, NDArray[Any]], index: int | None) -> Scan:
    """Make a scan of arrays, k-space among them, to which axes of length one are added in front."""
    full: dict[str, NDArray[Any]] = {}
    for key, array in arrays.items():
        least = 3 if key == "coil_maps" else 2
        if not least <= array.ndim <= DIMS[key]:
            raise ValueError(f"{path}: {key} has shape {array.shape}, expected {least} to {DIMS[key]} dimensions")
        full[key] = array[(None,) * (DIMS[key] - array.ndim)]
    kspace = full["kspace"].astype(np.complex64)
    measured = sampling_mask(kspace)
    mask = full.get("mask", measured) != 0
    mask = np.broadcast_to(mask, measured.shape) if mask.shape[1:] == measured.shape[1:] and len(mask) == 1 else mask
    if mask.shape == measured.shape and (measured & ~mask).any():
        beyond = int((measured & ~mask).sum())
        raise ValueError(f"{path}: kspace is not zero at {beyond} positions that mask says were not measured")
    whole = Scan(
        kspace=kspace,
        counts=mask.astype(np.uint16),
        source=str(path),
        noise=_complex(full.get("noise")),
        coil_maps=_complex(full.get("coil_maps")),
        calibration=_complex(full.get("calibration")),
    )
    wanted = chosen(path, index, len(kspace))
    return replace(
        whole,
        kspace=whole.kspace[wanted],
        counts=whole.counts[wanted],
        coil_maps=None if whole.coil_maps is None else whole.coil_maps[wanted],
        calibration=None if whole.calibration is None else whole.calibration[wanted],
    )


def _complex(array: NDArray[Any] | None) -> NDArray[np.complex64] | None:
    return None if array is None else array.astype(np.complex64)
