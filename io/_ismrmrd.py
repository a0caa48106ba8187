"""Raw data in the ISMRM's format, Cartesian and two-dimensional."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potentia.io._fastmri import chosen
from potentia.io._hdf5 import check_entries, member, text
from potentia.io._mrd_header import numbers, read_header
from potentia.io._scan import Scan

# What tells one image from another; averages are averaged, segments are parts of one.
COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set")
ONE_OF = ("contrast", "phase", "repetition", "set")
PARTS = ("head", "traj", "data")
BLOCK = 256
MOST_EMPTY = 1000  # times more positions than samples: what no undersampling reaches, and a forged size does


class Sizes(NamedTuple):
    """Where lines go: the k-space's plane and the encoding step that is its middle."""

    ny: int
    nx: int
    centre: int


def read_ismrmrd(path: str | Path, group: Any, index: int | None, select: Mapping[str, int]) -> Scan:
    """Read the acquisitions of a group and sort them by their encoding steps.

    Each line is placed so that its echo's centre and the centre of the encoding steps come to index n // 2; lines
    measured several times are averaged. Noise scans are scaled to the level of an imaging sample, by the square root
    of the ratio of dwell times over the receiver's relative noise bandwidth. Lines for calibration alone are part of
    k-space where the header calls the calibration embedded, else kept apart. Navigators, feedback, phase correction
    and dummy scans are left out and counted in the header as ``skipped``.

    Raises: ValueError for damaged files, trajectories, three-dimensional encoding, several contrasts, phases,
        repetitions or sets of which none is selected, and lines that do not fit the encoded space.
    Source: Inati et al. 2017, ISMRM Raw data format; the noise's scale: Kellman and McVeigh 2005.
    """
    header = read_header(str(path), text(path, member(path, group, "xml")))
    kind = header.get("encoding.trajectory", "cartesian").lower()
    if kind != "cartesian":
        raise ValueError(f"{path}: trajectory is {kind!r}, expected 'cartesian'")
    noise, imaging, apart, skipped = _sorted(path, _acquisitions(path, member(path, group, "data")), header, select)
    if not imaging:
        raise ValueError(f"{path}: has no imaging lines with {dict(select)}, {skipped} lines of other kinds")
    _check(path, imaging + apart)
    sizes = _sizes(path, header)
    held = sorted({line.idx.slice for line in imaging})
    held = held[chosen(path, index, len(held))]
    imaging = [line for line in imaging if line.idx.slice in held]
    kspace, counts = _place(path, imaging, held, sizes)
    apart = [line for line in apart if line.idx.slice in held]
    scale = _noise_scale(noise, imaging, header)
    fov = numbers(header, "encoding.encodedSpace.fieldOfView_mm")
    return Scan(
        kspace=kspace,
        counts=counts,
        source=str(path),
        noise=_noise(path, noise, kspace.shape[1], scale),
        calibration=_place(path, apart, held, sizes)[0] if apart else None,
        field_of_view=None if fov is None else (fov[2], fov[1], fov[0]),
        affine=None if fov is None else _affine(imaging, held, (fov[2], fov[1] / sizes.ny, fov[0] / sizes.nx), sizes),
        recon_shape=_recon_shape(header, sizes),
        header={**header, "skipped": str(skipped), "noise_scale": f"{scale:.9g}"},
    )


def _recon_shape(header: Mapping[str, str], sizes: Sizes) -> tuple[int, int] | None:
    """Pixels of the scanner's field of view at the resolution of k-space, (y, x)."""
    fov = numbers(header, "encoding.encodedSpace.fieldOfView_mm")
    recon = numbers(header, "encoding.reconSpace.fieldOfView_mm")
    if fov is None or recon is None:
        return None
    tall, wide = (max(1, round(n * min(1.0, recon[at] / fov[at]))) for n, at in ((sizes.ny, 1), (sizes.nx, 0)))
    return tall, wide


