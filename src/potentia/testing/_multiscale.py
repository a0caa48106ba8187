"""The contract of multi-scale energies, and the Gaussian oracle."""

import math

import torch
from torch import Tensor

from potentia._potential import Energy, Sigma
from potentia._tensor import inner
from potentia.testing._dense import as_covariance, to_images, to_vectors
from potentia.testing._differences import derivative
from potentia.testing._probe import (
    generator_of,
    gradient_size,
    images_of,
    in_precision,
    normal_like,
    norms,
    one_scale,
    per_image,
    scale_of,
)
from potentia.testing._report import fail, require_close, subject
from potentia.testing._scales import inner_scales, takes_finest


def check_multiscale(
    energy: Energy,
    x: Tensor,
    sigma: Sigma = None,
    *,
    seed: int | torch.Generator = 0,
    conservative: bool | None = None,
    tolerance: float = 1e-6,
) -> None:
    """Check what an energy with scales promises over and above ``check_energy``.

    Tweedie's formula ``denoise = x - sigma^2 grad``; a symmetric Jacobian of the gradient (unless ``conservative`` is
    False, and by default only for energies with values: a learned score need not be conservative); gradients continuous
    in sigma and, towards the finest scale, tending to the one there.

    Shapes: x (*batch, C, H, W).
    Raises: AssertionError that names the class, the identity, got and expected.
    """
    where, generator = subject(energy), generator_of(seed)
    energy = in_precision(energy, torch.float64)
    if energy.scales is None:
        fail(where, "has scales", None, "a least and a greatest scale")
    images = images_of(x, generator)
    given = one_scale(sigma)
    scales = inner_scales(energy.scales, 3) + ([] if given is None else [given])
    _check_tweedie(where, energy, images, scales, generator)
    if energy.has_value if conservative is None else conservative:
        for s in scales:
            _check_symmetry(where, energy, images, s, generator, tolerance)
    _check_continuity(where, energy, images, scales, generator)


def _check_tweedie(where: str, energy: Energy, x: Tensor, scales: list[float], generator: torch.Generator) -> None:
    for s in scales:
        # The difference of two images of norm |x| rounds at their size.
        room = per_image(1e-9 * (norms(x) + s**2 * gradient_size(energy, x, s, generator)))
        want = x - s**2 * energy.grad(x, s)
        require_close(where, f"denoise is x - sigma^2 grad at sigma {s:.3g}", energy.denoise(x, s), want, room)
    each = torch.tensor([scales[k % len(scales)] for k in range(x.shape[0])], dtype=torch.float64, device=x.device)
    alone = torch.stack([energy.denoise(image, float(s)) for image, s in zip(x, each, strict=True)])
    identity = "denoise with one scale per image is that of separate calls"
    require_close(where, identity, energy.denoise(x, each), alone, per_image(1e-9 * (norms(x) + norms(alone))))


def _check_symmetry(
    where: str, energy: Energy, x: Tensor, s: float, generator: torch.Generator, tolerance: float
) -> None:
    u, v = (t / per_image(norms(t)) for t in (normal_like(x, generator), normal_like(x, generator)))
    step = 0.05 * min(scale_of(x), math.sqrt(x[0].numel()) * s)
    forms, errors = [], []
    for left, right in ((u, v), (v, u)):

        def along(t: float, left: Tensor = left, right: Tensor = right) -> Tensor:
            return inner(left, energy.grad(x + t * right, s))

        value, error = derivative(along, step)
        forms.append(value)
        errors.append(error)
    # |J| is at least |J v|; forms along random directions are smaller by the square root of the dimension.
    change = norms(energy.grad(x + step * v, s) - energy.grad(x - step * v, s)) / (2 * step)
    bound = tolerance * change + 10 * (errors[0] + errors[1])
    identity = f"the gradient has a symmetric Jacobian, u'Jv = v'Ju, at sigma {s:.3g}"
    require_close(where, identity, forms[0], forms[1], bound)


def _check_continuity(where: str, energy: Energy, x: Tensor, scales: list[float], generator: torch.Generator) -> None:
    """A change of sigma by a part in a million changes the gradient by about as little: less than a thousandth."""
    h = 1e-6
    for s in scales:
        room = per_image(math.sqrt(h) * gradient_size(energy, x, s, generator))
        identity = f"the gradient is continuous in sigma at {s:.3g}"
        require_close(where, identity, energy.grad(x, s * (1 + h)), energy.grad(x, s), room)
    if energy.scales is None or not takes_finest(energy, x):
        return
    low = energy.scales[0]
    near = low * (1 + h) if low > 0 else h * min(scale_of(x), scales[0])
    room = per_image(math.sqrt(h) * gradient_size(energy, x, None, generator))
    require_close(where, "the gradient tends to that at the finest scale", energy.grad(x, near), energy.grad(x), room)


def check_gaussian_oracle(
    energy: Energy,
    mean: Tensor | complex,
    covariance: Tensor,
    x: Tensor,
    sigma: Sigma = None,
    *,
    seed: int | torch.Generator = 0,
    normalised: bool = False,
    tolerance: float = 1e-9,
) -> None:
    """Check an energy against the Gaussian N(mean, covariance + sigma^2 I) in closed form: gradient, denoiser, value.

    Values are compared up to a constant per scale, or, if ``normalised``, as they are. Complex images: real and
    imaginary part each have the covariance. ``tolerance`` is relative, and multiplied by the condition number.

    Shapes: mean (C, H, W) or a number; covariance (C, H, W), independent pixels, or (C H W, C H W);
        x (*batch, C, H, W).
    Raises: AssertionError that names the class, the identity, got and expected.
    """
    where, generator = subject(energy), generator_of(seed)
    energy = in_precision(energy, torch.float64)
    if energy.scales is None:
        fail(where, "has scales", None, "a least and a greatest scale")
    images = images_of(x, generator)
    s = energy.scales[0] if sigma is None else one_scale(sigma) or 0.0
    shape, dtype = tuple(images.shape[1:]), images.dtype
    wide = as_covariance(covariance, shape, dtype)
    wide = wide + s**2 * torch.eye(wide.shape[0], dtype=torch.float64)
    off = to_vectors(images - torch.as_tensor(mean).to(images))
    product = torch.linalg.solve(wide, off.mT).mT
    room = tolerance * float(torch.linalg.cond(wide))
    grad, at = to_images(product, shape, dtype).to(images.device), f"at sigma {s:.3g}"
    within = per_image(room * norms(grad))
    require_close(where, f"is the smoothed Gaussian {at} (gradient)", energy.grad(images, s), grad, within)
    clean, within = images - s**2 * grad, per_image(room * (norms(images) + s**2 * norms(grad)))
    require_close(where, f"is the smoothed Gaussian {at} (denoiser)", energy.denoise(images, s), clean, within)
    if not energy.has_value:
        return
    want = 0.5 * (off * product).sum(-1) + 0.5 * torch.logdet(2 * math.pi * wide)
    got: Tensor = energy(images, s).detach().cpu()
    kind = "value"
    if not normalised:
        got, want, kind = got - got[0], want - want[0], "value, up to a constant"
    bound = room * (1 + want.abs() + (off * product).sum(-1).max())
    require_close(where, f"is the smoothed Gaussian {at} ({kind})", got, want, bound)
