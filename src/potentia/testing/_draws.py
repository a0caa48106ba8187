"""Statistical checks of draws, with bounds from the Monte-Carlo error."""

import math

import torch
from torch import Tensor

from potentia._quadratic import Structure
from potentia._random import chain_generators
from potentia._tensor import EVENT_DIMS, inner
from potentia._validate import Shape
from potentia.testing._support import inner_product, random_image, require, require_close, untouched


def check_draws(
    structure: Structure,
    shape: Shape,
    is_complex: bool,
    shift: float,
    where: str,
    matrix: Tensor | None,
    num_draws: int,
    z_score: float,
    seed: int,
) -> None:
    """Check that ``draw`` has the covariance (Λ + shift I)^-1 and ``noise`` has Λ, each part of complex images alike.

    Whitened, z^H (Λ + shift I) z over all n draws of d entries is chi-squared with d n degrees of freedom (twice as
    many for complex images), so that its mean over them is 1 +- sqrt(2 / (d n)). Projections on single directions show
    what is wrong in few directions only, to sqrt(2 / n).

    Shapes: shape (C, H, W); matrix Λ written out, (d, d), or None.
    Raises: AssertionError naming the class and the identity, with the z-score.
    """
    dtype = torch.complex128 if is_complex else torch.float64
    full = (num_draws, *shape)
    with untouched(where, None):
        z = structure.draw(torch.Generator().manual_seed(seed), full, shift, dtype=dtype)
        again = structure.draw(torch.Generator().manual_seed(seed), full, shift, dtype=dtype)
        noise = structure.noise(torch.Generator().manual_seed(seed), full, dtype=dtype)
    require(z.dtype == dtype and tuple(z.shape) == full, f"{where}: draw: got {z.dtype} of shape {tuple(z.shape)}")
    require(torch.equal(z, again), f"{where}: draw: got another draw from the same seed, expected the same")
    parts = 2 if is_complex else 1
    degrees = parts * num_draws * torch.Size(shape).numel()
    whitened = float(inner(z, structure.apply(z) + shift * z).sum()) / degrees
    _require_mean(where, f"covariance of draws, shift {shift:g}, whitened", whitened, 1.0, degrees, z_score)
    for k, u in enumerate(_directions(shape, is_complex, seed)):
        variance = float(inner(u, structure.solve(u, shift)))
        _check_projection(where, f"draws, shift {shift:g}, direction {k}", z, u, variance, z_score)
        variance = float(inner(u, structure.apply(u)))
        _check_projection(where, f"noise, direction {k}", noise, u, variance, z_score)
    if matrix is not None:
        _check_noise_power(where, noise, matrix, parts, z_score)
    _check_chains(structure, shape, dtype, shift, where, seed)


def _require_mean(where: str, what: str, got: float, want: float, degrees: float, z_score: float) -> None:
    error = math.sqrt(2 / degrees) * want
    z = (got - want) / error if error > 0 else (0.0 if abs(got) < 1e-9 else math.inf)
    require(
        abs(z) <= z_score,
        f"{where}: {what}: got {got:.5g}, expected {want:.5g} +- {error:.2g}, {z:.1f} standard errors off",
    )


def _directions(shape: Shape, is_complex: bool, seed: int) -> list[Tensor]:
    """The mean, the finest texture, one pixel and two random directions, of norm 1."""
    rows, columns = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])[None, :]
    texture = ((-1.0) ** (rows + columns)).to(torch.float64).expand(shape)
    pixel = torch.zeros(shape, dtype=torch.float64)
    pixel[0, 0, 0] = 1
    found = [torch.ones(shape, dtype=torch.float64), texture, pixel]
    found += [random_image(shape, is_complex=is_complex, seed=seed + k) for k in (20, 21)]
    field = torch.complex128 if is_complex else torch.float64
    return [(u / u.abs().square().sum().sqrt()).to(field) for u in found]


def _check_projection(where: str, what: str, z: Tensor, u: Tensor, variance: float, z_score: float) -> None:
    """Both parts of <u, z> have the variance <u, C u>, if each part of z has covariance C and z is circular."""
    n = z.shape[0]
    along = inner_product(u.expand_as(z), z, EVENT_DIMS)
    for label, part in (("real part", along.real), ("imaginary part", along.imag)) if z.is_complex() else (("", along),):
        _require_mean(where, f"variance of {what} {label}".rstrip(), float(part.square().mean()), variance, n, z_score)
        mean = float(part.mean()) / math.sqrt(variance / n) if variance > 1e-12 else 0.0
        require(
            abs(mean) <= z_score,
            f"{where}: mean of {what} {label}: got {mean:.1f} standard errors, expected {z_score:g} at most",
        )


def _check_noise_power(where: str, noise: Tensor, matrix: Tensor, parts: int, z_score: float) -> None:
    """The squared norm has mean tr Λ a part and variance 2 tr Λ^2."""
    trace, square = float(matrix.trace().real), float(matrix.abs().square().sum())
    got = float(inner(noise, noise).mean()) / parts
    # As a chi-squared of as many degrees as give that variance.
    degrees = noise.shape[0] * parts * trace**2 / square if square > 0 else 1.0
    _require_mean(where, "power of noise", got, trace, degrees, z_score)


def _check_chains(
    structure: Structure, shape: Shape, dtype: torch.dtype, shift: float, where: str, seed: int
) -> None:
    chains = structure.draw(chain_generators(seed, range(3)), (3, *shape), shift, dtype=dtype)
    for chain in range(3):
        alone = structure.draw(chain_generators(seed, [chain]), (1, *shape), shift, dtype=dtype)[0]
        # Each system is solved to a relative residual of 1e-10, whichever others are solved beside it.
        require_close(where, f"chain {chain} draws the same alone as beside others", chains[chain], alone, rtol=1e-7)
