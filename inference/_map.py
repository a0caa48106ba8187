"""The maximum a posteriori estimate."""

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import chain_generators
from potentia._validate import count, positive
from potentia.annealers import Annealer
from potentia.inference._alps import ALPS
from potentia.inference._prepare import prepare
from potentia.inference._rules import Rule


def map_estimate(
    posterior: Potential,
    annealer: Annealer,
    *,
    steps_per_level: int = 5,
    init: Tensor | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-4,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Tensor:
    """Most probable image: ALPS at temperature zero down the annealer, then L-BFGS at its last scale.

    The anneal finds the basin, L-BFGS (with a strong Wolfe line search, hence monotone in U) its floor. A score-only
    prior has no value to search along, so that the anneal is all there is for it.

    Args:
        posterior: What to maximise: usually ``prior + likelihood``.
        annealer: The scales to come down by; its temperatures are taken as zero.
        steps_per_level: Steps at levels that do not state their own.
        init: Where to start, (C, H, W); by default ``P b`` at the first scale.
        max_iterations: Of L-BFGS; 0 leaves it out.
        tolerance: L-BFGS stops where the gradient's greatest entry falls below it, in nats per image unit.
        device: Where to compute; by default where the posterior's tensors are.
        dtype: Precision, as in ``sample``.

    Returns:
        The image, (C, H, W).

    Raises:
        TypeError: For arguments of the wrong kind.
        ValueError: For arguments out of range, or shapes that do not fit.
        FloatingPointError: If the search leaves the finite numbers.

    Source: Chand and Jacob 2026, section on MAP (ALPS without noise); Liu and Nocedal 1989, L-BFGS.
    """
    count("map_estimate", "max_iterations", max_iterations, least=0)
    positive("map_estimate", "tolerance", tolerance)
    sampler = (
        ALPS(annealer.with_temperature(0.0), steps_per_level, rule=Rule.EULER)
        if isinstance(annealer, Annealer)
        else None
    )
    if sampler is None:
        raise TypeError(f"map_estimate: annealer is a {type(annealer).__name__}, expected one of potentia.annealers")
    problem = prepare(posterior, sampler, 1, init, 0, device, dtype)
    generators = chain_generators(0, [0], problem.device)
    state = sampler.init(problem.posterior, problem.starts(sampler, generators), generators)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(problem.posterior, state)
    x = state.x[0]
    if problem.posterior.has_value and max_iterations:
        x = _descend(problem.posterior, x, annealer.sigma_min, max_iterations, tolerance)
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("map_estimate: the search left the finite numbers; try smaller steps or more levels")
    return x


def _descend(posterior: Potential, x: Tensor, sigma: float, max_iterations: int, tolerance: float) -> Tensor:
    is_complex = x.is_complex()
    free = (torch.view_as_real(x) if is_complex else x).clone()

    def image() -> Tensor:
        return torch.view_as_complex(free.detach()) if is_complex else free.detach()

    # A gradient of our own: closed forms are cheaper than a graph through every term.
    optimiser = torch.optim.LBFGS(
        [free], max_iter=max_iterations, tolerance_grad=tolerance, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    best, least = image().clone(), float(posterior(image(), sigma))

    def closure() -> float:
        nonlocal best, least
        value, grad = posterior.value_and_grad(image(), sigma)
        free.grad = torch.view_as_real(grad).clone() if is_complex else grad.clone()
        if float(value) < least:
            best, least = image().clone(), float(value)
        return float(value)

    optimiser.step(closure)
    return best