def _sizes(path: str | Path, header: Mapping[str, str]) -> Sizes:
    matrix = numbers(header, "encoding.encodedSpace.matrixSize", "xy")
    if matrix is None:
        raise ValueError(f"{path}: header has no encodedSpace.matrixSize, expected its x and y")
    limits = "encoding.encodingLimits.kspace_encoding_step_1.center"
    try:
        centre = int(header.get(limits, int(matrix[1]) // 2))
    except ValueError as err:
        raise ValueError(f"{path}: header has {limits} {header[limits]!r}, expected an integer") from err
    return Sizes(int(matrix[1]), int(matrix[0]), centre)


def _acquisitions(path: str | Path, dataset: Any) -> list[Any]:
    import h5py

    try:
        from ismrmrd.file import Acquisitions
        from ismrmrd.hdf5 import acquisition_dtype
    except ImportError as err:
        raise ImportError(f"{path}: ismrmrd is missing, expected it for raw data: pip install 'potentia[mri]'") from err
    kind = getattr(dataset, "dtype", None)
    if kind is None or kind.names is None or kind.names != PARTS:
        raise ValueError(f"{path}: data has dtype {kind}, expected acquisitions of head, traj and data")
    if any(kind[part] != acquisition_dtype[part] for part in PARTS) or dataset.ndim != 1:
        raise ValueError(f"{path}: acquisitions are of another version of the format, expected that of ismrmrd")
    if any(h5py.check_vlen_dtype(kind[part]) != np.float32 for part in PARTS[1:]):
        raise ValueError(f"{path}: traj and data of acquisitions are not of variable length, expected float32")
    check_entries(path, dataset, dict.fromkeys(PARTS[1:], 4))
    blocks: Any = Acquisitions(dataset)
    lines = [line for start in range(0, len(blocks), BLOCK) for line in blocks[start : start + BLOCK]]
    bad = sum(not np.isfinite(line.data).all() for line in lines)
    if bad:
        raise ValueError(f"{path}: {bad} of {len(lines)} lines have NaN or infinite entries, expected finite data")
    return lines


def _sorted(
    path: str | Path, lines: Sequence[Any], header: Mapping[str, str], select: Mapping[str, int]
) -> tuple[list[Any], list[Any], list[Any], int]:
    """Tell lines apart: noise, imaging, calibration kept apart; and the number of all others."""
    import ismrmrd

    unknown = sorted(set(select) - set(COUNTERS))
    if unknown:
        raise ValueError(f"{path}: select has {', '.join(unknown)}, expected {', '.join(COUNTERS)}")
    left_out = (
        ismrmrd.ACQ_IS_NAVIGATION_DATA,
        ismrmrd.ACQ_IS_PHASECORR_DATA,
        ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
        ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
        ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
        ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
        ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
        ismrmrd.ACQ_IS_PHASE_STABILIZATION,
    )
    embedded = header.get("encoding.parallelImaging.calibrationMode", "embedded").lower() == "embedded"
    noise: list[Any] = []
    imaging: list[Any] = []
    apart: list[Any] = []
    skipped = 0
    for line in lines:
        if line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            noise.append(line)
        elif any(line.is_flag_set(flag) for flag in left_out):
            skipped += 1
        elif all(getattr(line.idx, name) == value for name, value in select.items()):
            alone = line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
            both = line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
            (apart if alone and not both and not embedded else imaging).append(line)
    return noise, imaging, apart, skipped


def _check(path: str | Path, lines: Sequence[Any]) -> None:
    for name in ONE_OF:
        values = sorted({getattr(line.idx, name) for line in lines})
        if len(values) > 1:
            raise ValueError(f"{path}: holds {name} {values}, expected one, as by select={{{name!r}: {values[0]}}}")
    if len({line.encoding_space_ref for line in lines}) > 1:
        raise ValueError(f"{path}: lines are of several encoded spaces, expected one")
    steps = {line.idx.kspace_encode_step_2 for line in lines}
    if len(steps) > 1:
        raise ValueError(f"{path}: is encoded in three dimensions, {len(steps)} partitions, expected two-dimensional")
    if any(line.trajectory_dimensions for line in lines):
        raise ValueError(f"{path}: lines carry trajectories, expected Cartesian ones, which have none")
    coils = sorted({line.active_channels for line in lines})
    if len(coils) > 1:
        raise ValueError(f"{path}: lines have {coils} coils, expected one number of them")


def _place(
    path: str | Path, lines: Sequence[Any], held: Sequence[int], sizes: Sizes
) -> tuple[NDArray[np.complex64], NDArray[np.uint16]]:
    """Sum the lines where they belong and divide by how often each position was measured."""
    coils = lines[0].active_channels
    shape = (len(held), coils, sizes.ny, sizes.nx)
    samples = sum(line.data.size for line in lines)
    if math.prod(shape) > MOST_EMPTY * samples:
        raise ValueError(f"{path}: encoded space makes k-space {shape}, which {samples} samples cannot fill")
    kspace, counts = np.zeros(shape, np.complex64), np.zeros((len(held), sizes.ny, sizes.nx), np.uint16)
    for line in lines:
        data, start = _oriented(line, sizes)
        row = line.idx.kspace_encode_step_1 - sizes.centre + sizes.ny // 2
        stop = start + data.shape[1]
        if start < 0 or stop > sizes.nx or not 0 <= row < sizes.ny:
            raise ValueError(
                f"{path}: line {line.scan_counter}, encoding step {line.idx.kspace_encode_step_1}, would lie at "
                f"row {row} and samples {start} to {stop - 1}, expected within the encoded ({sizes.ny}, {sizes.nx})"
            )
        at = held.index(line.idx.slice)
        kspace[at, :, row, start:stop] += data
        counts[at, row, start:stop] += 1
    kspace /= np.maximum(counts, 1)[:, None]
    return kspace, counts


def _oriented(line: Any, sizes: Sizes) -> tuple[NDArray[np.complex64], int]:
    """Return the samples that are to be kept in the direction of the readout, and the position of the first."""
    import ismrmrd

    total = line.number_of_samples
    data = line.data[:, line.discard_pre : total - line.discard_post]
    centre = line.center_sample - line.discard_pre
    if line.is_flag_set(ismrmrd.ACQ_IS_REVERSE):
        data, centre = data[:, ::-1], data.shape[1] - 1 - centre
    return data, sizes.nx // 2 - centre


def _noise_scale(noise: Sequence[Any], imaging: Sequence[Any], header: Mapping[str, str]) -> float:
    dwell, ours = (float(lines[0].sample_time_us) if lines else 0.0 for lines in (noise, imaging))
    if not (0 < dwell < math.inf and 0 < ours < math.inf):
        return 1.0
    share = numbers(header, "acquisitionSystemInformation", ("relativeReceiverNoiseBandwidth",))
    return math.sqrt(dwell / (ours * (share[0] if share else 1.0)))


def _noise(path: str | Path, lines: Sequence[Any], coils: int, scale: float) -> NDArray[np.complex64] | None:
    if not lines:
        return None
    other = sorted({line.active_channels for line in lines} - {coils})
    if other:
        raise ValueError(f"{path}: noise scan has {other} coils, the imaging lines {coils}")
    return (np.concatenate([line.data for line in lines], axis=1) * np.float32(scale)).astype(np.complex64)


def _affine(
    lines: Sequence[Any], held: Sequence[int], voxel: tuple[float, float, float], sizes: Sizes
) -> NDArray[np.float64] | None:
    """From (slice, y, x) to mm in RAS+, or None where slices are not evenly spaced or directions are no frame."""
    first = {at: next(line for line in lines if line.idx.slice == at) for at in held}
    frames = np.array([[line.slice_dir, line.phase_dir, line.read_dir] for line in first.values()], np.float64)
    frame = frames[0].T
    places = np.array([line.position for line in first.values()], np.float64)
    if not np.isfinite(places).all() or not np.allclose(frames, frames[0], atol=1e-4):
        return None
    if not np.allclose(frame.T @ frame, np.eye(3), atol=1e-3):
        return None
    step = (places[-1] - places[0]) / (len(held) - 1) if len(held) > 1 else frame[:, 0] * voxel[0]
    if not np.allclose(places, places[0] + np.arange(len(held))[:, None] * step, atol=1e-2) or not step.any():
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([step, frame[:, 1] * voxel[1], frame[:, 2] * voxel[2]])
    affine[:3, 3] = places[0] - affine[:3, 1] * (sizes.ny // 2) - affine[:3, 2] * (sizes.nx // 2)
    affine[:2] *= -1  # from the format's left and posterior to right and anterior
    return affine
