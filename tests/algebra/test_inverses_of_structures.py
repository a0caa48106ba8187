"""What is known of inverses of operators through multiples and sums, and what a form's defaults and copies are."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potentia import ConvergenceWarning, Quadratic
from potentia._quadratic import Diagonal, Fourier, MatrixFree, Structure
from potentia._random import standard_normal

SHAPE = (2, 3, 4)
DOUBLE = torch.float64


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def even(seed: int) -> Tensor:
    s = 0.2 + rand(*SHAPE, seed=seed).square()
    return (s + s.flip((-2, -1)).roll((1, 1), (-2, -1))) / 2


OWN = even(3)


def known(shift: Any, spectrum: Tensor | None = None, /) -> Callable[[Tensor], Tensor] | None:
    """The inverse of the operator below, exact; nothing is known for a shift of 13."""
    if isinstance(shift, float) and shift == 13.0:
        return None
    whole = OWN if spectrum is None else OWN + spectrum
    return lambda v: Fourier(whole).solve(v, shift)


def informed() -> MatrixFree:
    """Diagonal in Fourier space, though it does not say so, with its exact inverse."""
    return MatrixFree(
        Fourier(OWN).apply, lambda g, s, d: Fourier(OWN).noise(g, s, dtype=d), Fourier(OWN), near_inverse=known
    )


def uninformed() -> MatrixFree:
    return MatrixFree(Fourier(OWN).apply, lambda g, s, d: Fourier(OWN).noise(g, s, dtype=d), Fourier(OWN))


SUMS: dict[str, tuple[Callable[[], Structure], Callable[[], Structure]]] = {
    "one number": (informed, lambda: Diagonal(torch.full((1, 1, 1), 0.7, dtype=DOUBLE))),
    "a number a channel": (informed, lambda: Diagonal(torch.tensor([[[0.7]], [[1.9]]], dtype=DOUBLE))),
    "Fourier": (informed, lambda: Fourier(even(4))),
    "multiple": (lambda: informed() * 2.5, lambda: Fourier(even(4)) * 0.5),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_a_known_inverse_is_known_of_multiples_and_sums(name: str, swapped: bool) -> None:
    first, second = (make() for make in SUMS[name])
    total = second + first if swapped else first + second
    assert isinstance(total, MatrixFree)
    assert total.near_inverse is not None
    x, more = rand(3, *SHAPE, seed=1), even(5)
    for shift in (0.4, 2.0):
        inverse = total.near_inverse(shift)
        assert inverse is not None
        torch.testing.assert_close(inverse(total.apply(x) + shift * x), x)
        wider = total.near_inverse(shift, more)
        assert wider is not None
        torch.testing.assert_close(wider(total.apply(x) + Fourier(more).apply(x) + shift * x), x)


def test_a_known_inverse_solves_in_one_iteration() -> None:
    for structure in (informed(), informed() * 3.0, informed() + Fourier(even(4))):
        quick = structure.with_tolerance(1e-8)
        assert isinstance(quick, MatrixFree)
        rhs = rand(2, *SHAPE, seed=1)
        once = MatrixFree(
            quick.action, quick.sample_noise, near_inverse=quick.near_inverse, tolerance=1e-8, max_iterations=1
        )
        z = once.solve(rhs, 0.3)  # a ConvergenceWarning is an error here
        torch.testing.assert_close(structure.apply(z) + 0.3 * z, rhs)


def test_where_nothing_is_known_the_approximation_serves() -> None:
    structure = informed()
    assert known(13.0) is None
    assert (structure * 2.0).near_inverse(26.0) is None  # type: ignore[misc]
    once = MatrixFree(structure.action, structure.sample_noise, Fourier(OWN), near_inverse=known, max_iterations=1)
    rhs = rand(2, *SHAPE, seed=1)
    z = once.solve(rhs, 13.0)
    torch.testing.assert_close(structure.apply(z) + 13.0 * z, rhs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: uninformed() + Fourier(even(4)),
        lambda: informed() + Diagonal(even(4)),
        lambda: informed() + informed(),
        lambda: Diagonal(even(4)) + Fourier(even(5)),
        lambda: informed() * 0.0,
        lambda: uninformed() * 2.0,
    ],
)
def test_no_inverse_is_known_of_other_sums_and_of_zero(make: Callable[[], MatrixFree]) -> None:
    assert make().near_inverse is None


def test_a_multiple_by_one_knows_what_it_knew() -> None:
    assert (informed() * 1.0).near_inverse is not None


def test_noise_of_a_sum_is_drawn_term_by_term_and_added() -> None:
    a, b = Diagonal(even(4)), informed()
    generator = torch.Generator().manual_seed(1)
    want = sum(s.noise(generator, (3, *SHAPE), dtype=DOUBLE) for s in (a, b))
    got = (a + b).noise(torch.Generator().manual_seed(1), (3, *SHAPE), dtype=DOUBLE)
    torch.testing.assert_close(got, want)
    u, z = rand(3, *SHAPE, seed=2), rand(3, *SHAPE, seed=3)
    torch.testing.assert_close(b.perturb((u, z), 0.25), u + 0.5 * z)


@pytest.mark.parametrize(
    ("shift", "where"), [(0.3, "matrix-free solve, shift 0.3"), (torch.tensor(0.3), "matrix-free solve")]
)
def test_a_solve_that_stops_short_says_where(shift: Any, where: str) -> None:
    limited = MatrixFree(Fourier(OWN).apply, uninformed().sample_noise, tolerance=1e-9, max_iterations=1)
    with pytest.warns(ConvergenceWarning, match=f"^{re.escape(where)}: 2 of 2 systems not solved"):
        limited.solve(rand(2, *SHAPE), shift)


def test_a_varying_diagonal_is_approximated_by_its_mean_a_channel() -> None:
    varying = Diagonal(even(4))
    want = even(4).mean(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(varying.circulant().spectrum, want)
    constant = Diagonal(torch.tensor([[[0.7]], [[1.9]]], dtype=DOUBLE))
    assert torch.equal(constant.circulant().spectrum, constant.precision)
    column = Diagonal(even(4)[..., :1])
    torch.testing.assert_close(column.circulant().spectrum, even(4)[..., :1].mean(dim=(-2, -1), keepdim=True))
    assert Fourier(OWN).circulant().spectrum is OWN


def test_the_approximation_of_a_sum_is_the_sum_of_the_approximations() -> None:
    for a, b in ((Diagonal(even(4)), uninformed()), (uninformed(), Diagonal(even(4)))):
        total = a + b
        assert isinstance(total, MatrixFree)
        near = total.circulant()
        assert near is not None
        torch.testing.assert_close(near.spectrum, OWN + even(4).mean(dim=(-2, -1), keepdim=True))
    blind = MatrixFree(Fourier(OWN).apply, uninformed().sample_noise)
    for total in (blind + uninformed(), uninformed() + blind):
        assert total.circulant() is None
    assert (blind * 2.0).circulant() is None
    scaled = (uninformed() * 2.0).circulant()
    assert scaled is not None
    assert torch.equal(scaled.spectrum, 2 * OWN)


def test_a_multiple_scales_the_action_the_noise_and_the_spectrum() -> None:
    x = rand(2, *SHAPE)
    for structure in (Diagonal(even(4)), Fourier(OWN), informed()):
        double = structure * 2.0
        torch.testing.assert_close(double.apply(x), 2 * structure.apply(x))
        noises = [s.noise(torch.Generator().manual_seed(1), (5, *SHAPE), dtype=DOUBLE) for s in (structure, double)]
        torch.testing.assert_close(noises[1], 2**0.5 * noises[0])
        assert bool((structure * 0.0).apply(x).eq(0).all())


def test_multiples_keep_the_solvers_limits() -> None:
    limited = MatrixFree(informed().action, informed().sample_noise, tolerance=1e-3, max_iterations=7)
    for structure in (limited * 2.0, limited.to(torch.float32)):
        assert (structure.tolerance, structure.max_iterations) == (1e-3, 7)
    assert limited.with_tolerance(1e-2).tolerance == 1e-2
    assert (Diagonal(even(4)) + Fourier(OWN)).max_iterations == 1000  # type: ignore[attr-defined]


def test_structures_move_between_precisions_and_keep_their_field_real() -> None:
    for dtype in (torch.float32, torch.complex64):
        diagonal, fourier, free = Diagonal(even(4)).to(dtype), Fourier(OWN).to(dtype), informed().to(dtype)
        assert diagonal.precision.dtype == torch.float32
        assert fourier.spectrum.dtype == torch.float32
        assert free.approximation is not None
        assert free.approximation.spectrum.dtype == torch.float32
        torch.testing.assert_close(diagonal.precision, even(4).float())
        torch.testing.assert_close(free.approximation.spectrum, OWN.float())
    assert MatrixFree(informed().action, informed().sample_noise).to(torch.float32).approximation is None


def test_a_form_moves_with_its_constant() -> None:
    for linear, dtype in ((rand(*SHAPE), torch.float32), (rand(*SHAPE, dtype=torch.complex128), torch.complex64)):
        moved = Quadratic(Diagonal(even(4)), linear, 1.5).to(torch.float32)
        assert moved.linear.dtype == dtype
        assert moved.constant == 1.5
        torch.testing.assert_close(moved.linear, linear.to(dtype))


@pytest.mark.parametrize("structure", [Diagonal(even(4)), Fourier(OWN), informed()])
def test_no_shift_is_the_default(structure: Structure) -> None:
    form, x = Quadratic(structure, rand(*SHAPE)), rand(2, *SHAPE, seed=1)
    torch.testing.assert_close(form.structure.apply(form.solve(x)), x)
    torch.testing.assert_close(form.mode(), form.solve(form.linear))
    drawn = [form.draw(torch.Generator().manual_seed(2), (3, *SHAPE), *shift) for shift in ((), (0.0,))]
    assert torch.equal(*drawn)
    white = structure.white(torch.Generator().manual_seed(2), (3, *SHAPE), dtype=DOUBLE)
    assert torch.equal(structure.perturb(white), structure.perturb(white, 0.0))
    torch.testing.assert_close(structure.solve(x), structure.solve(x, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_numbers_drawn_in_single_precision_stay_there_beside_double_precisions(dtype: torch.dtype) -> None:
    for structure in (Diagonal(even(4)), Fourier(OWN)):
        generator = torch.Generator().manual_seed(0)
        white = structure.white(generator, (2, *SHAPE), dtype=dtype)
        assert structure.perturb(white, 0.5).dtype == dtype
        assert structure.noise(generator, (2, *SHAPE), dtype=dtype).dtype == dtype
    assert Fourier(OWN).draw(generator, (2, *SHAPE), 0.5, dtype=dtype).dtype == dtype


@pytest.mark.parametrize(("structure", "kind"), [(Diagonal, "diagonal"), (Fourier, "Fourier")])
def test_the_refusal_of_a_singular_operator_names_its_kind(structure: Any, kind: str) -> None:
    entries = torch.tensor([[[2.0, -0.125]]])
    want = re.escape(f"{kind} precision is singular (least eigenvalue -0.125), expected a positive shift")
    x = rand(2, 1, 1, 2)
    with pytest.raises(ValueError, match=f"^{want}$"):
        structure(entries).solve(x)
    with pytest.raises(ValueError, match=f"^{want}$"):
        structure(entries).draw(torch.Generator(), (2, 1, 1, 2), dtype=torch.float32)
    structure(entries).solve(x, 0.5)
    structure(entries).solve(x, torch.zeros(()))  # a shift that is a tensor is the caller's to answer for


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_the_refusal_of_a_weight_names_it(weight: float) -> None:
    want = f"^a positive semi-definite operator cannot be scaled by {weight}, expected 0 or more$"
    with pytest.raises(ValueError, match=want):
        Fourier(OWN) * weight


def test_forms_of_two_fields_are_refused_whole() -> None:
    real, complex_ = (Quadratic(Diagonal(even(4)), rand(*SHAPE, dtype=d)) for d in (DOUBLE, torch.complex128))
    with pytest.raises(
        ValueError, match=r"^a quadratic form of real images and one of complex images cannot be added$"
    ):
        real + complex_
