"""What potentials do with the noise scale that they are given."""

import math

import torch
from torch import Tensor

from potentia._potential import Energy, Potential, Scales
from potentia.testing._probe import generator_of, gradient_size, per_image, value_size
from potentia.testing._report import require, require_close, require_refusal


def inner_scales(scales: Scales, count: int) -> list[float]:
    """Scales well within a range, geometrically spaced; 0.1 to 10 stands for what has no end.

    Raises: ValueError for a count below one.
    """
    if count < 1:
        raise ValueError(f"inner_scales: count is {count}, expected at least 1")
    low, high = scales
    low = low if low > 0 else min(0.1, 0.01 * high)
    high = high if math.isfinite(high) else max(10.0, 100 * low)
    return [low * (high / low) ** ((k + 1) / (count + 1)) for k in range(count)]


def outside(scales: Scales) -> list[float]:
    """Scales that an energy with this range must refuse."""
    low, high = scales
    below = 0.5 * low if low > 0 else -0.1
    return [below, math.nan, *([2 * high] if math.isfinite(high) else [])]


def takes_finest(potential: Potential, x: Tensor) -> bool:
    """Whether None is taken as scale; degenerate energies have no density at scale zero and may refuse it."""
    if potential.scales is None or potential.scales[0] > 0:
        return True
    try:
        potential.grad(x)
    except ValueError:
        return False
    return True


def check_scale_argument(
    where: str, potential: Potential, x: Tensor, sigma: float | None, *, tolerance: float = 1e-9
) -> None:
    """Check the scale argument: ignored by terms without scales, one number or one per image, refused where outside.

    Shapes: x (N, C, H, W), double precision.
    Raises: AssertionError.
    """
    generator = generator_of(0)
    if potential.scales is None:
        _check_ignored(where, potential, x)
        return
    finest = takes_finest(potential, x)
    if finest and potential.scales[0] > 0:
        same = torch.equal(potential.grad(x), potential.grad(x, potential.scales[0]))
        require(same, where, "None is the finest scale", "another gradient", "the same")
    scales = inner_scales(potential.scales, x.shape[0])
    if sigma is not None:
        scales[0] = sigma
    each = torch.tensor(scales, dtype=torch.float64, device=x.device)
    alone = torch.stack([potential.grad(image, s) for image, s in zip(x, scales, strict=True)])
    within = tolerance * gradient_size(potential, x, each, generator)
    identity = "one scale per image gives the gradients of separate calls"
    require_close(where, identity, potential.grad(x, each), alone, per_image(within))
    if potential.has_value:
        alone = torch.stack([potential(image, s) for image, s in zip(x, scales, strict=True)])
        within = tolerance * value_size(potential, x, each, generator)
        identity = "one scale per image gives the values of separate calls"
        require_close(where, identity, potential(x, each), alone, within)
    calls = [potential.grad, *([potential.forward] if potential.has_value else [])]
    calls += [potential.denoise] if isinstance(potential, Energy) else []
    for call in calls:
        for wrong in outside(potential.scales):
            identity = f"refuses sigma {wrong:g}, outside of scales {potential.scales[0]:g} to {potential.scales[1]:g}"
            require_refusal(f"{where}.{call.__name__}", identity, ValueError, call, x, wrong)
            mixed = each.clone()
            mixed[-1] = wrong
            require_refusal(f"{where}.{call.__name__}", identity, ValueError, call, x, mixed)


def _check_ignored(where: str, potential: Potential, x: Tensor) -> None:
    for sigma in (0.7, 1e6, torch.linspace(0.5, 2.0, x.shape[0], dtype=torch.float64, device=x.device)):
        identity = "has no scales, so that sigma is ignored"
        require(
            torch.equal(potential.grad(x, sigma), potential.grad(x)), where, identity, "another gradient", "the same"
        )
        if potential.has_value:
            require(torch.equal(potential(x, sigma), potential(x)), where, identity, "another value", "the same")
