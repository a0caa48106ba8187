"""``potentia sample --task mri``: from a scanner's file to a likelihood, step by step, each of them told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potentia import likelihoods
from potentia._cli._options import SampleOptions
from potentia._validate import shape_text
from potentia.io import Scan, read_array, read_scan, scale_to_percentile

PERCENTILE = 99.0
TIKHONOV = 0.01  # of what full sampling by coils of unit root sum of squares would weigh


@dataclass(frozen=True)
class Prepared:
    """Data made ready: the likelihood, what else is to be kept in the store, and what was done, for people."""

    likelihood: likelihoods.Gaussian
    constants: Mapping[str, Any] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)


def prepare_scan(options: SampleOptions) -> Prepared:
    """Read, make the noise white, find the coils' sensitivities, undersample if asked to, and scale.

    Images are divided by the 99th percentile of the magnitude of a least-squares reconstruction, which puts them in the
    unit that the shipped brain prior was trained in; the divisor is kept in the store as ``scale``.

    Raises: FileNotFoundError; ValueError for files that cannot be read or do not fit, several slices without --index,
        and an acceleration of what is undersampled already.
    """
    raw = _one_slice(options)
    told = _told(raw, options)
    scan = raw.prepared(num_coils=options.coils, noise_std=options.noise_std)
    assert scan.coil_maps is not None
    # White noise puts maps that came with the scan in its own unit: back to that of coils of unit root sum of squares.
    gain = np.sqrt((np.abs(scan.coil_maps[0]) ** 2).sum(axis=0).max())
    kspace, maps, std = (array[0] / gain for array in (scan.kspace, scan.coil_maps, scan.noise_std))
    mask = scan.mask[0]
    constants: dict[str, Any] = {}
    truth = None
    if options.acceleration is None:
        told.append(("measured", f"{mask.mean():.1%} of k-space"))
    else:
        truth = _fully_sampled(kspace, maps, mask, options)
        mask = _lines(scan, options.acceleration, options.seed)
        kspace = kspace * mask
        told.append(("undersampled", f"{mask.mean():.1%} of k-space kept; the image of all of it is kept as truth"))
    operator = likelihoods.Sense(torch.from_numpy(maps), torch.from_numpy(mask.astype(np.float32)))
    _, scale = scale_to_percentile(_least_squares(kspace, operator) if truth is None else truth, PERCENTILE)
    if truth is not None:
        constants["truth"] = torch.from_numpy(truth / np.float32(scale))
    level = torch.from_numpy(std / np.float32(scale))
    level = level.flatten()[0] if bool((level == level.flatten()[0]).all()) else level
    likelihood = likelihoods.Gaussian(torch.from_numpy(kspace / np.float32(scale)), operator, level)
    constants["scale"] = np.float64(scale)
    told.append(("scale", f"images are divided by {scale:.4g}; noise std {float(level.min()):.3g} a part"))
    return Prepared(likelihood, constants, told)


def _told(scan: Scan, options: SampleOptions) -> list[tuple[str, str]]:
    """What ``Scan.prepared`` is going to do."""
    told: list[tuple[str, str]] = []
    if scan.oversampled:
        told.append(("readout", "oversampling removed, where lines are measured in whole"))
    if options.noise_std is not None:
        told.append(("noise", f"std {options.noise_std:g} a part in every coil, as given"))
    elif scan.noise is not None:
        told.append(("noise", f"white by the noise scan of {scan.noise.shape[1]} samples"))
    else:
        told.append(("noise", "white by the outermost samples of k-space: there is no noise scan"))
    coils = scan.kspace.shape[1]
    if options.coils is not None and options.coils < coils:
        told.append(("coils", f"{coils} compressed to {options.coils}"))
    if scan.coil_maps is not None:
        told.append(("coil maps", f"of {options.coil_maps or 'the scan'}"))
    elif coils > 1:
        told.append(("coil maps", "by ESPIRiT"))
    return told


def _least_squares(kspace: NDArray[np.complex64], operator: likelihoods.Sense) -> NDArray[np.complex64]:
    """The image that explains k-space, with a little of Tikhonov's regularisation."""
    misfit = likelihoods.Gaussian(torch.from_numpy(kspace), operator, 1.0)
    image: NDArray[np.complex64] = misfit.structure.with_tolerance(1e-3).solve(misfit.linear, TIKHONOV).numpy()
    return image


def _one_slice(options: SampleOptions) -> Scan:
    """The slice that is asked for, with the coil maps that are.

    Raises: FileNotFoundError; ValueError for several slices, or maps that do not fit.
    """
    scan = read_scan(options.data, index=options.index)
    if len(scan.kspace) > 1:
        raise ValueError(
            f"{options.data}: holds {len(scan.kspace)} slices, expected --index 0 to {len(scan.kspace) - 1}, or "
            "--slices : for an ensemble a slice"
        )
    if options.coil_maps is None:
        return scan
    maps = np.asarray(read_array(options.coil_maps)).astype(np.complex64)
    at = options.index or 0
    maps = maps[at] if maps.ndim == 4 and len(maps) > at else maps
    if scan.oversampled and maps.shape != scan.kspace.shape[1:]:
        scan = scan.without_oversampling()
    if maps.shape != scan.kspace.shape[1:]:
        want = shape_text(scan.kspace.shape[1:])
        raise ValueError(f"{options.coil_maps}: maps have shape {shape_text(maps.shape)}, expected {want} as the scan")
    return replace(scan, coil_maps=maps[None])


def _fully_sampled(
    kspace: NDArray[np.complex64], maps: NDArray[np.complex64], mask: NDArray[np.bool_], options: SampleOptions
) -> NDArray[np.complex64]:
    """The image of all of k-space, zero where there are no maps.

    Raises: ValueError if only a part of k-space was measured.
    """
    if not mask.all():
        raise ValueError(
            f"{options.data}: {mask.mean():.1%} of k-space was measured, expected all of it for --acceleration"
        )
    power = (np.abs(maps) ** 2).sum(axis=0, keepdims=True)
    seen = power > 1e-3
    image = likelihoods.Sense(torch.from_numpy(maps)).adjoint(torch.from_numpy(kspace)).numpy()
    return np.where(seen, image / np.where(seen, power, 1), 0).astype(np.complex64)


def _lines(scan: Scan, acceleration: float, seed: int) -> NDArray[np.bool_]:
    """A random mask of lines along the readout."""
    plane = scan.kspace.shape[-2:]
    # cartesian_mask takes columns, along the last axis: lines of a readout along the second last.
    across = plane if scan.readout_axis == -2 else plane[::-1]
    columns = likelihoods.cartesian_mask(across, acceleration, seed=seed).numpy() > 0
    return columns if scan.readout_axis == -2 else columns.T
