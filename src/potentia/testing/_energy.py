"""The contract of potentials."""

from collections.abc import Callable

import torch
from torch import Tensor

from potentia._potential import Potential, ScoreOnly, Sigma
from potentia._tensor import EVENT_DIMS, inner
from potentia._validate import shape_text
from potentia.testing._batch import check_batches
from potentia.testing._differences import derivative
from potentia.testing._probe import (
    generator_of,
    gradient_size,
    identical,
    images_of,
    in_precision,
    normal_like,
    norms,
    one_scale,
    per_image,
    rounding_of,
    scale_of,
    untouched,
    value_size,
)
from potentia.testing._report import fail, require, require_close, require_refusal, subject
from potentia.testing._scales import check_scale_argument

_ENTRIES = 48  # pixels whose entries of the gradient are looked at one by one
_ROUNDING = 1e-12  # of sums in double precision, relative


def check_energy(
    potential: Potential,
    x: Tensor,
    sigma: Sigma = None,
    *,
    seed: int | torch.Generator = 0,
    directions: int = 2,
    tolerance: float = 1e-6,
    single_tolerance: float = 1e-3,
) -> None:
    """Check whatever a potential promises: any energy, likelihood, sum or multiple, with or without values.

    The identities, in order: purity; shapes and dtypes; the gradient against differences and autograd; values and
    gradients in one evaluation; batch entries on their own; single precision; the scale argument; refusals. Numbers are
    compared in double precision, on a copy. Differences are extrapolated and bring their own error estimate e: the
    gradient g may be off by ``tolerance`` |g| + 10 e along unit vectors, and each of its entries by the same of that
    entry alone, so that one at a steep wall does not hide the others (of large images, 48 pixels picked at random).
    Single precision may be off by
    ``single_tolerance``, relative, plus what the rounding of x alone amounts to.

    A ``forward`` that is not attached to a graph is not compared with autograd.

    Shapes: x (*batch, C, H, W), in the potential's field and within its domain, as are images a few times its size.
    Raises: AssertionError that names the class, the identity, got and expected.
    """
    generator = generator_of(seed)
    where = subject(potential)
    _check_purity(where, potential, x, sigma)
    double = in_precision(potential, torch.float64)
    images, scale = images_of(x, generator), one_scale(sigma)
    _check_outputs(where, double, images, scale)
    rounding = rounding_of(potential)
    if potential.has_value:
        size = gradient_size(double, images, scale, generator)
        within = max(tolerance, rounding)
        _check_against_differences(where, double, images, scale, size, generator, directions, within)
        least = rounding if rounding > tolerance else _ROUNDING
        _check_entries(where, double, images, scale, generator, within, least * size)
        _check_against_autograd(where, double, images, scale, rounding * size)
        _check_value_and_grad(where, double, images, scale, size, rounding)
    else:
        _check_no_value(where, potential, x, sigma)
    check_batches(where, double, images, scale, generator)
    _check_single(where, potential, double, images, scale, generator, single_tolerance)
    check_scale_argument(where, double, images, scale)
    _check_refusals(where, potential, x, sigma)


def _check_purity(where: str, potential: Potential, x: Tensor, sigma: Sigma) -> None:
    """Nothing is written to, drawn or remembered, and no graph hangs on to the results."""
    attached = x.detach().clone().requires_grad_(True)
    given = [sigma] if isinstance(sigma, Tensor) else []
    calls: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {"grad": lambda z: (potential.grad(z, sigma),)}
    if potential.has_value:
        calls |= {"value_and_grad": lambda z: potential.value_and_grad(z, sigma)}
        calls |= {"forward": lambda z: (potential(z, sigma),)}
    for name, call in calls.items():
        with untouched(f"{where}.{name}", potential, x, *given):
            once = [t.detach().clone() for t in call(x)]
            twice = call(x)
        same = all(identical(a, b) for a, b in zip(once, twice, strict=True))
        require(same, f"{where}.{name}", "gives the same for the same input", "two different results", "identical ones")
        if name == "forward":
            continue
        with untouched(f"{where}.{name}", potential, attached):
            results = call(attached)
        free = not any(t.requires_grad for t in results)
        require(free, f"{where}.{name}", "is detached", "a result that requires a gradient", "one without a graph")


