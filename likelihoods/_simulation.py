"""Simulated scanners for demonstrations and tests: coil maps and sampling masks."""

import math

import torch
from torch import Tensor

from potentia._validate import Shape, count, real_number


def birdcage_maps(coils: int, shape: Shape, *, radius: float = 1.5) -> Tensor:
    """Sensitivities of coils on a ring, falling off with distance, with a phase that winds around each coil.

    Scaled so that the sum of squared magnitudes is one in every pixel.

    Shapes: shape (H, W) -> (coils, H, W), complex64. Units: radius of the ring in half-widths of the image.
    Raises: ValueError for fewer than one coil or a ring inside the image.
    """
    n = count("birdcage_maps", "coils", coils)
    if real_number("birdcage_maps", "radius", radius) <= 1:
        raise ValueError(f"birdcage_maps: radius must exceed 1, got {radius:g}")
    height, width = shape
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, width, dtype=torch.float64)[None, :]
    maps = []
    for c in range(n):
        angle = 2 * math.pi * c / n
        dx, dy = x - radius * math.cos(angle), y - radius * math.sin(angle)
        phase = torch.atan2(dy.expand(height, width), dx.expand(height, width)) - angle
        maps.append(torch.polar(1 / (dx.square() + dy.square()), phase))
    stacked = torch.stack(maps)
    return (stacked / stacked.abs().square().sum(dim=0, keepdim=True).sqrt()).to(torch.complex64)


def cartesian_mask(
    shape: Shape, acceleration: float, *, centre_fraction: float = 0.08, decay: float = 0.0, seed: int = 0
) -> Tensor:
    """Random 1-D undersampling: a fully sampled centre and random lines outside of it.

    Phase encoding runs along the last dimension, as the columns of k-space; one column in ``acceleration`` is taken.
    Outside of the centre lines are drawn uniformly, or with probabilities that fall as ``(1 - |k| / k_max)^decay``.

    Shapes: shape (H, W) -> (H, W) of zeros and ones, float32, k-space centred.
    Raises: ValueError if acceleration < 1, decay < 0, or the centre alone exceeds the lines there are.
    """
    rate = real_number("cartesian_mask", "acceleration", acceleration)
    power = real_number("cartesian_mask", "decay", decay)
    if power < 0:
        raise ValueError(f"cartesian_mask: decay must not be negative, got {power:g}")
    if rate < 1:
        raise ValueError(f"cartesian_mask: acceleration must be at least 1, got {rate:g}")
    height, width = shape
    lines = max(1, round(width / rate))
    centre = max(1, round(width * real_number("cartesian_mask", "centre_fraction", centre_fraction)))
    if centre > lines:
        raise ValueError(f"cartesian_mask: the centre takes {centre} lines, but acceleration {rate:g} leaves {lines}")
    start = (width - centre + 1) // 2
    taken = torch.zeros(width)
    taken[start : start + centre] = 1
    outside = torch.nonzero(taken == 0).flatten()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(outside), generator=generator)
    if power > 0:
        # Drawing without replacement, by the first of exponential races (Efraimidis and Spirakis 2006).
        weight = (1 - (outside.double() - width // 2).abs() / (width // 2 + 1)) ** power
        order = (torch.empty_like(weight).exponential_(generator=generator) / weight).argsort()
    taken[outside[order[: lines - centre]]] = 1
    return taken.expand(height, width).clone()
