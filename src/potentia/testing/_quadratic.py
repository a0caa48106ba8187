"""The contract of quadratic forms: their value, their solver and their draws."""

from collections.abc import Sequence

import torch
from torch import Tensor

from potentia._cg import default_tolerance
from potentia._potential import Potential, Sigma
from potentia._quadratic import Quadratic
from potentia._random import chain_generators, standard_normal
from potentia._validate import Shape
from potentia.testing._dense import check_covariance, dense, dimension, to_images, to_vectors
from potentia.testing._probe import generator_of, norms, per_image
from potentia.testing._report import fail, require, require_close, subject

LARGEST = 1024  # the dense matrix has the square of that


def check_quadratic(
    form: Quadratic | Potential,
    shape: Shape,
    sigma: Sigma = None,
    *,
    seed: int | torch.Generator = 0,
    shifts: Sequence[float] | None = None,
    num_draws: int = 2000,
    z: float = 6.0,
    tolerance: float | None = None,
) -> None:
    """Check a quadratic form against the dense matrix of its precision; given a potential, also that it is its form.

    Value and gradient; Λ linear, self-adjoint and positive semi-definite; ``solve`` and ``mode`` for several shifts
    (by default a tenth and once the largest eigenvalue, and zero where Λ is well conditioned); the covariance of draws
    and noise, by Monte Carlo of ``num_draws`` within ``z`` standard errors of what is estimated (6: one failure in
    5e8 a number, of some thousands compared); chains on their own; ``+`` and ``*``.

    Shapes: ``shape`` (C, H, W), of at most 1024 real numbers.
    Raises: AssertionError that names the class, the identity, got and expected; ValueError for an image too large.
    """
    where = subject(form)
    potential = form if isinstance(form, Potential) else None
    quadratic = form.quadratic(sigma) if isinstance(form, Potential) else form
    if quadratic is None:
        fail(where, "has a quadratic form", None, "a Quadratic")
    dtype = quadratic.linear.dtype
    if dimension(shape, dtype) > LARGEST:
        raise ValueError(f"check_quadratic: shape is {tuple(shape)}, expected at most {LARGEST} real numbers")
    device = quadratic.linear.device
    generator = generator_of(seed, device)
    within = 10 * default_tolerance(dtype) if tolerance is None else tolerance
    x = standard_normal((3, *shape), generator, dtype=dtype, device=device)
    precision = dense(quadratic.structure.apply, tuple(shape), dtype, device)
    top = float(torch.linalg.matrix_norm(precision, 2))
    _check_matrix(where, quadratic, precision, x, top)
    _check_value(where, quadratic, potential, precision, x, sigma, top)
    for shift in _shifts(precision, top) if shifts is None else shifts:
        _check_solve(where, quadratic, x, shift, top, within)
        _check_draws(where, quadratic, precision, shape, shift, generator, num_draws, z)
        _check_chains(where, quadratic, shape, shift, within)
    _check_noise(where, quadratic, precision, shape, generator, num_draws, z)
    _check_algebra(where, quadratic, x, top)


def _shifts(precision: Tensor, top: float) -> list[float]:
    if top == 0:
        return [1.0]
    regular = float(torch.linalg.eigvalsh(precision).min()) > 1e-4 * top
    return [0.1 * top, top, *([0.0] if regular else [])]


def _rounding(x: Tensor) -> float:
    """Relative error of an application of Λ: FFTs and sums of a few hundred terms."""
    return 1e3 * torch.finfo(x.dtype).eps


def _check_matrix(where: str, form: Quadratic, precision: Tensor, x: Tensor, top: float) -> None:
    room = _rounding(x) * top
    require_close(where, "Λ is self-adjoint", precision, precision.mT.contiguous(), room)
    least = float(torch.linalg.eigvalsh(precision).min())
    require(
        least >= -room, where, "Λ is positive semi-definite", f"an eigenvalue of {least:.3g}", f"at least {-room:.2g}"
    )
    applied = form.structure.apply(x)
    require(applied.dtype == x.dtype, where, "Λ keeps the dtype of images", applied.dtype, x.dtype)
    want = to_images(to_vectors(x) @ precision.mT, tuple(x.shape[1:]), x.dtype).to(x.device)
    require_close(where, "Λ is linear", applied, want, per_image(room * norms(x)))
    if x.is_complex():
        turned = form.structure.apply(1j * x)
        require_close(where, "Λ is complex linear", turned, 1j * applied, per_image(room * norms(x)))


