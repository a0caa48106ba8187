"""Log-determinants against those of the matrices written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potentia import likelihoods
from potentia._quadratic import Diagonal, Fourier, MatrixFree, Structure
from potentia.inference._logdet import LogDet

SHIFTS = torch.tensor([1e-3, 0.1, 1.0, 50.0], dtype=torch.float64)


def matrix(structure: Structure, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    d = math.prod(shape)
    return structure.apply(torch.eye(d, dtype=dtype).reshape(d, *shape)).reshape(d, d).mT


def written_out(structure: Structure, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    m = matrix(structure, shape, dtype)
    eye = torch.eye(len(m), dtype=dtype)
    return torch.stack([torch.linalg.slogdet(m + s.to(dtype) * eye)[1] for s in SHIFTS])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("broadcast", [(2, 5, 6), (1, 5, 6), (2, 1, 1), (1, 1, 1), (2, 1, 6)])
def test_diagonal_structure_is_exact_however_it_broadcasts(broadcast: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    structure = Diagonal(torch.rand(broadcast, generator=g, dtype=torch.float64))
    got = LogDet.of(structure, (2, 5, 6), dtype)
    torch.testing.assert_close(got(SHIFTS), written_out(structure, (2, 5, 6), dtype), rtol=1e-12, atol=1e-10)
    assert not got.std_error(SHIFTS).any()


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 2), st.booleans(), st.integers(0, 100))
def test_fourier_structure_is_exact_in_all_sizes(h: int, w: int, c: int, is_complex: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    kernel = torch.randn(c, h, w, generator=g, dtype=torch.float64)
    structure = likelihoods.Convolution(kernel, (c, h, w)).gram(2.0, (c, h, w))
    assert isinstance(structure, Fourier)
    dtype = torch.complex128 if is_complex else torch.float64
    got = LogDet.of(structure, (2, h, w) if c == 2 else (3, h, w), dtype)
    expected = written_out(structure, (2, h, w) if c == 2 else (3, h, w), dtype)
    torch.testing.assert_close(got(SHIFTS), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "dtype"), [((1, 6, 7), torch.complex128), ((1, 6, 7), torch.float64)])
def test_a_spectrum_that_is_not_even_counts_as_images_read_it(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    spectrum = torch.rand(shape, generator=g, dtype=torch.float64)
    if not dtype.is_complex:  # rows k and -k of the columns that are their own mirror image must agree
        spectrum[..., 0] = (spectrum[..., 0] + spectrum[..., 0].flip(-1).roll(1, -1)) / 2
    structure = Fourier(spectrum)
    got = LogDet.of(structure, shape, dtype)(SHIFTS)
    torch.testing.assert_close(got, written_out(structure, shape, dtype), rtol=1e-9, atol=1e-9)


def sense(shape: tuple[int, int], seed: int = 0) -> MatrixFree:
    operator = likelihoods.Sense(likelihoods.birdcage_maps(3, shape), likelihoods.cartesian_mask(shape, 2.0)).double()
    structure = operator.gram(4.0, (1, *shape))
    assert isinstance(structure, MatrixFree)
    return structure


def test_small_matrix_free_operators_are_written_out() -> None:
    structure = sense((8, 8))
    got = LogDet.of(structure, (1, 8, 8), torch.complex128)
    torch.testing.assert_close(got(SHIFTS), written_out(structure, (1, 8, 8), torch.complex128), rtol=1e-9, atol=1e-8)


def masked_blur(shape: tuple[int, int, int]) -> MatrixFree:
    g = torch.Generator().manual_seed(1)
    mask = likelihoods.Mask((torch.rand(shape[1:], generator=g) < 0.6).double())
    structure = (mask @ likelihoods.GaussianBlur(0.8, shape).double()).gram(
        torch.tensor(9.0, dtype=torch.float64), shape
    )
    assert isinstance(structure, MatrixFree)
    return structure


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("case", ["sense", "masked blur"])
def test_lanczos_quadrature_is_right_within_its_error(case: str, near: bool) -> None:
    shape = (1, 12, 10)
    structure = sense((12, 10)) if case == "sense" else masked_blur(shape)
    dtype = torch.complex128 if case == "sense" else torch.float64
    if not near:
        structure = MatrixFree(structure.action, structure.sample_noise)
    got = LogDet.of(structure, shape, dtype, dense_limit=0, num_probes=40, seed=3)
    error = got.std_error(SHIFTS)
    off = got(SHIFTS) - written_out(structure, shape, dtype)
    # Student's t of 39 degrees beyond 4: p = 3e-4.
    assert bool((off.abs() < 4 * error + 1e-6).all()), (off, error)
    assert bool((error < 0.07 * 120).all())
    wrong = got(2 * SHIFTS) - written_out(structure, shape, dtype)
    assert bool((wrong.abs() > 4 * error)[1:].all())


def test_the_circulant_approximation_takes_error_off() -> None:
    structure = sense((16, 16))
    plain = MatrixFree(structure.action, structure.sample_noise)
    errors = [LogDet.of(s, (1, 16, 16), torch.complex128, dense_limit=0).std_error(1.0) for s in (structure, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_enough_steps_of_lanczos_reproduce_the_probes_exactly() -> None:
    shape = (1, 6, 5)
    structure = masked_blur(shape)
    plain = MatrixFree(structure.action, structure.sample_noise)
    m = matrix(structure, shape, torch.float64) + 0.1 * torch.eye(30, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(m)
    log = vectors @ torch.diag(values.log()) @ vectors.mT
    got = LogDet.of(plain, shape, torch.float64, dense_limit=0, num_steps=30, num_probes=1, seed=5)
    z = (1 - 2 * torch.randint(2, (30,), generator=torch.Generator().manual_seed(5))).double()
    assert float(got(0.1)) == pytest.approx(float(z @ log @ z), abs=1e-8)
    short = LogDet.of(plain, shape, torch.float64, dense_limit=0, num_steps=2, num_probes=1, seed=5)
    assert abs(float(short(0.1)) - float(z @ log @ z)) > 1e-4


def test_operators_of_low_rank_exhaust_the_measure_without_harm() -> None:
    mask = torch.zeros(1, 6, 6, dtype=torch.float64)
    mask[0, :2] = 3.0
    plain = MatrixFree(lambda v: mask * v, lambda g, s, d: torch.zeros(s, dtype=d))
    got = LogDet.of(plain, (1, 6, 6), torch.float64, dense_limit=0)
    expected = 12 * (3 + SHIFTS).log() + 24 * SHIFTS.log()
    torch.testing.assert_close(got(SHIFTS), expected, rtol=1e-10, atol=1e-8)


def test_single_precision_probes_are_good_to_single_precision() -> None:
    shape = (1, 16, 16)
    structure = sense((16, 16))
    single = likelihoods.Sense(likelihoods.birdcage_maps(3, (16, 16)), likelihoods.cartesian_mask((16, 16), 2.0)).gram(
        4.0, shape
    )
    a = LogDet.of(single, shape, torch.complex64, dense_limit=0)(SHIFTS)
    b = LogDet.of(structure, shape, torch.complex128, dense_limit=0)(SHIFTS)
    torch.testing.assert_close(a, b, rtol=0, atol=0.05)


def test_it_is_a_fixed_function_of_seed_and_shift() -> None:
    structure = masked_blur((1, 8, 8))
    a, b, c = (LogDet.of(structure, (1, 8, 8), torch.float64, dense_limit=0, seed=s) for s in (0, 0, 1))
    assert bool((a(SHIFTS) == b(SHIFTS)).all())
    assert not bool((a(SHIFTS) == c(SHIFTS)).any())
    assert a(SHIFTS.reshape(2, 2)).shape == (2, 2)
    assert a(0.1).shape == ()
    torch.testing.assert_close(a(0.1), a(SHIFTS)[1])


def test_singular_operators() -> None:
    half = Diagonal(torch.tensor([[[0.0, 2.0]]], dtype=torch.float64))
    got = LogDet.of(half, (1, 3, 2), torch.float64)
    assert float(got(0.0)) == -math.inf
    assert float(got(1.0)) == pytest.approx(3 * math.log(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_integral_of_a_gaussian(dtype: torch.dtype) -> None:
    parts = 2 if dtype.is_complex else 1
    got = LogDet.of(Diagonal(torch.full((1, 1, 1), 3.0)), (1, 2, 2), dtype).log_integral(1.0)
    assert float(got) == pytest.approx(4 * parts * 0.5 * math.log(2 * math.pi / 4))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape is \(4,\)"):
        LogDet.of(Diagonal(torch.ones(1, 1, 1)), (4,), torch.float64)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        LogDet.of(masked_blur((1, 8, 8)), (1, 8, 8), torch.float64, num_probes=0)
