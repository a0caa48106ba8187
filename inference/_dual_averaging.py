"""Dual averaging: step sizes that meet a target acceptance."""

import torch
from torch import Tensor

_GAMMA, _DELAY, _KAPPA = 0.25, 10.0, 0.75
_ROWS = 5  # the last log step, its average, the mean error, the log step pulled to, the count


def restart(step: Tensor) -> Tensor:
    """The record of an adaptation that begins at these steps.

    Shapes: step, () pooled or (chains,) -> (5, *step.shape), float64.
    """
    log = step.double().log()
    zero = torch.zeros_like(log)
    return torch.stack([log, log, zero, log, zero])


def update(record: Tensor, error: Tensor) -> Tensor:
    """One iteration, where ``error`` is the target acceptance less the one seen.

    Two constants are not the paper's. gamma is 0.25 in place of 0.05, since chains in a batch see the acceptance with
    little noise: the larger gain has it swing between 0 and 1 for a hundred steps. And steps are pulled to where they
    began, not to ten times that, where most proposals of the first steps would be wasted.

    Source: Hoffman and Gelman 2014, eq. 6, with its t0 = 10 and kappa = 0.75.
    """
    _, average, mean_error, pull, count = record
    count = count + 1
    share = 1 / (count + _DELAY)
    mean_error = (1 - share) * mean_error + share * error.double()
    log = pull - count.sqrt() / _GAMMA * mean_error
    weight = count**-_KAPPA
    return torch.stack([log, weight * log + (1 - weight) * average, mean_error, pull, count])


def current(record: Tensor) -> Tensor:
    """The step to try next."""
    return record[0].exp()


def averaged(record: Tensor) -> Tensor:
    """The step that the iterations average to: the one to keep."""
    return record[1].exp()
