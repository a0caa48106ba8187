"""Batched conjugate gradients with a stopping test per batch entry."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._tensor import EVENT_DIMS, inner, squared_norm, to_event
from potentia._validate import shape_text


class ConvergenceWarning(UserWarning):
    """An iteration stopped at its limit before it met its tolerance."""


class CGResult(NamedTuple):
    """What conjugate gradients return.

    Shapes: solution (*batch, *event); residual (*batch,), relative; iterations: of the slowest entry.
    """

    solution: Tensor
    residual: Tensor
    iterations: int
    converged: bool


def default_tolerance(dtype: torch.dtype) -> float:
    """Relative residual at which CG stops: 1e-5 in single and 1e-10 in double precision."""
    return 1e-10 if dtype.to_real() == torch.float64 else 1e-5


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
    event_dims: int = EVENT_DIMS,
    where: str = "conjugate gradients",
) -> CGResult:
    """Solve ``A z = rhs`` for a Hermitian positive definite ``A``, each batch entry on its own.

    An entry is done when ``||A z - rhs|| <= tolerance ||rhs||`` and stays as it is from then on, so that its
    solution does not depend on the others'. Whoever has not got there after ``max_iterations`` is reported by a
    ConvergenceWarning with the worst residual.

    Shapes: rhs (*batch, *event); ``apply`` and ``precondition`` keep the shape.
    Raises: ValueError if rhs is not finite, or if the operator turns out not to be positive definite.
    Source: Hestenes and Stiefel 1952; preconditioned form after Saad 2003, algorithm 9.1.
    """
    tolerance = default_tolerance(rhs.dtype) if tolerance is None else tolerance
    # To order one, so that squares neither overflow nor vanish in single precision.
    unit = rhs.abs().amax(dim=tuple(range(-event_dims, 0)))
    if not bool(torch.isfinite(unit).all()):
        raise ValueError(f"{where}: the right-hand side of shape {shape_text(tuple(rhs.shape))} is not finite")
    unit = torch.where(unit > 0, unit, 1.0).reshape(*unit.shape, *(1,) * event_dims)
    rhs = rhs / unit
    goal = tolerance**2 * squared_norm(rhs, event_dims)
    z = torch.zeros_like(rhs)
    r = rhs
    p = r
    rq: Tensor | None = None
    left = squared_norm(r, event_dims)
    active = left > goal
    iteration = 0
    real = rhs.real.dtype
    while iteration < max_iterations and bool(active.any()):
        q = precondition(r) if precondition else r
        before, rq = rq, inner(r, q, event_dims)
        p = q if before is None else q + to_event((rq / before).where(active, 0.0).to(real), event_dims) * p
        ap = apply(p)
        curvature = inner(p, ap, event_dims)
        if bool((active & ~(curvature > 0)).any()):
            raise ValueError(
                f"{where}: the operator is not positive definite (curvature {float(curvature.min()):.3g}); what no "
                "measurement sees needs a prior with a quadratic form, or another preconditioner"
            )
        alpha = to_event(torch.where(active, rq / curvature, 0.0).to(real), event_dims)
        z = z + alpha * p
        r = r - alpha * ap
        left = torch.where(active, squared_norm(r, event_dims), left)
        active = left > goal
        iteration += 1
    size = squared_norm(rhs, event_dims)
    residual = torch.where(size > 0, left / size, 0.0).sqrt()
    converged = not bool(active.any())
    if not converged:
        warnings.warn(
            f"{where}: {int(active.sum())} of {active.numel()} systems not solved after {max_iterations} iterations: "
            f"relative residual {float(residual.max()):.2e}, expected {tolerance:.0e}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return CGResult(z * unit, residual, iteration, converged)