def _check_outputs(where: str, potential: Potential, x: Tensor, sigma: Sigma) -> None:
    grad = potential.grad(x, sigma)
    _check_tensor(where, "grad has the shape of x", grad, tuple(x.shape), x.device)
    require(grad.dtype == x.dtype, where, "grad has the dtype of x", grad.dtype, x.dtype)
    require(bool(torch.isfinite(grad).all()), where, "grad is finite", "NaN or infinite entries", "finite ones")
    if potential.has_value:
        value = potential(x, sigma)
        _check_tensor(where, "forward gives one value per batch entry", value, tuple(x.shape[:-EVENT_DIMS]), x.device)
        require(value.is_floating_point(), where, "values are real", value.dtype, "a real floating dtype")
        require(bool(torch.isfinite(value).all()), where, "values are finite", "NaN or infinite ones", "finite ones")


def _check_tensor(where: str, identity: str, t: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    require(tuple(t.shape) == shape, where, identity, shape_text(tuple(t.shape)), shape_text(shape))
    require(t.device == device, where, "results are on the device of x", t.device, device)


def _check_against_differences(
    where: str,
    potential: Potential,
    x: Tensor,
    sigma: Sigma,
    size: Tensor,
    generator: torch.Generator,
    directions: int,
    tolerance: float,
) -> None:
    grad, step = potential.grad(x, sigma), 0.05 * scale_of(x)
    random = [normal_like(x, generator) for _ in range(directions)]
    for direction in [grad, *random]:
        length = norms(direction)
        unit = direction / per_image(torch.where(length > 0, length, 1.0))

        def along(t: float, unit: Tensor = unit) -> Tensor:
            value: Tensor = potential(x + t * unit, sigma)
            return value.detach().double()

        want, error = derivative(along, step)
        bend = (along(step) + along(-step) - 2 * along(0.0)).abs() / step
        smooth = bool((error <= 1e-3 * (size + bend) + 1e-12 * along(0.0).abs() / step).all())
        require(smooth, where, "is smooth around x", f"differences off by {float(error.max()):.2g}", "them to converge")
        bound = tolerance * size + 10 * error
        require_close(where, "grad is the derivative of forward (differences)", inner(grad, unit), want, bound)


def _check_entries(
    where: str,
    potential: Potential,
    x: Tensor,
    sigma: Sigma,
    generator: torch.Generator,
    tolerance: float,
    slack: Tensor,
) -> None:
    """Entry by entry, relative to the entry itself; ``slack`` (N,) is what rounding amounts to."""
    axes = _axes(x, generator)
    got = inner(potential.grad(x, sigma)[:, None], axes)
    step = 0.05 * scale_of(x)

    def along(t: float) -> Tensor:
        moved = (x[:, None] + t * axes).flatten(0, 1)
        value: Tensor = potential(moved, sigma)
        return value.detach().double().reshape(len(x), len(axes))

    want, error = derivative(along, step)
    bound = tolerance * got.abs() + 10 * error + slack[:, None]
    if bool(((got - want).abs() > bound).any()):
        # An estimate that is small by accident at one step is not so at another.
        again, more = derivative(along, 0.137 * step)
        bound = torch.maximum(bound, (want - again).abs() + 10 * more)
    require_close(where, "each entry of grad is the derivative of forward (differences)", got, want, bound)


def _axes(x: Tensor, generator: torch.Generator) -> Tensor:
    """Unit images of single pixels, both parts of complex ones: (K, C, H, W)."""
    numel = x[0].numel()
    picked = torch.randperm(numel, generator=generator, device=generator.device)[:_ENTRIES].sort().values.to(x.device)
    flat = torch.zeros(len(picked), numel, dtype=x.dtype, device=x.device)
    flat[torch.arange(len(picked), device=x.device), picked] = 1
    units: Tensor = flat.reshape(-1, *x.shape[1:])
    return torch.cat([units, 1j * units]) if x.is_complex() else units


def _check_against_autograd(where: str, potential: Potential, x: Tensor, sigma: Sigma, room: Tensor) -> None:
    z = x.clone().requires_grad_(True)
    value = potential(z, sigma)
    if not value.requires_grad:
        return
    (want,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
    want = torch.zeros_like(z) if want is None else want
    identity = "grad is the derivative of forward (autograd)"
    require_close(where, identity, potential.grad(x, sigma), want, per_image(room))


def _check_value_and_grad(
    where: str, potential: Potential, x: Tensor, sigma: Sigma, size: Tensor, rounding: float
) -> None:
    value, grad = potential.value_and_grad(x, sigma)
    want: Tensor = potential(x, sigma)
    bound = rounding * (1 + want.detach().abs() + size * norms(x))
    require_close(where, "value_and_grad gives the value of forward", value, want, bound)
    require_close(where, "value_and_grad gives grad", grad, potential.grad(x, sigma), per_image(rounding * size))
    require(grad.dtype == x.dtype, where, "the gradient of value_and_grad has the dtype of x", grad.dtype, x.dtype)


def _check_no_value(where: str, potential: Potential, x: Tensor, sigma: Sigma) -> None:
    identity = "is score-only: forward and value_and_grad refuse"
    require_refusal(where, identity, TypeError, potential.forward, x, sigma)
    require_refusal(where, identity, TypeError, potential.value_and_grad, x, sigma)
    if isinstance(potential, ScoreOnly):
        denoised = potential.denoise(x, sigma)
        require(not denoised.requires_grad, where, "denoise is detached", "a graph", "none")


def _check_single(
    where: str,
    potential: Potential,
    double: Potential,
    x: Tensor,
    sigma: Sigma,
    generator: torch.Generator,
    tolerance: float,
) -> None:
    """Single precision images, buffers of either precision."""
    z = x.to(torch.complex64 if x.is_complex() else torch.float32)
    rounded = z.to(x.dtype)
    # What one rounding of the input does to the output, with room for as many in between.
    nudge = rounded + torch.finfo(torch.float32).eps * scale_of(x) * normal_like(x, generator)
    want = double.grad(rounded, sigma)
    slack = tolerance * gradient_size(double, x, sigma, generator) + 100 * norms(double.grad(nudge, sigma) - want)
    for single, buffers in ((in_precision(potential, torch.float32), "single"), (double, "double")):
        identity = f"single-precision images, buffers in {buffers} precision"
        grad = single.grad(z, sigma)
        require(grad.dtype == z.dtype, where, f"{identity}: grad has the dtype of x", grad.dtype, z.dtype)
        require_close(where, f"{identity}: grad", grad.to(x.dtype), want, per_image(slack))
        if double.has_value:
            value = single(z, sigma)
            require(value.is_floating_point(), where, f"{identity}: values are real", value.dtype, "a real dtype")
            reference = double(rounded, sigma).detach()
            bound = tolerance * value_size(double, x, sigma, generator)
            bound = bound + 100 * (double(nudge, sigma).detach() - reference).abs()
            require_close(where, f"{identity}: value", value.double(), reference.double(), bound)


def _check_refusals(where: str, potential: Potential, x: Tensor, sigma: Sigma) -> None:
    """Images of another shape or field are refused with a ValueError."""
    wrong = {"images of two dimensions": x.reshape(-1, *x.shape[-2:])[0]}
    if potential.event_shape is not None:
        wrong["images of another shape"] = torch.cat([x, x[..., :1]], dim=-1)
    if potential.is_complex is not None:
        wrong["images of the other field"] = x.real if x.is_complex() else x + 0j
    calls = [potential.grad, *([potential.forward, potential.value_and_grad] if potential.has_value else [])]
    for what, images in wrong.items():
        for call in calls:
            # One scale, so that it is the image and not the number of scales that does not fit.
            require_refusal(f"{where}.{call.__name__}", f"refuses {what}", ValueError, call, images, one_scale(sigma))
    if potential.is_complex is not None and potential.is_complex != x.is_complex():
        fail(where, "takes the images it is checked with", x.dtype, "the field that is_complex says")
