"""Sampling masks for Cartesian k-space.

All are (H, W) of zeros and ones, float32, k-space centred: the zero frequency is entry (H // 2, W // 2), as in
``Fourier`` and ``Sense``. Entry (i, j) stands for ((i - H // 2) / H, (j - W // 2) / W) cycles per pixel. Random lines
are made by ``cartesian_mask``; frames of dynamic imaging by stacking masks of several seeds.

The masks of the usual comparisons, at 96 x 96: ``cartesian_mask((96, 96), 2)``, ``cartesian_mask((96, 96), 8,
centre_fraction=0.04)`` and ``poisson_disk_mask((96, 96), 6)``.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potentia._validate import Shape, count, real_number, shape_text

Bools = NDArray[np.bool_]


def equispaced_mask(shape: Shape, acceleration: int, *, centre_fraction: float = 0.08, offset: int = 0) -> Tensor:
    """Every ``acceleration``-th column, from column ``offset`` on, and a fully sampled centre beside (ACS lines).

    Shapes: shape (H, W) -> (H, W). The centre comes on top, so that more than one column in ``acceleration`` is taken.
    Raises: ValueError if acceleration < 1, the offset is not below it, or centre_fraction lies outside of [0, 1].
    """
    rate = count("equispaced_mask", "acceleration", acceleration)
    first = count("equispaced_mask", "offset", offset, least=0)
    if first >= rate:
        raise ValueError(f"equispaced_mask: offset must be below acceleration {rate}, got {first}")
    height, width = _plane("equispaced_mask", shape)
    taken = torch.zeros(width)
    taken[first::rate] = 1
    taken[_centre(width, round(width * _fraction("equispaced_mask", "centre_fraction", centre_fraction)))] = 1
    return taken.expand(height, width).clone()


def partial_fourier_mask(shape: Shape, fraction: float, *, axis: int = -1) -> Tensor:
    """The first ``fraction`` of k-space along an axis: partial Fourier, to be multiplied onto another mask.

    Shapes: shape (H, W) -> (H, W).
    Raises: ValueError unless 1/2 < fraction <= 1: the centre must be sampled; or for an axis other than -1 and -2.
    """
    share = _fraction("partial_fourier_mask", "fraction", fraction)
    plane = _plane("partial_fourier_mask", shape)
    if axis not in (-1, -2):
        raise ValueError(f"partial_fourier_mask: axis is {axis!r}, expected -1 or -2")
    n = plane[axis]
    lines = round(share * n)
    if lines <= n // 2:
        raise ValueError(f"partial_fourier_mask: fraction {share:g} leaves out the centre, expected more than 1/2")
    taken = (torch.arange(n) < lines).float()
    return (taken[None, :] if axis == -1 else taken[:, None]).expand(plane).clone()


def random_mask(
    shape: Shape, acceleration: float, *, centre: int | None = None, decay: float = 2.0, seed: int = 0
) -> Tensor:
    """Random points, one in ``acceleration``, with a fully sampled square in the centre.

    Outside of the square, of ``centre`` points a side (by default a twelfth of the shorter side), points are drawn
    without replacement with probabilities that fall as ``(1 - r / r_max)^decay``, r the distance from the centre in
    cycles per pixel and r_max a little beyond the corner; decay 0 is uniform.

    Shapes: shape (H, W) -> (H, W).
    Raises: ValueError if acceleration < 1, decay < 0, or the square alone exceeds the points there are.
    Source: Lustig et al. 2007 (variable density).
    """
    plane, points, taken = _start("random_mask", shape, acceleration, centre)
    power = _not_negative("random_mask", "decay", decay)
    rng = np.random.default_rng(seed)
    weight = np.where(taken, 0.0, (1 - _radius(plane) / (0.5 * math.sqrt(2) * 1.001)) ** power).ravel()
    # Drawing without replacement, by the largest of exponential races (Efraimidis and Spirakis 2006).
    with np.errstate(divide="ignore"):
        race = np.where(weight > 0, rng.exponential(size=weight.shape) / weight, np.inf)
    chosen = np.argsort(race)[: points - int(taken.sum())]
    taken.ravel()[chosen] = True
    return torch.from_numpy(taken.astype(np.float32))


def poisson_disk_mask(
    shape: Shape, acceleration: float, *, centre: int | None = None, decay: float = 1.0, seed: int = 0
) -> Tensor:
    """Random points that keep their distance, one in ``acceleration``, with a fully sampled square in the centre.

    Outside of the square (see ``random_mask``) no point lies nearer to one drawn before it than that one's distance
    d (1 + decay * r / r_max), in pixels; d is found such that the points suffice, and those too many are taken away at
    random. Decay 0 is a uniform density.

    Shapes: shape (H, W) -> (H, W).
    Raises: ValueError if acceleration < 1, decay < 0, or the square alone exceeds the points there are.
    Source: Bridson 2007 for Poisson disks; here darts are thrown at the points of the grid in random order.
    """
    plane, points, centred = _start("poisson_disk_mask", shape, acceleration, centre)
    growth = 1 + _not_negative("poisson_disk_mask", "decay", decay) * _radius(plane) / (0.5 * math.sqrt(2))
    rng = np.random.default_rng(seed)
    order = rng.permutation(plane[0] * plane[1])
    low, high = 0.0, 1.0 + 2 * math.sqrt(acceleration)  # at 0 every point is taken
    for _ in range(14):
        middle = (low + high) / 2
        enough = int((throw_darts(middle * growth, order, centred) | centred).sum()) >= points
        low, high = (middle, high) if enough else (low, middle)
    taken = throw_darts(low * growth, order, centred) | centred
    outside = np.flatnonzero(taken & ~centred)
    taken.ravel()[rng.permutation(outside)[: int(taken.sum()) - points]] = False
    return torch.from_numpy(taken.astype(np.float32))


def throw_darts(distance: NDArray[np.float64], order: NDArray[np.int64], closed: Bools) -> Bools:
    """Take the points of a grid in an order, each unless it is closed or nearer to one taken than that one's distance.

    Shapes: distance (H, W) in pixels, order (H W,), closed (H, W) -> (H, W).
    """
    height, width = distance.shape
    blocked, taken = closed.copy(), np.zeros_like(closed)
    reach = np.ceil(distance).astype(int)
    most = int(reach.max())
    ramp = np.arange(-most, most + 1)
    squares = ramp[:, None] ** 2 + ramp**2
    for index in order:
        y, x = divmod(int(index), width)
        if blocked[y, x]:
            continue
        taken[y, x] = True
        n = reach[y, x]
        top, left, bottom, right = max(0, y - n), max(0, x - n), min(height, y + n + 1), min(width, x + n + 1)
        near = squares[top - y + most : bottom - y + most, left - x + most : right - x + most]
        blocked[top:bottom, left:right] |= near < distance[y, x] ** 2
    return taken


def _start(where: str, shape: Shape, acceleration: float, centre: int | None) -> tuple[tuple[int, int], int, Bools]:
    """The plane, how many points there are to take, and the centre as a mask."""
    plane = _plane(where, shape)
    rate = real_number(where, "acceleration", acceleration)
    if rate < 1:
        raise ValueError(f"{where}: acceleration must be at least 1, got {rate:g}")
    side = max(1, round(min(plane) / 12)) if centre is None else count(where, "centre", centre, least=0)
    points = round(plane[0] * plane[1] / rate)
    taken = np.zeros(plane, dtype=np.bool_)
    if side:
        taken[_centre(plane[0], side), _centre(plane[1], side)] = True
    if taken.sum() > points:
        raise ValueError(
            f"{where}: the centre takes {int(taken.sum())} points, but acceleration {rate:g} leaves {points}"
        )
    return plane, points, taken


def _centre(n: int, width: int) -> slice:
    """The ``width`` entries around the zero frequency n // 2, with one more below it if they are even."""
    start = max(0, n // 2 - width // 2)
    return slice(start, min(n, start + width))


def _radius(plane: tuple[int, int]) -> NDArray[np.float64]:
    """Distance from the centre of k-space, in cycles per pixel."""
    y, x = ((np.arange(n) - n // 2) / n for n in plane)
    radius: NDArray[np.float64] = np.hypot(y[:, None], x[None, :])
    return radius


def _plane(where: str, shape: Shape) -> tuple[int, int]:
    sides = tuple(shape)
    if len(sides) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sides):
        raise ValueError(f"{where}: shape is {shape_text(sides)}, expected (H, W)")
    return sides[0], sides[1]


def _fraction(where: str, what: str, value: float) -> float:
    number = real_number(where, what, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{where}: {what} must lie between 0 and 1, got {number:g}")
    return number


def _not_negative(where: str, what: str, value: float) -> float:
    number = real_number(where, what, value)
    if number < 0:
        raise ValueError(f"{where}: {what} must not be negative, got {number:g}")
    return number
