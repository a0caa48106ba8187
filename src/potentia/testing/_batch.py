"""Batch entries never influence one another."""

import torch
from torch import Tensor

from potentia._potential import Potential, Sigma
from potentia.testing._probe import gradient_size, normal_like, per_image, scale_of, value_size
from potentia.testing._report import require_close


def check_batches(
    where: str, potential: Potential, x: Tensor, sigma: Sigma, generator: torch.Generator, *, tolerance: float = 1e-9
) -> None:
    """Check that a batch gives what its images give alone, whatever its shape and whatever stands beside them.

    Shapes: x (N, C, H, W), N >= 2, double precision; sigma a number or None.
    Raises: AssertionError.
    """
    within = per_image(tolerance * gradient_size(potential, x, sigma, generator))
    grad = potential.grad(x, sigma)
    alone = torch.stack([potential.grad(image, sigma) for image in x])
    require_close(where, "the gradient of a batch is that of each image alone", grad, alone, within)
    nested = torch.stack([x, x], dim=1)
    identity = "a batch of two dimensions gives the gradients of its images"
    require_close(where, identity, potential.grad(nested, sigma), torch.stack([grad, grad], dim=1), within[:, None])
    other = x.clone()
    other[0] = 2 * x[0] + scale_of(x) * normal_like(x[0], generator)
    identity = "another image in the batch leaves the other gradients alone"
    require_close(where, identity, potential.grad(other, sigma)[1:], grad[1:], within[1:])
    if potential.has_value:
        _check_values(where, potential, x, other, sigma, tolerance * value_size(potential, x, sigma, generator))


def _check_values(where: str, potential: Potential, x: Tensor, other: Tensor, sigma: Sigma, within: Tensor) -> None:
    value = potential(x, sigma)
    alone = torch.stack([potential(image, sigma) for image in x])
    require_close(where, "the values of a batch are those of each image alone", value, alone, within)
    identity = "a batch of two dimensions gives the values of its images"
    nested = potential(torch.stack([x, x], dim=1), sigma)
    require_close(where, identity, nested, torch.stack([value, value], dim=1), within[:, None])
    identity = "another image in the batch leaves the other values alone"
    require_close(where, identity, potential(other, sigma)[1:], value[1:], within[1:])
