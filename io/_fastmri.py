"""Scans of the fastMRI data sets."""

from pathlib import Path
from typing import Any

import numpy as np

from potentia.io._hdf5 import attribute, member, text
from potentia.io._mrd_header import numbers, read_header
from potentia.io._scan import Scan, Triple

REFERENCES = ("reconstruction_rss", "reconstruction_esc")


def read_fastmri(path: str | Path, file: Any, index: int | None) -> Scan:
    """Read a fastMRI file, single-coil or multi-coil, its arrays as they are.

    Lines run along axis -2; a line is taken as measured where any of it is not zero: files are padded with zeros.

    Raises: ValueError for other shapes or dtypes, a mask that disagrees with k-space, or an index out of range.
    Source: Zbontar et al. 2018, fastMRI.
    """
    dataset = member(path, file, "kspace")
    dims = len(getattr(dataset, "shape", ()))
    if dims not in (3, 4) or dataset.dtype.kind != "c":
        raise ValueError(
            f"{path}: kspace has shape {getattr(dataset, 'shape', None)} and dtype {getattr(dataset, 'dtype', None)}, "
            f"expected complex (slices, coils, y, x), or (slices, y, x) of one coil"
        )
    slices = chosen(path, index, dataset.shape[0])
    kspace = dataset[slices].astype(np.complex64)
    kspace = kspace if dims == 4 else kspace[:, None]
    if not np.isfinite(kspace).all():
        raise ValueError(f"{path}: kspace has NaN or infinite entries, expected finite data")
    tall, wide = kspace.shape[-2:]
    lines = (kspace != 0).any(axis=(1, 2))
    _check_mask(path, member(path, file, "mask"), lines)
    counts = np.ascontiguousarray(np.broadcast_to(lines[:, None], (len(kspace), tall, wide)).astype(np.uint16))
    header = {name: fact for name in ("max", "norm") if (fact := attribute(file, name)) is not None}
    xml = member(path, file, "ismrmrd_header")
    if xml is not None:
        header |= read_header(str(path), text(path, xml))
    recon = numbers(header, "encoding.reconSpace.matrixSize", "xy")
    reference = next((found for name in REFERENCES if (found := member(path, file, name)) is not None), None)
    return Scan(
        kspace=kspace,
        counts=counts,
        source=str(path),
        reference=None if reference is None else reference[slices].astype(np.float32),
        field_of_view=_field_of_view(header),
        recon_shape=None if recon is None else (min(int(recon[0]), tall), min(int(recon[1]), wide)),
        readout_axis=-2,
        header=header,
    )


def chosen(path: str | Path, index: int | None, slices: int) -> slice:
    """Return the slices that are wanted, all or one.

    Raises: ValueError for an index out of range.
    """
    if index is None:
        return slice(None)
    if not 0 <= index < slices:
        raise ValueError(f"{path}: slice index is {index}, expected 0 to {slices - 1}")
    return slice(index, index + 1)


def _field_of_view(header: dict[str, str]) -> Triple | None:
    fov = numbers(header, "encoding.encodedSpace.fieldOfView_mm")
    return None if fov is None else (fov[2], fov[0], fov[1])  # lines, along x, run along axis -2


def _check_mask(path: str | Path, dataset: Any, lines: np.ndarray[Any, Any]) -> None:
    if dataset is None:
        return
    mask = np.asarray(dataset[()] if dataset.dtype.kind in "biuf" else ()).reshape(-1)
    if mask.shape != lines.shape[1:]:
        raise ValueError(f"{path}: mask has shape {dataset.shape}, expected ({lines.shape[1]},), one entry a line")
    unmasked = int((lines.any(axis=0) & (mask == 0)).sum())
    if unmasked:
        raise ValueError(f"{path}: kspace is not zero in {unmasked} lines that mask says were not measured")
