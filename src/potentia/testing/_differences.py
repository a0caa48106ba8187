"""Numerical derivatives that know their own error."""

from collections.abc import Callable

import torch
from torch import Tensor

from potentia._tensor import to_event
from potentia.testing._support import event_norm, random_like

STEPS = tuple(0.5 * 4.0**-k for k in range(8))


def unit_direction(x: Tensor, seed: int) -> Tensor:
    """Give each image a random direction of norm 1.

    Shapes: x (*batch, C, H, W) -> the same.
    """
    v = random_like(x, seed)
    return v / to_event(event_norm(v))


def directional_derivative(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Derivative of a real function of images along a direction, and a bound of its error, entry by entry.

    The five-point rule with steps h and 2 h errs by O(h^4) in the smaller one: were f smooth, the two would differ by
    15 times the error of the smaller step. Twice the whole difference bounds it where f is less than smooth.
    Rounding adds 8 units in the last place of the largest value met, over h. Of a ladder of steps, each entry keeps the
    one with the least bound.

    Shapes: f maps (*batch, C, H, W) -> (*batch,); returns two of (*batch,).
    Source: Abramowitz and Stegun 1964, 25.3.6; Richardson 1911 for the estimate of the error.
    """
    size = event_norm(x) / x[..., :, :, :].numel() ** 0.5
    scale = float(size.max()) or 1.0
    best = torch.zeros(x.shape[:-3], dtype=torch.float64, device=x.device)
    bound = torch.full_like(best, torch.inf)
    for step in STEPS:
        h = step * scale
        at = {k: f(x + k * h * direction) for k in (-4, -2, -1, 1, 2, 4)}
        near = (at[-2] - 8 * at[-1] + 8 * at[1] - at[2]) / (12 * h)
        far = (at[-4] - 8 * at[-2] + 8 * at[2] - at[4]) / (24 * h)
        largest = torch.stack([v.abs() for v in at.values()]).amax(0)
        error = 2 * (near - far).abs() + 8 * torch.finfo(near.dtype).eps * largest / h
        better = (error < bound) & torch.isfinite(near)
        best, bound = torch.where(better, near, best), torch.where(better, error, bound)
    return best, bound