def _check_value(
    where: str, form: Quadratic, potential: Potential | None, precision: Tensor, x: Tensor, sigma: Sigma, top: float
) -> None:
    linear = form.linear.expand(x.shape[1:])
    size = top * norms(x).square() + norms(linear) * norms(x)
    room = _rounding(x) * (1 + size + torch.as_tensor(form.constant, dtype=torch.float64, device=x.device).abs())
    pairs = (x.conj() * (0.5 * form.structure.apply(x) - linear)).real.double().sum((-3, -2, -1))
    require_close(where, "value is 1/2 <x, Λ x> - <b, x> + c", form.value(x).double(), pairs + form.constant, room)
    slope = per_image(_rounding(x) * (top * norms(x) + norms(linear)))
    require_close(where, "grad is Λ x - b", form.grad(x), form.structure.apply(x) - linear, slope)
    if potential is None:
        return
    value: Tensor = potential(x, sigma)
    got, want = form.value(x).double(), value.detach().double()
    room = room + _rounding(x) * want.abs()
    if potential.event_shape is None:
        # Without a shape, the form cannot know a constant that grows with the number of pixels.
        got, want, room = got[1:] - got[0], want[1:] - want[0], 2 * room.max().expand(2)
    require_close(where, "the form has the potential's value", got, want, room)
    require_close(where, "the form has the potential's gradient", form.grad(x), potential.grad(x, sigma), slope)


def _check_solve(where: str, form: Quadratic, x: Tensor, shift: float, top: float, within: float) -> None:
    solution = form.solve(x, shift)
    room = per_image(within * norms(x))
    again = form.structure.apply(solution) + shift * solution
    require_close(where, f"solve inverts Λ + {shift:.3g}", again, x, room)
    linear = form.linear.expand(x.shape[1:])
    mode = form.mode(shift).expand(x.shape[1:])
    again = form.structure.apply(mode) + shift * mode
    require_close(where, f"mode solves (Λ + {shift:.3g}) z = b", again, linear, within * float(norms(linear)))
    if shift > 0:
        each = per_image(shift * torch.tensor([1.0, 2.0, 5.0], dtype=x.real.dtype, device=x.device))
        solution = form.solve(x, each)
        again = form.structure.apply(solution) + each * solution
        require_close(where, "solve takes a shift per image", again, x, room)


def _check_draws(
    where: str,
    form: Quadratic,
    precision: Tensor,
    shape: Shape,
    shift: float,
    generator: torch.Generator,
    num_draws: int,
    z: float,
) -> None:
    size, dtype = (num_draws, *shape), form.linear.dtype
    shifted = precision + shift * torch.eye(precision.shape[0], dtype=torch.float64)
    stream = torch.get_rng_state()
    draws = form.draw(generator, size, shift)
    same = torch.equal(stream, torch.get_rng_state())
    require(same, where, "draws from its generator alone", "the global generator used", "it left alone")
    require(tuple(draws.shape) == size, where, "draws have the shape asked for", tuple(draws.shape), size)
    require(draws.dtype == dtype, where, "draws are of the linear term's dtype", draws.dtype, dtype)
    symmetric = (shifted + shifted.mT) / 2
    identity = f"draws have covariance (Λ + {shift:.3g})^-1"
    check_covariance(where, identity, to_vectors(draws), torch.linalg.inv(symmetric), z=z, floor=0.0)
    structure = form.structure
    rhs = structure.perturb(structure.white(generator, size, dtype=dtype), shift)
    identity = f"perturb has covariance Λ + {shift:.3g}"
    check_covariance(where, identity, to_vectors(rhs), symmetric, z=z, floor=_floor(dtype))


def _check_noise(
    where: str, form: Quadratic, precision: Tensor, shape: Shape, generator: torch.Generator, num_draws: int, z: float
) -> None:
    dtype = form.linear.dtype
    noise = form.structure.noise(generator, (num_draws, *shape), dtype=dtype)
    symmetric = (precision + precision.mT) / 2
    check_covariance(where, "noise has covariance Λ", to_vectors(noise), symmetric, z=z, floor=_floor(dtype))


def _floor(dtype: torch.dtype) -> float:
    return 1e-5 if dtype.to_real() == torch.float32 else 1e-10


def _check_chains(where: str, form: Quadratic, shape: Shape, shift: float, within: float) -> None:
    """Draws from a generator per chain are those of each chain alone."""
    device = form.linear.device
    together = form.draw(chain_generators(0, [0, 1, 2], device), (3, *shape), shift)
    alone = torch.cat([form.draw(chain_generators(0, [k], device), (1, *shape), shift) for k in range(3)])
    room = per_image(100 * within * norms(alone))
    require_close(where, "a chain's draw does not depend on the others", together, alone, room)


def _check_algebra(where: str, form: Quadratic, x: Tensor, top: float) -> None:
    """Sums and multiples of the form."""
    linear = norms(form.linear.expand(x.shape[1:]))
    slope = per_image(10 * _rounding(x) * (top * norms(x) + linear))
    total = form + form * 0.5
    require_close(where, "form + form / 2 has 3/2 the gradient", total.grad(x), 1.5 * form.grad(x), slope)
    room = 10 * _rounding(x) * (1 + top * norms(x).square() + linear * norms(x) + form.value(x).abs())
    require_close(
        where, "form + form / 2 has 3/2 the value", total.value(x).double(), 1.5 * form.value(x).double(), room
    )
