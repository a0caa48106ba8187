"""What every quadratic form promises: its value and gradient, its inverse, and, statistically, its draws."""

from collections.abc import Sequence

import torch
from torch import Tensor

from potentia._potential import Potential, Sigma
from potentia._quadratic import Quadratic, Structure
from potentia._tensor import EVENT_DIMS, inner
from potentia._validate import Shape
from potentia.testing._draws import check_draws
from potentia.testing._support import (
    PER_CALL,
    in_double,
    inner_product,
    random_image,
    require,
    require_close,
    untouched,
)

DENSE = 128  # matrices are written out for images of at most so many entries
SOLVER = 1e-7  # relative residual that a solver asked for 1e-10 may leave behind


def check_quadratic(
    quadratic: Quadratic | Potential,
    shape: Shape,
    sigma: Sigma = None,
    *,
    shifts: Sequence[float] = (0.1, 3.0),
    num_draws: int = 1000,
    z_score: float = 5.0,
    seed: int = 0,
    rounding: float = PER_CALL,
) -> None:
    """Check a quadratic form U(x) = 1/2 <x, Λ x> - Re <b, x> + c, or the one that a potential gives.

    Of a potential, the form must give the value and the gradient (of one that takes images of any shape, the value up
    to a constant). Λ must be self-adjoint, positive semi-definite and linear; ``solve`` must invert Λ + shift I, for
    small images also as a dense matrix, and ``mode`` be where the gradient vanishes; draws and noise must have the
    covariances (Λ + shift I)^-1 and Λ, in each part of complex images, within ``z_score`` Monte-Carlo errors; and a
    chain must draw the same whichever chains run beside it.

    Shapes: shape (C, H, W) of the images.
    Raises: AssertionError naming the class, the identity, what was got and expected.
    """
    form, where = _form_of(quadratic, shape, sigma, seed, rounding)
    structure = form.structure.with_tolerance(1e-10)
    form = Quadratic(structure, form.linear, form.constant)
    is_complex = form.linear.is_complex()
    x = random_image(shape, batch=(2, 2), is_complex=is_complex, seed=seed)
    _check_value(form, x, rounding, where)
    _check_operator(structure, x, seed, rounding, where)
    matrix = dense(structure, shape, is_complex) if _size(shape) <= DENSE else None
    for shift in shifts:
        _check_solve(form, x, shift, matrix, where)
        check_draws(structure, shape, is_complex, shift, where, matrix, num_draws, z_score, seed)
    each = torch.tensor([[shifts[0], shifts[-1]]] * 2, dtype=torch.float64)
    together = structure.solve(x, each[..., None, None, None])
    for j, shift in enumerate((shifts[0], shifts[-1])):
        alone = structure.solve(x[:, j], shift)
        require_close(where, "solve with a shift per entry and one by one", together[:, j], alone, rtol=SOLVER)


def dense(structure: Structure, shape: Shape, is_complex: bool) -> Tensor:
    """Write Λ out as a matrix, column by column.

    Shapes: returns (d, d), d = C H W, double precision.
    """
    dtype = torch.complex128 if is_complex else torch.float64
    columns = structure.apply(torch.eye(_size(shape), dtype=dtype).reshape(-1, *shape))
    return columns.reshape(_size(shape), -1).mT


def _size(shape: Shape) -> int:
    return torch.Size(shape).numel()


def _form_of(
    quadratic: Quadratic | Potential, shape: Shape, sigma: Sigma, seed: int, rounding: float
) -> tuple[Quadratic, str]:
    if isinstance(quadratic, Quadratic):
        form = quadratic.to(torch.float64)
        return form, f"Quadratic of {type(form.structure).__name__}"
    where = type(quadratic).__name__
    p = in_double(quadratic)
    found = p.quadratic(sigma)
    if found is None:
        raise AssertionError(f"{where}: quadratic: got None, expected a form")
    form = found.to(torch.float64)
    x = random_image(shape, batch=(4,), is_complex=form.linear.is_complex(), seed=seed)
    got, want = form.value(x), p(x, sigma).detach()
    # Without a shape there is no normaliser to count the pixels of.
    if p.event_shape is None:
        got, want = got - got[0], want - want[0]
    require_close(where, "the quadratic form gives the value", got, want, rtol=10 * rounding)
    require_close(where, "the quadratic form gives the gradient", form.grad(x), p.grad(x, sigma), rtol=10 * rounding)
    return form, where


def _check_value(form: Quadratic, x: Tensor, rounding: float, where: str) -> None:
    image = form.structure.apply(x)
    linear = form.linear.expand(x.shape[-EVENT_DIMS:])
    want = 0.5 * inner(x, image) - inner(linear, x) + form.constant
    require_close(where, "value is 1/2 <x, Λ x> - Re <b, x> + c", form.value(x), want, rtol=rounding)
    require_close(where, "gradient is Λ x - b", form.grad(x), image - linear, rtol=rounding)


def _check_operator(structure: Structure, x: Tensor, seed: int, rounding: float, where: str) -> None:
    y = random_image(x.shape, is_complex=x.is_complex(), seed=seed + 1)
    with untouched(where, None, x, y):
        images = structure.apply(x), structure.apply(y)
    left, right = inner_product(images[0], y, EVENT_DIMS), inner_product(x, images[1], EVENT_DIMS)
    size = inner(images[0], images[0]).sqrt() * inner(y, y).sqrt()
    require_close(where, "Λ is self-adjoint", left, right, rtol=0.0, atol=rounding * size)
    k: complex = 0.7 - 1.3j if x.is_complex() else -1.3
    got = structure.apply(k * x + y)
    require_close(where, "Λ is linear", got, k * images[0] + images[1], rtol=10 * rounding)
    curvature = inner(x, images[0])
    least = float((curvature + rounding * inner(x, x).sqrt() * inner(images[0], images[0]).sqrt()).min())
    require(least >= 0, f"{where}: Λ is positive semi-definite: got <x, Λ x> = {least:.3g}, expected 0 or more")


def _check_solve(form: Quadratic, x: Tensor, shift: float, matrix: Tensor | None, where: str) -> None:
    structure = form.structure
    z = form.solve(x, shift)
    back = structure.apply(z) + shift * z
    require_close(where, f"solve inverts Λ + {shift:g} I", back, x, rtol=SOLVER)
    if matrix is not None:
        eigenvalues = torch.linalg.eigvalsh(matrix)
        least, greatest = float(eigenvalues[0]), float(eigenvalues[-1])
        low = f"{where}: Λ is positive semi-definite: got an eigenvalue of {least:.3g}, expected 0 or more"
        require(least >= -1e-9 * max(1.0, greatest), low)
        shifted = matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype)
        want = torch.linalg.solve(shifted, x.flatten(-EVENT_DIMS).unsqueeze(-1)).squeeze(-1).reshape(x.shape)
        conditioned = SOLVER * (greatest + shift) / shift
        require_close(where, f"solve is the dense inverse, shift {shift:g}", z, want, rtol=conditioned)
    mode = form.mode(shift).expand(x.shape[-EVENT_DIMS:])
    slope = form.grad(mode) + shift * mode
    size = float(form.linear.abs().max())
    require_close(where, "the gradient vanishes at the mode", slope, 0 * slope, atol=SOLVER * size + 1e-12)
