"""Derivatives by differences, with a bound on their error."""

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps


def derivative(f: Callable[[float], Tensor], step: float, *, levels: int = 10) -> tuple[Tensor, Tensor]:
    """f'(0) and an estimate of its error, from central differences at halving steps, extrapolated.

    Of all the entries of the Romberg table, each batch entry takes the one with the least estimate: how much it differs
    from its neighbours, plus the rounding of f over the step that it came from.

    Shapes: f(t) (*batch,), double; returns two of (*batch,).
    Source: Ridders 1982; Richardson 1911.
    """
    best = error = None
    previous: list[Tensor] = []
    for level in range(levels):
        h = step / 2**level
        ahead, behind = f(h), f(-h)
        rounding = EPSILON * (ahead.abs() + behind.abs()) / h
        row = [(ahead - behind) / (2 * h)]
        for k, older in enumerate(previous):
            row.append(row[k] + (row[k] - older) / (4 ** (k + 1) - 1))
            spread = torch.maximum((row[-1] - row[k]).abs(), (row[-1] - older).abs()) + rounding
            if best is None or error is None:
                best, error = row[-1], spread
            else:
                best, error = torch.where(spread < error, row[-1], best), torch.minimum(spread, error)
        previous = row
    if best is None or error is None:
        raise ValueError(f"derivative: levels is {levels}, expected at least 2")
    return best, error
