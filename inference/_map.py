"""The maximum a posteriori estimate."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from potentia._cg import ConvergenceWarning
from potentia._potential import Potential
from potentia._random import chain_generators
from potentia._validate import count, positive
from potentia.annealers import Annealer
from potentia.inference._alps import ALPS
from potentia.inference._prepare import prepare
from potentia.inference._rules import Rule

_POLISH = 100  # iterations without a line search, at the most


class MapEstimate(NamedTuple):
    """What ``map_estimate`` found.

    ``value`` is U at the image and the annealer's last scale, in nats (NaN for a score-only prior); ``grad_norm`` the
    greatest magnitude among the entries of its gradient there, in nats per image unit, and ``converged`` whether that
    is within the tolerance; ``iterations`` are those of L-BFGS.

    Shapes: image (C, H, W).
    """

    image: Tensor
    value: float
    grad_norm: float
    converged: bool
    iterations: int


def map_estimate(
    posterior: Potential,
    annealer: Annealer,
    *,
    steps_per_level: int = 5,
    init: Tensor | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-2,
    cg_tolerance: float | None = 1e-4,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> MapEstimate:
    """Most probable image: ALPS at temperature zero down the annealer, then L-BFGS at its last scale.

    The anneal finds the basin, L-BFGS its floor: with a strong Wolfe line search, and the best image it has met as
    result, so that U at the last scale does not end above where the anneal left it. A score-only prior has no value to
    search along, so that the anneal is all there is for it.

    In single precision gradients end at their rounding error; ``dtype="float64"`` goes on.

    Args:
        posterior: What to maximise: usually ``prior + likelihood``.
        annealer: The scales to come down by; its temperatures are taken as zero.
        steps_per_level: Steps at levels that do not state their own.
        init: Where to start, (C, H, W); by default ``P b`` at the first scale.
        max_iterations: Of L-BFGS; 0 leaves it out.
        tolerance: L-BFGS stops where the gradient's greatest entry falls below it, in nats per image unit.
        cg_tolerance: Relative residual of the anneal, for likelihoods that need conjugate gradients.
        device: Where to compute; by default where the posterior's tensors are.
        dtype: Precision, as in ``sample``.

    Returns:
        The image, with U, the gradient's greatest entry, and how the search ended.

    Raises:
        TypeError: For arguments of the wrong kind.
        ValueError: For arguments out of range, or shapes that do not fit.
        FloatingPointError: If the search leaves the finite numbers.

    Warns:
        ConvergenceWarning: If L-BFGS ends before it meets its tolerance.

    Source: Chand and Jacob 2026, section on MAP (ALPS without noise); Liu and Nocedal 1989, L-BFGS.
    """
    count("map_estimate", "max_iterations", max_iterations, least=0)
    positive("map_estimate", "tolerance", tolerance)
    if not isinstance(annealer, Annealer):
        raise TypeError(f"map_estimate: annealer is a {type(annealer).__name__}, expected one of potentia.annealers")
    sampler = ALPS(annealer.with_temperature(0.0), steps_per_level, rule=Rule.EULER, tolerance=cg_tolerance)
    problem = prepare(posterior, sampler, 1, init, 0, device, dtype)
    moved, sigma = problem.posterior, annealer.sigma_min
    generators = chain_generators(0, [0], problem.device)
    state = sampler.init(moved, problem.starts(sampler, generators), generators)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(moved, state)
    x, iterations = state.x[0], 0
    _check_finite(x)
    if not moved.has_value:
        norm = _greatest(moved.grad(x[None], sigma)[0])
        return MapEstimate(x, math.nan, norm, norm <= tolerance, 0)
    if max_iterations:
        x, iterations = _descend(moved, x, sigma, max_iterations, tolerance)
        _check_finite(x)
    value, grad = moved.value_and_grad(x, sigma)
    norm = _greatest(grad)
    if not math.isfinite(float(value)):
        raise FloatingPointError(f"map_estimate: U is {float(value)} at sigma {sigma:g}, expected a finite value")
    if max_iterations and not norm <= tolerance:
        why = (
            f"{iterations} iterations"
            if iterations >= max_iterations
            else f"{iterations} iterations, beyond which U does not fall in {str(x.dtype).removeprefix('torch.')}"
        )
        warnings.warn(
            f"map_estimate: the gradient's greatest entry is {norm:.2e} after {why}, expected {tolerance:.0e} or less",
            ConvergenceWarning,
            stacklevel=2,
        )
    return MapEstimate(x, float(value), norm, norm <= tolerance, iterations)


def _check_finite(x: Tensor) -> None:
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("map_estimate: the search left the finite numbers; try smaller steps or more levels")


def _greatest(grad: Tensor) -> float:
    """Greatest magnitude of an entry, of complex ones of a part: what L-BFGS tests."""
    return float((torch.view_as_real(grad) if grad.is_complex() else grad).abs().max())


def _descend(
    posterior: Potential, x: Tensor, sigma: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, int]:
    """The best image that L-BFGS meets from here, and the iterations it took."""
    is_complex = x.is_complex()
    free = (torch.view_as_real(x) if is_complex else x).clone()

    def image() -> Tensor:
        return torch.view_as_complex(free.detach()) if is_complex else free.detach()

    best, its_value, its_norm, floor = image().clone(), math.inf, math.inf, math.inf
    rounding = torch.finfo(x.dtype).eps

    def closure() -> float:
        nonlocal best, its_value, its_norm, floor
        value, grad = posterior.value_and_grad(image(), sigma)
        free.grad = torch.view_as_real(grad).clone() if is_complex else grad.clone()
        u, norm = float(value), _greatest(grad)
        floor = min(floor, u)
        # Close to the floor values are equal up to rounding: then the smaller gradient is the better image.
        level = floor + rounding * abs(floor)
        if its_value > level or (u <= level and norm < its_norm):
            best, its_value, its_norm = image().clone(), u, norm
        return u

    iterations = 0
    # Values cannot tell points apart whose gradients are below the root of their rounding error: there the line search
    # gives up, and unit steps, judged by the gradient, go on.
    for search, most in (("strong_wolfe", max_iterations), (None, _POLISH)):
        with torch.no_grad():
            free.copy_(torch.view_as_real(best) if is_complex else best)
        # A gradient of our own: closed forms are cheaper than a graph through every term.
        optimiser = torch.optim.LBFGS(
            [free],
            max_iter=min(most, max_iterations - iterations),
            max_eval=50 * max_iterations,  # no limit beside that of the iterations
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            line_search_fn=search,
        )
        optimiser.step(closure)
        iterations += int(optimiser.state[free].get("n_iter", 0))
        if its_norm <= tolerance or iterations >= max_iterations:
            break
    return best, iterations
