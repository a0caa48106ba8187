"""One step of preconditioned Langevin dynamics, by the three rules there are."""

import math
from enum import StrEnum

from torch import Tensor

from potentia._random import Generators
from potentia._tensor import EVENT_DIMS, inner
from potentia.inference._precondition import Preconditioner


class Rule(StrEnum):
    """How a step makes its noise.

    With drift ``-eps P grad U`` and temperature T, on a Gaussian target whose precision has eigenvalues lam of P^-1:

    - EULER: noise ``sqrt(2 eps T) P^(1/2) xi``, the textbook's; variance 2 / (2 - eps lam) of the truth.
    - LEIMKUHLER_MATTHEWS: noise ``sqrt(eps T / 2) P^(1/2) (xi_k + xi_{k+1})``; variance exact at any eps.
    - PUBLISHED: Chand and Jacob 2026: drift as above, noise ``sqrt(T) P^(1/2) xi`` with the P of the step that
      follows, none after the last; variance 1 / (2 - lam) of the truth at eps = 1.

    Source: Leimkuhler and Matthews 2013, eq. 1.8; Chand and Jacob 2026, algorithm 1.
    """

    EULER = "euler"
    LEIMKUHLER_MATTHEWS = "leimkuhler-matthews"
    PUBLISHED = "published"

    @classmethod
    def parse(cls, where: str, rule: "str | Rule") -> "Rule":
        """Return the rule of that name.

        Raises: ValueError that lists the names there are.
        """
        try:
            return cls(rule)
        except ValueError:
            raise ValueError(
                f"{where}: rule is {rule!r}, expected one of {', '.join(map(repr, map(str, cls)))}"
            ) from None


_LOST = 100.0  # times a stationary chain's drift: annealing is far below, and a step that explodes soon far above


def lost(p: Preconditioner, grad: Tensor) -> Tensor:
    """Mark chains that have left the posterior: where P is too large for its curvature, their steps explode.

    A stationary chain has E <grad, P grad> = tr(P Hess U), at most the number of real entries where P fits. What is
    not finite is lost.

    Shapes: grad (chains, C, H, W); returns (chains,).
    """
    drift = inner(grad, p.solve(grad), EVENT_DIMS).double()
    entries = grad[0].numel() * (2 if grad.is_complex() else 1)
    return ~(drift <= _LOST**2 * entries)


def euler(
    p: Preconditioner, x: Tensor, grad: Tensor, step_size: float, temperature: float, generator: Generators
) -> Tensor:
    """Step to x - eps P grad + sqrt(2 eps T) P^(1/2) xi, with one solve for drift and noise together."""
    rhs = -step_size * grad
    if temperature > 0:
        white = p.white(generator, x.shape, x.dtype)
        rhs = rhs + math.sqrt(2 * step_size * temperature) * p.perturb(white)
    return x + p.solve(rhs)


def leimkuhler_matthews(
    p: Preconditioner,
    x: Tensor,
    grad: Tensor,
    step_size: float,
    temperature: float,
    white: tuple[Tensor, ...] | None,
    generator: Generators,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Step to x - eps P grad + sqrt(eps T / 2) P^(1/2) (xi_k + xi_{k+1}); also the numbers xi_{k+1} to carry over.

    Whoever carries none over (a first step) gets them drawn.
    """
    rhs = -step_size * grad
    if temperature > 0:
        old = p.white(generator, x.shape, x.dtype) if white is None else white
        new = p.white(generator, x.shape, x.dtype)
        both = tuple(a + b for a, b in zip(old, new, strict=True))
        rhs = rhs + math.sqrt(step_size * temperature / 2) * p.perturb(both)
        white = new
    return x + p.solve(rhs), white
