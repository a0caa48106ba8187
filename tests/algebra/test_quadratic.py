"""Quadratic forms in their three structures: against dense matrices, and by the statistics of their draws."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from potentia import ConvergenceWarning, Quadratic
from potentia._quadratic import Diagonal, Fourier, MatrixFree, Structure
from potentia._random import chain_generators, standard_normal
from potentia._tensor import inner

SHAPE = (2, 3, 5)
D = math.prod(SHAPE)
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
Z = 5.0


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def diagonal(dtype: torch.dtype) -> Diagonal:
    return Diagonal(0.2 + rand(*SHAPE, seed=1, dtype=dtype.to_real()).square())


def fourier(dtype: torch.dtype) -> Fourier:
    s = 0.2 + rand(*SHAPE, seed=2, dtype=dtype.to_real()).square()
    even = s if dtype.is_complex else (s + s.flip((-2, -1)).roll((1, 1), (-2, -1))) / 2
    return Fourier(even)


def matrix_free(dtype: torch.dtype) -> MatrixFree:
    """B^H B for a random B with fewer rows than columns: Λ is singular."""
    b = rand(D - 4, D, seed=3, dtype=dtype) / math.sqrt(D)

    def action(x: Tensor) -> Tensor:
        m = b.to(torch.promote_types(b.dtype, x.dtype))
        return ((x.flatten(-3) @ m.mT) @ m.conj()).reshape(x.shape)

    def noise(generator: object, shape: object, out: torch.dtype) -> Tensor:
        m = b.to(torch.promote_types(b.dtype, out))
        z = standard_normal((*tuple(shape)[:-3], D - 4), generator, dtype=out)  # type: ignore[arg-type]
        return (z @ m.conj()).reshape(*tuple(shape)[:-3], *SHAPE)  # type: ignore[arg-type]

    return MatrixFree(action, noise)


STRUCTURES: dict[str, Callable[[torch.dtype], Structure]] = {
    "diagonal": diagonal,
    "fourier": fourier,
    "matrix-free": matrix_free,
    "diagonal + fourier": lambda d: diagonal(d) + fourier(d),
    "fourier + matrix-free": lambda d: fourier(d) + matrix_free(d),
    "1/2 matrix-free": lambda d: matrix_free(d) * 0.5,
}


def dense(structure: Structure, dtype: torch.dtype) -> Tensor:
    return structure.apply(torch.eye(D, dtype=dtype).reshape(D, *SHAPE)).reshape(D, D).mT


def form_of(structure: Structure, dtype: torch.dtype) -> Quadratic:
    return Quadratic(structure, rand(*SHAPE, seed=4, dtype=dtype), 1.5)


def tolerance(dtype: torch.dtype) -> float:
    """Of solutions: CG's relative residual, over the least eigenvalue, 0.3 at the shifts used here."""
    return 1e-8 if dtype.to_real() == torch.float64 else 1e-3


