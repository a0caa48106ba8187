"""Trajectories through k-space: radial, golden-angle radial and spiral.

All are (M, 2) positions (ky, kx) in cycles per pixel, k-space reaching from -1/2 to 1/2 along each axis, which is what
``NonCartesian`` takes; times 2 pi they are radians per pixel. Samples of one readout follow one another.
"""

import math

import torch
from torch import Tensor

from potentia._validate import count, positive, real_number

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2  # 111.25 degrees: pi over the golden ratio


def radial_trajectory(
    spokes: int, samples: int, *, golden: bool = False, first_angle: float = 0.0, seed: int | None = None
) -> Tensor:
    """Spokes through the centre, from one edge of k-space to the other.

    Angles are spread evenly over half a turn, or follow one another by the golden angle, so that any number of
    consecutive spokes covers all directions. Sample ``samples // 2`` of each spoke lies in the centre.

    Shapes: returns (spokes * samples, 2), float64. Units: cycles per pixel; first_angle in radians from the kx axis,
        drawn from ``seed`` if one is given.
    Raises: ValueError for no spokes or samples.
    Source: Winkelmann et al. 2007 (golden angle).
    """
    n = count("radial_trajectory", "spokes", spokes)
    m = count("radial_trajectory", "samples", samples)
    step = GOLDEN_ANGLE if golden else math.pi / n
    angle = _first(first_angle, seed) + step * torch.arange(n, dtype=torch.float64)
    radius = (torch.arange(m, dtype=torch.float64) - m // 2) / m
    ky, kx = torch.sin(angle)[:, None] * radius, torch.cos(angle)[:, None] * radius
    return torch.stack([ky, kx], dim=-1).reshape(-1, 2)


def spiral_trajectory(
    interleaves: int,
    samples: int,
    *,
    turns: float,
    density: float = 1.0,
    first_angle: float = 0.0,
    seed: int | None = None,
) -> Tensor:
    """Spirals from the centre to radius 1/2, turned against one another so that they share out the circle evenly.

    Along a readout, with t from 0 to 1, the angle grows as ``2 pi turns t`` and the radius as ``t^density / 2``:
    ``density`` 1 is Archimedes' spiral, above 1 the centre is sampled more densely. Neighbouring turns lie
    1 / (2 turns interleaves) apart for density 1; an image of N pixels is sampled fully at ``turns * interleaves``
    >= N / 2.

    Shapes: returns (interleaves * samples, 2), float64. Units: cycles per pixel; first_angle in radians, drawn from
        ``seed`` if one is given.
    Raises: ValueError for no interleaves or samples, or turns or density <= 0.
    """
    n = count("spiral_trajectory", "interleaves", interleaves)
    m = count("spiral_trajectory", "samples", samples)
    revolutions = positive("spiral_trajectory", "turns", turns)
    power = positive("spiral_trajectory", "density", density)
    t = torch.arange(m, dtype=torch.float64) / m
    start = _first(first_angle, seed) + 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    angle = start[:, None] + 2 * math.pi * revolutions * t
    radius = 0.5 * t**power
    return torch.stack([radius * torch.sin(angle), radius * torch.cos(angle)], dim=-1).reshape(-1, 2)


def _first(angle: float, seed: int | None) -> float:
    if seed is None:
        return real_number("trajectory", "first_angle", angle)
    return float(2 * math.pi * torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
