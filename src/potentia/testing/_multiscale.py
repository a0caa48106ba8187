"""What multi-scale energies promise, and what those of a known Gaussian prior must be."""

import torch
from torch import Tensor

from potentia._potential import Energy, Sigma
from potentia._tensor import EVENT_DIMS, inner, to_event
from potentia.testing._differences import directional_derivative, unit_direction
from potentia.testing._support import (
    PER_CALL,
    Call,
    event_norm,
    in_double,
    require,
    require_close,
    require_raises,
    to_double,
)


def check_multiscale(
    energy: Energy,
    x: Tensor,
    sigma: Sigma = None,
    *,
    conservative: bool | None = None,
    seed: int = 0,
    rounding: float = PER_CALL,
) -> None:
    """Check that the scales of an energy belong together.

    ``denoise`` is Tweedie's x - sigma^2 grad; the gradient's Jacobian is symmetric (of complex images, as a real one
    of twice the size), as it must be for an energy to exist; the gradient is continuous towards the finest scale. An
    energy without scales must refuse to denoise.

    Score-only priors need not have symmetric Jacobians: ``conservative=True`` asks for them all the same, and None
    asks for them where there is a value.

    Shapes: x (*batch, C, H, W); sigma None, a number or (*batch,).
    Raises: AssertionError naming the class, the identity, what was got and expected.
    """
    where = type(energy).__name__
    u, z = in_double(energy), to_double(x)
    s = sigma.to(torch.float64) if isinstance(sigma, Tensor) else sigma
    if u.scales is None:
        require_raises(where, "denoise without scales", ValueError, Call(u.denoise, z, 1.0))
        return
    _check_tweedie(u, z, s, rounding, where)
    if u.has_value if conservative is None else conservative:
        _check_symmetric(u, z, s, seed, rounding, where)
    _check_continuous(u, z, where)


def _check_tweedie(u: Energy, x: Tensor, sigma: Sigma, rounding: float, where: str) -> None:
    low, _ = u.scales or (0.0, 0.0)
    s = to_event(low if sigma is None else sigma)
    step = s**2 * u.grad(x, sigma)
    # Where the step all but cancels x, the rounding of both remains.
    atol = rounding * float(torch.maximum(x.abs(), step.abs()).max())
    require_close(where, "denoise is x - sigma^2 grad", u.denoise(x, sigma), x - step, rtol=0.0, atol=atol)


def _check_symmetric(u: Energy, x: Tensor, sigma: Sigma, seed: int, rounding: float, where: str) -> None:
    """u^T J v = v^T J u, each by differences of the gradient that state their error."""
    for k in range(3):
        a, b = unit_direction(x, seed + 2 * k), unit_direction(x, seed + 2 * k + 1)
        left, left_error = directional_derivative(lambda t, a=a: inner(a, u.grad(t, sigma)), x, b)
        right, right_error = directional_derivative(lambda t, b=b: inner(b, u.grad(t, sigma)), x, a)
        atol = left_error + right_error + rounding * event_norm(u.grad(x, sigma))
        require_close(where, "the Jacobian of the gradient is symmetric", left, right, rtol=0.0, atol=atol)


def _check_continuous(u: Energy, x: Tensor, where: str) -> None:
    """Four quarterings of the distance to the finest scale leave at most a sixteenth of the change of the gradient.

    A gradient that is differentiable in the scale leaves a 256th, one like a square root a sixteenth.
    """
    low, high = u.scales or (0.0, 0.0)
    try:
        finest = u.grad(x, low)
    except ValueError:
        # A degenerate prior has no density at scale zero.
        require(low == 0, f"{where}: grad at the finest scale: got ValueError, expected a gradient at {low:g}")
        return
    room = min(0.05 * (low or 1.0), high - low)
    if room == 0:
        return
    first, last = (u.grad(x, low + room * 4.0**-k) for k in (0, 4))
    change, left = event_norm(first - finest), event_norm(last - finest)
    lost = 1e-8 * event_norm(finest) + (64 * 2.3e-16 * event_norm(x) / low**2 if low > 0 else 0.0)
    require_close(where, "the gradient is continuous at the finest scale", left, 0 * left, atol=change / 15 + lost)


def check_gaussian_oracle(
    energy: Energy, mean: Tensor, covariance: Tensor, x: Tensor, sigma: float, *, rounding: float = 1e-8
) -> None:
    """Check an energy of a Gaussian prior against the closed form, the prior smoothed by N(0, sigma^2 I).

    U(x) = 1/2 r^H (C + sigma^2 I)^-1 r up to a constant, r = x - mean, and so its gradient and the denoiser. Of complex
    images, each part has the covariance C. ``rounding`` grows with the condition of C + sigma^2 I.

    Shapes: mean (C, H, W) or a number in a tensor; covariance (d, d), d = C H W; x (*batch, C, H, W).
    Raises: AssertionError naming the class, the identity, what was got and expected.
    """
    where = type(energy).__name__
    u, z = in_double(energy), to_double(x)
    c = to_double(covariance).to(z.dtype)
    smooth = c + sigma**2 * torch.eye(len(c), dtype=c.dtype, device=c.device)
    r = z - to_double(mean).to(z.dtype)
    flat = r.flatten(-EVENT_DIMS)
    want = torch.linalg.solve(smooth, flat.reshape(-1, len(c)).mT).mT.reshape(z.shape)
    rtol = rounding + 64 * 2.3e-16 * float(torch.linalg.cond(smooth))
    require_close(where, "grad of a smoothed Gaussian", u.grad(z, sigma), want, rtol=rtol)
    if u.scales is not None:
        require_close(where, "denoiser of a Gaussian", u.denoise(z, sigma), z - sigma**2 * want, rtol=rtol)
    if u.has_value:
        value, exact = u(z, sigma).detach().reshape(-1), 0.5 * inner(r, want).reshape(-1)
        zero = u(torch.zeros_like(z), sigma).detach().reshape(-1)
        at_zero = 0.5 * inner((r - z), torch.linalg.solve(smooth, (r - z).reshape(-1, len(c)).mT).mT.reshape(z.shape))
        got, expected = value - zero, exact - at_zero.reshape(-1)
        atol = rtol * float(value.abs().max())
        require_close(where, "value differences of a smoothed Gaussian", got, expected, rtol=rtol, atol=atol)