@pytest.fixture(params=STRUCTURES)
def build(request: pytest.FixtureRequest) -> Callable[[torch.dtype], Structure]:
    return STRUCTURES[request.param]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient_are_those_of_the_dense_form(
    build: Callable[[torch.dtype], Structure], dtype: torch.dtype
) -> None:
    form, x = form_of(build(dtype), dtype), rand(3, 2, *SHAPE, dtype=dtype)
    m, v, b = dense(form.structure, dtype), x.flatten(-3), form.linear.flatten()
    image = v @ m.mT
    want = 0.5 * (v.conj() * image).sum(-1).real - (b.conj() * v).sum(-1).real + 1.5
    rtol = 1e-12 if dtype.to_real() == torch.float64 else 1e-4
    torch.testing.assert_close(form.value(x), want.double(), rtol=rtol, atol=10 * rtol)
    assert form.value(x).dtype == torch.float64
    torch.testing.assert_close(form.grad(x), (image - b).reshape(x.shape), rtol=rtol, atol=10 * rtol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precisions_are_hermitian_and_positive_semi_definite(
    build: Callable[[torch.dtype], Structure], dtype: torch.dtype
) -> None:
    m = dense(build(dtype), dtype)
    eps = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(m, m.mH, rtol=0, atol=eps)
    assert float(torch.linalg.eigvalsh(m).min()) > -eps


@pytest.mark.parametrize("shift", [0.3, 2.0, 50.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_solve_is_the_dense_inverse(
    build: Callable[[torch.dtype], Structure], dtype: torch.dtype, shift: float
) -> None:
    form, rhs = form_of(build(dtype), dtype), rand(3, *SHAPE, seed=5, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float64)
    shifted = dense(form.structure, dtype).to(wide) + shift * torch.eye(D, dtype=wide)
    want = torch.linalg.solve(shifted, rhs.flatten(1).to(wide).mT).mT.reshape(rhs.shape)
    got = form.solve(rhs, shift)
    assert got.dtype == dtype
    torch.testing.assert_close(got.to(wide), want, rtol=0, atol=tolerance(dtype) * float(want.abs().max()))
    mode = torch.linalg.solve(shifted, form.linear.flatten().to(wide)).reshape(SHAPE)
    torch.testing.assert_close(form.mode(shift).to(wide), mode, rtol=0, atol=tolerance(dtype) * float(mode.abs().max()))


def test_a_shift_per_entry_is_the_same_as_separate_solves(build: Callable[[torch.dtype], Structure]) -> None:
    structure, rhs = build(torch.float64), rand(3, *SHAPE)
    shifts = torch.tensor([0.3, 1.0, 7.0], dtype=torch.float64)
    together = structure.solve(rhs, shifts[:, None, None, None])
    for got, r, s in zip(together, rhs, shifts, strict=True):
        torch.testing.assert_close(got, structure.solve(r, float(s)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shift", [0.3, 4.0])
def test_draws_have_the_covariance_of_the_dense_inverse_in_each_part(
    build: Callable[[torch.dtype], Structure], dtype: torch.dtype, shift: float
) -> None:
    n = 4000
    form = form_of(build(dtype), dtype)
    draws = form.draw(torch.Generator().manual_seed(0), (n, *SHAPE), shift)
    assert draws.dtype == dtype
    m = dense(form.structure, dtype)
    m = (m + m.mH) / 2 + shift * torch.eye(D, dtype=dtype)
    _assert_covariance(draws.flatten(1), torch.linalg.inv(m))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_noise_has_the_precision_as_covariance_in_each_part(
    build: Callable[[torch.dtype], Structure], dtype: torch.dtype
) -> None:
    structure = build(dtype)
    noise = structure.noise(torch.Generator().manual_seed(1), (4000, *SHAPE), dtype=dtype)
    m = dense(structure, dtype)
    _assert_covariance(noise.flatten(1), (m + m.mH) / 2)


def _assert_covariance(z: Tensor, covariance: Tensor) -> None:
    """Whiten by the eigenvectors; E z z^H is the covariance, or twice that for complex z, and E z z^T vanishes then.

    Of n draws, a variance of 1 is known to sqrt(2 / n), each part of a complex one alike; a covariance of 0 to
    1 / sqrt(n). All of the some hundred entries are to be within five of those.
    """
    n = z.shape[0]
    values, vectors = torch.linalg.eigh(covariance)
    regular = values > 1e-9 * values.max()
    along = z @ vectors.conj()
    # What is to vanish is left at the square root of the rounding of eigenvectors.
    assert float(along[:, ~regular].abs().amax()) < 1e-6 if bool((~regular).any()) else True
    white = along[:, regular] / values[regular].sqrt()
    parts = [white.real, white.imag] if z.is_complex() else [white]
    for k, part in enumerate(parts):
        products = part.mT @ part / n
        off = products - torch.eye(len(products), dtype=products.dtype)
        assert float(off.diagonal().abs().max()) < Z * math.sqrt(2 / n)
        # The mean over all of them is known better by the square root of their number.
        assert abs(float(off.diagonal().mean())) < Z * math.sqrt(2 / (n * len(products)))
        off.fill_diagonal_(0)
        assert float(off.abs().max()) < Z / math.sqrt(n)
        assert float((part.mT @ parts[1 - k] / n).abs().max()) < Z / math.sqrt(n) if len(parts) == 2 else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_draws_in_single_precision_have_the_right_power(
    build: Callable[[torch.dtype], Structure], dtype: torch.dtype
) -> None:
    n, shift = 2000, 0.5
    form = form_of(build(dtype), dtype)
    z = form.draw(torch.Generator().manual_seed(0), (n, *SHAPE), shift)
    assert z.dtype == dtype
    degrees = n * D * (2 if dtype.is_complex else 1)
    whitened = float(inner(z, form.structure.apply(z) + shift * z).sum()) / degrees
    assert abs(whitened - 1) < Z * math.sqrt(2 / degrees) + 1e-4


def test_a_chain_draws_the_same_however_many_run_beside_it(build: Callable[[torch.dtype], Structure]) -> None:
    for dtype in (torch.float64, torch.complex128):
        structure = build(dtype)
        many = structure.draw(chain_generators(0, range(4)), (4, *SHAPE), 0.5, dtype=dtype)
        for chain in range(4):
            alone = structure.draw(chain_generators(0, [chain]), (1, *SHAPE), 0.5, dtype=dtype)[0]
            torch.testing.assert_close(many[chain], alone, rtol=0, atol=1e-8)


def test_a_draw_is_perturb_and_solve_linear_in_its_white_numbers(build: Callable[[torch.dtype], Structure]) -> None:
    structure = build(torch.float64)
    first, second = (
        structure.white(torch.Generator().manual_seed(s), (2, *SHAPE), dtype=torch.float64) for s in (0, 1)
    )
    both = tuple(0.6 * a + 0.8 * b for a, b in zip(first, second, strict=True))
    want = 0.6 * structure.perturb(first, 0.5) + 0.8 * structure.perturb(second, 0.5)
    torch.testing.assert_close(structure.perturb(both, 0.5), want, rtol=1e-12, atol=1e-12)


def test_sums_keep_what_structure_they_can() -> None:
    d, f, m = diagonal(torch.float64), fourier(torch.float64), matrix_free(torch.float64)
    constant = Diagonal(torch.tensor([[[2.0]], [[3.0]]], dtype=torch.float64))
    assert isinstance(d + d, Diagonal)
    assert isinstance(f + f, Fourier)
    assert isinstance(constant + f, Fourier)
    assert isinstance(f + constant, Fourier)
    assert isinstance(constant + constant, Diagonal)
    assert isinstance(d + f, MatrixFree)
    assert isinstance(m + d, MatrixFree)
    assert (d * 2.0).precision is not d.precision
    assert isinstance(f * 2.0, Fourier)
    x = rand(2, *SHAPE)
    pairs: list[tuple[Structure, Structure]] = [(d, d), (f, f), (constant, f), (d, f), (m, d), (m, m)]
    for a, b in pairs:
        torch.testing.assert_close((a + b).apply(x), a.apply(x) + b.apply(x), rtol=1e-12, atol=1e-12)


def test_a_sum_of_a_varying_diagonal_and_fourier_has_an_approximation_that_saves_iterations() -> None:
    shape = (1, 24, 24)
    fy, fx = torch.fft.fftfreq(24, dtype=torch.float64)[:, None], torch.fft.fftfreq(24, dtype=torch.float64)
    steep = Fourier((1.0 + 1e4 * (fy.square() + fx.square()))[None])
    total = Diagonal(1.0 + 0.5 * rand(*shape).square()) + steep
    assert isinstance(total, MatrixFree)
    assert total.approximation is not None
    few = MatrixFree(total.action, total.sample_noise, total.approximation, max_iterations=25)
    plain = MatrixFree(total.action, total.sample_noise, max_iterations=25)
    rhs = rand(*shape, seed=1)
    few.solve(rhs, 0.1)
    with pytest.warns(ConvergenceWarning, match="matrix-free solve, shift 0.1"):
        plain.solve(rhs, 0.1)


def test_sums_take_the_tighter_tolerance_and_the_larger_limit() -> None:
    m = matrix_free(torch.float64)
    loose = MatrixFree(m.action, m.sample_noise, tolerance=1e-2, max_iterations=50)
    tight = MatrixFree(m.action, m.sample_noise, tolerance=1e-8, max_iterations=20)
    total = loose + tight
    assert isinstance(total, MatrixFree)
    assert (total.tolerance, total.max_iterations) == (1e-8, 50)
    assert isinstance(loose + diagonal(torch.float64), MatrixFree)
    assert (loose + diagonal(torch.float64)).tolerance == 1e-2  # type: ignore[attr-defined]


def test_a_tolerance_asked_for_is_met_and_no_more() -> None:
    structure, rhs = matrix_free(torch.float64), rand(3, *SHAPE)
    residuals = []
    for tolerance_ in (1e-2, 1e-6):
        loose = structure.with_tolerance(tolerance_)
        z = loose.solve(rhs, 0.1)
        r = structure.apply(z) + 0.1 * z - rhs
        residuals.append(float((inner(r, r) / inner(rhs, rhs)).sqrt().max()))
        assert residuals[-1] <= 1.01 * tolerance_
    assert residuals[0] > residuals[1]
    assert diagonal(torch.float64).with_tolerance(1e-3) is not None


def test_singular_precisions_are_refused_without_a_shift() -> None:
    x = rand(2, *SHAPE)
    for structure in (Diagonal(torch.zeros(1, 1, 1)), Fourier(torch.zeros(SHAPE))):
        with pytest.raises(
            ValueError, match=r"precision is singular \(least eigenvalue 0\), expected a positive shift"
        ):
            structure.solve(x)
        with pytest.raises(ValueError, match="singular"):
            structure.draw(torch.Generator(), (2, *SHAPE), dtype=torch.float64)
        torch.testing.assert_close(structure.solve(x, 2.0), x / 2)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_negative_weights_are_refused(build: Callable[[torch.dtype], Structure], weight: float) -> None:
    with pytest.raises(ValueError, match="cannot be scaled by"):
        build(torch.float64) * weight


def test_forms_add_and_scale() -> None:
    a, b = (form_of(build(torch.float64), torch.float64) for build in (diagonal, fourier))
    x = rand(2, *SHAPE)
    torch.testing.assert_close((a + b).value(x), a.value(x) + b.value(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((a + b).grad(x), a.grad(x) + b.grad(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((2.5 * a).value(x), 2.5 * a.value(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((a * 2.5).mode(0.5), form_of(diagonal(torch.float64), torch.float64).mode(0.2))


def test_real_and_complex_forms_do_not_add() -> None:
    a, b = form_of(diagonal(torch.float64), torch.float64), form_of(diagonal(torch.float64), torch.complex128)
    with pytest.raises(ValueError, match="real images and one of complex images"):
        a + b
    with pytest.raises(TypeError):
        a + 1.0  # type: ignore[operator]


def test_precision_of_a_form_is_converted_with_its_field() -> None:
    form = form_of(fourier(torch.complex64), torch.complex64).to(torch.float64)
    assert form.linear.dtype == torch.complex128
    assert isinstance(form.structure, Fourier)
    assert form.structure.spectrum.dtype == torch.float64


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 5), (1, 4, 1), (2, 4, 4), (1, 5, 4)])
def test_fourier_structures_of_every_parity(size: tuple[int, int, int]) -> None:
    s = 0.5 + rand(*size).square()
    even = Fourier((s + s.flip((-2, -1)).roll((1, 1), (-2, -1))) / 2)
    x = rand(3, *size, seed=1)
    assert even.apply(x).dtype == torch.float64
    torch.testing.assert_close(even.apply(x), even.apply(x.to(torch.complex128)).real, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(even.apply(even.solve(x)), x, rtol=1e-12, atol=1e-12)
