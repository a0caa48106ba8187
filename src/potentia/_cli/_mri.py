"""``potentia sample --task mri``: from a scanner's file to a likelihood, step by step, each of them told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potentia import likelihoods
from potentia._cli._options import SampleOptions
from potentia._validate import shape_text
from potentia.io import (
    Scan,
    compress_coils,
    espirit_maps,
    noise_covariance,
    noise_samples,
    read_array,
    read_scan,
    scale_to_percentile,
    whitening_matrix,
)

ESPIRIT_THRESHOLD = 0.005  # lower than sigpy's: the maps then fit the calibration lines to within their noise
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
    told: list[tuple[str, str]] = []
    scan = _one_slice(options)
    if scan.recon_shape is not None and scan.recon_shape[scan.readout_axis] < scan.kspace.shape[scan.readout_axis]:
        scan = scan.without_oversampling()
        told.append(("readout", f"oversampling removed, {shape_text(scan.kspace.shape[-2:])} left"))
    scan, noise_std = _whitened(scan, options, told)
    scan = _compressed(scan, options, told)
    maps = _coil_maps(scan, options, told)
    kspace = scan.kspace[0]
    mask = scan.mask[0]
    constants: dict[str, Any] = {}
    if options.acceleration is not None:
        mask, truth = _undersampled(scan, maps, options)
        kspace = kspace * mask
        told.append(("undersampled", f"{mask.mean():.1%} of k-space kept; the image of all of it is kept as truth"))
    else:
        truth = None
        told.append(("measured", f"{mask.mean():.1%} of k-space"))
    operator = likelihoods.Sense(torch.from_numpy(maps), torch.from_numpy(mask.astype(np.float32)))
    plain = _least_squares(kspace, operator) if truth is None else truth
    _, scale = scale_to_percentile(plain, PERCENTILE)
    counts = np.maximum(scan.counts[:1], 1).astype(np.float32)
    std = torch.from_numpy(noise_std / scale / np.sqrt(counts))
    if bool((std == std.flatten()[0]).all()):
        std = std.flatten()[0]
    likelihood = likelihoods.Gaussian(torch.from_numpy(kspace / np.float32(scale)), operator, std)
    if truth is not None:
        constants["truth"] = torch.from_numpy(truth / np.float32(scale))
    constants["scale"] = np.float64(scale)
    told.append(("scale", f"images are divided by {scale:.4g}; noise std {float(std.min()):.3g} a part"))
    return Prepared(likelihood, constants, told)


def _least_squares(kspace: NDArray[np.complex64], operator: likelihoods.Sense) -> NDArray[np.complex64]:
    """The image that explains k-space, with a little of Tikhonov's regularisation."""
    misfit = likelihoods.Gaussian(torch.from_numpy(kspace), operator, 1.0)
    image: NDArray[np.complex64] = misfit.structure.with_tolerance(1e-3).solve(misfit.linear, TIKHONOV).numpy()
    return image


def _one_slice(options: SampleOptions) -> Scan:
    scan = read_scan(options.data, index=options.index)
    if len(scan.kspace) > 1:
        raise ValueError(
            f"{options.data}: holds {len(scan.kspace)} slices, expected --index 0 to {len(scan.kspace) - 1}"
        )
    return scan


def _whitened(scan: Scan, options: SampleOptions, told: list[tuple[str, str]]) -> tuple[Scan, float]:
    """The scan with noise of one std in all coils, and that std."""
    if options.noise_std is not None:
        told.append(("noise", f"std {options.noise_std:g} a part in every coil, as given"))
        return scan, options.noise_std
    if scan.noise is not None:
        told.append(("noise", f"white by the noise scan of {scan.noise.shape[1]} samples"))
        return scan.prewhitened(), 1.0
    samples = noise_samples(scan.kspace[0], source="border", fraction=0.05)
    told.append(("noise", f"white by the outermost {samples.shape[1]} samples of k-space: there is no noise scan"))
    return scan.mix_coils(whitening_matrix(noise_covariance(samples))), 1.0


def _coil_maps(scan: Scan, options: SampleOptions, told: list[tuple[str, str]]) -> NDArray[np.complex64]:
    if options.coil_maps is not None:
        maps: NDArray[np.complex64] = np.asarray(read_array(options.coil_maps)).astype(np.complex64)
        told.append(("coil maps", f"{len(maps)}, from {options.coil_maps}"))
        return maps
    if scan.coil_maps is not None:
        stored: NDArray[np.complex64] = scan.coil_maps[0]
        told.append(("coil maps", f"{len(stored)}, of the file"))
        return stored
    if scan.kspace.shape[1] == 1:
        single: NDArray[np.complex64] = np.ones_like(scan.kspace[0])
        return single
    lines = scan.kspace[0] if scan.calibration is None else scan.calibration[0]
    maps = espirit_maps(lines, threshold=ESPIRIT_THRESHOLD, crop=0.8)
    told.append(("coil maps", f"{len(maps)}, by ESPIRiT"))
    return maps


def _compressed(scan: Scan, options: SampleOptions, told: list[tuple[str, str]]) -> Scan:
    coils = scan.kspace.shape[1]
    if options.coils is None or options.coils >= coils:
        return scan
    if options.coil_maps is not None:
        raise ValueError("--coils: coil maps of a file are of the scanner's own coils, expected one of the two")
    _, matrix = compress_coils(scan.kspace, num_coils=options.coils)
    told.append(("coils", f"{coils} compressed to {options.coils}"))
    return scan.mix_coils(matrix)


def _undersampled(
    scan: Scan, maps: NDArray[np.complex64], options: SampleOptions
) -> tuple[NDArray[np.bool_], NDArray[np.complex64]]:
    """A random mask of lines, and the image of all of k-space."""
    if not scan.mask.all():
        raise ValueError(
            f"{options.data}: {scan.mask.mean():.1%} of k-space was measured, expected all of it for --acceleration"
        )
    assert options.acceleration is not None
    plane = scan.kspace.shape[-2:]
    # cartesian_mask takes columns, along the last axis: lines of a readout along the second last.
    across = plane if scan.readout_axis == -2 else plane[::-1]
    columns = likelihoods.cartesian_mask(across, options.acceleration, seed=options.seed).numpy() > 0
    mask = columns if scan.readout_axis == -2 else columns.T
    whole = likelihoods.Sense(torch.from_numpy(maps))
    power = np.maximum((np.abs(maps) ** 2).sum(axis=0, keepdims=True), 1e-6)
    truth = whole.adjoint(torch.from_numpy(scan.kspace[0])).numpy() / power
    return mask, np.where(power > 1e-3, truth, 0).astype(np.complex64)
