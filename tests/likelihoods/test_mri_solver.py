"""Approximate inverses of normal operators: what they are, and what they save."""

import pytest
import torch
from torch import Tensor

from potentia import likelihoods
from potentia._cg import conjugate_gradients
from potentia._quadratic import Diagonal, MatrixFree
from potentia._random import standard_normal
from potentia.likelihoods import _near_inverse, _sense_normal
from potentia.likelihoods._near_inverse import (
    ORIGIN,
    LineInverse,
    LocalInverse,
    differences,
    kspace_entries,
    neighbourhood,
)

DOUBLE = torch.complex128
SIDE = 48


def normal(*shape: int, seed: int = 0) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=DOUBLE)


def weights(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def inverse_of(operator: likelihoods.Sense, weight: float = 1.0) -> LineInverse | LocalInverse:
    near = operator._normal(weight)._near_inverse(1)
    assert isinstance(near, LineInverse | LocalInverse)
    return near


def matrix_in_kspace(maps: Tensor, spectrum: Tensor, axes: tuple[int, ...]) -> Tensor:
    """F S^H F^H diag(spectrum) F S F^H written out, (n, n), by transforms of unit vectors."""
    shape = maps.shape[1:]
    n = shape.numel()
    k = torch.eye(n, dtype=DOUBLE).reshape(n, 1, *shape)
    x = torch.fft.ifftn(k, dim=axes)
    y = (maps.conj() * torch.fft.ifftn(spectrum * torch.fft.fftn(maps * x, dim=axes), dim=axes)).sum(1)
    return torch.fft.fftn(y, dim=axes).reshape(n, n).T


@pytest.mark.parametrize(
    ("axes", "reach", "coils"), [((-2, -1), 5, 1), ((-2, -1), 2, 2), ((-1,), 4, 1), ((-3, -2, -1), 2, 2)]
)
def test_entries_are_those_of_the_matrix(axes: tuple[int, ...], reach: int, coils: int) -> None:
    maps = normal(2, 2, 4, 3)
    spectrum = weights(coils, *(maps.shape[a] if a in axes else 1 for a in (-3, -2, -1)))
    k = matrix_in_kspace(maps, spectrum, axes)
    index = torch.arange(24).reshape(2, 4, 3)
    for d, entry in kspace_entries(maps, spectrum, axes, differences(neighbourhood(axes, reach))).items():
        moved = index.roll(tuple(-n for n in d), (0, 1, 2))
        assert torch.allclose(entry.flatten(), k[index.flatten(), moved.flatten()], atol=1e-13)


@pytest.mark.parametrize("along", ["points", "columns", "rows"])
def test_the_circulant_approximation_has_the_diagonal_of_the_matrix(along: str) -> None:
    mask = (weights(*{"points": (4, 3), "columns": (1, 3), "rows": (4, 1)}[along]) < 0.7).double().expand(4, 3)
    maps = normal(2, 4, 3)
    near = likelihoods.Sense(maps, mask).gram(1.0, (1, 4, 3)).circulant()
    assert near is not None
    k = matrix_in_kspace(maps[:, None], torch.fft.ifftshift(mask)[None, None], (-2, -1))
    assert torch.allclose(near.spectrum.flatten(), k.diagonal().real, atol=1e-12)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("real", [False, True])
def test_lines_are_solved_exactly(axis: int, real: bool) -> None:
    mask = (weights(1, 5) < 0.5).double().expand(6, 5) if axis == -1 else (weights(6, 1) < 0.5).double().expand(6, 5)
    operator = likelihoods.Sense(normal(3, 6, 5), mask, real=real)
    structure, near = operator.gram(2.0, (1, 6, 5)), inverse_of(operator, 2.0)
    assert isinstance(near, LineInverse)
    x = normal(4, 1, 6, 5, seed=1)
    x = x.real.clone() if real else x
    for shift in (0.3, torch.tensor([0.1, 2.0, 0.1, 30.0]).reshape(4, 1, 1, 1)):
        inverse = near(shift)
        assert inverse is not None
        assert torch.allclose(structure.apply(inverse(x)) + shift * inverse(x), x, atol=1e-10)


def test_easy_systems_are_left_alone() -> None:
    """Each batch entry is judged by its own shift: the second is well conditioned, the others are not."""
    structure = likelihoods.Sense(normal(3, 6, 5), (weights(1, 5) < 0.5).double().expand(6, 5)).gram(2.0, (1, 6, 5))
    assert isinstance(structure, MatrixFree)
    assert structure.near_inverse is not None
    x, shift = normal(3, 1, 6, 5, seed=1), torch.tensor([0.1, 100.0, 0.2]).reshape(3, 1, 1, 1)
    together, alone = structure.near_inverse(shift), structure.near_inverse(0.2)
    assert together is not None
    assert alone is not None
    assert torch.equal(together(x)[1], x[1])
    assert torch.allclose(together(x)[2], alone(x[2:])[0], atol=1e-12)
    assert not torch.allclose(together(x)[2], x[2])


def test_rows_are_the_last_rows_of_inverse_cholesky_factors() -> None:
    """L K L^H has a unit diagonal, and each row of L is orthogonal in K to the neighbours that it reaches over."""
    maps, spectrum = normal(2, 1, 1, 5), weights(1, 1, 1, 5)
    points = neighbourhood((-1,), 4)
    assert points == [(0, 0, -2), (0, 0, -1), (0, 0, 0)]
    entries = kspace_entries(maps, spectrum, (-1,), differences(points))
    inverse = LocalInverse(points, entries, torch.ones(1, 1, 5, dtype=torch.bool), (-1,), real=False)
    rows = inverse.factor(0.2)[:, 0, 0]
    k = matrix_in_kspace(maps, spectrum, (-1,)) + 0.2 * torch.eye(5, dtype=torch.float64)
    low = torch.zeros(5, 5, dtype=DOUBLE)
    for (_, _, d), row in zip(points, rows, strict=True):
        low[torch.arange(5), (torch.arange(5) + d) % 5] = row
    assert torch.allclose((low @ k @ low.mH).diagonal().real, torch.ones(5, dtype=torch.float64), atol=1e-10)
    for at in range(5):
        near = [(at - 2) % 5, (at - 1) % 5]
        assert torch.allclose((low[at] @ k.T.conj())[near].abs(), torch.zeros(2, dtype=torch.float64), atol=1e-10)
    v = normal(1, 1, 1, 5, seed=2)
    solved = inverse.solve(v, inverse.factor(0.2), 0.2)
    want = torch.fft.ifft(low.mH @ low @ torch.fft.fft(v.flatten()))
    assert torch.allclose(solved.flatten(), want, atol=1e-12)


def test_local_inverses_are_hermitian_and_positive() -> None:
    for real in (False, True):
        maps = normal(2, 6, 5)
        maps[:, :, :2] = 0
        near = inverse_of(likelihoods.Sense(maps, (weights(6, 5) < 0.5).double(), real=real))
        inverse = near(0.1)
        assert inverse is not None
        assert near(0.0) is None  # where nothing is seen, there is no inverse
        eye = torch.eye(30, dtype=torch.float64 if real else DOUBLE).reshape(30, 1, 6, 5)
        dense = inverse(eye).reshape(30, 30).T
        assert torch.allclose(dense, dense.mH, atol=1e-12)
        assert float(torch.linalg.eigvalsh(dense).min()) > 0
        unseen = torch.zeros(1, 6, 5, dtype=eye.dtype)
        unseen[..., 0] = 1
        assert torch.allclose(inverse(unseen), unseen / 0.1)


def test_shifts_that_vary_over_space_are_solved_without() -> None:
    operator = likelihoods.Sense(normal(2, 6, 5), (weights(6, 5) < 0.5).double())
    assert inverse_of(operator)(torch.ones(1, 6, 5)) is None
    structure, x, shift = operator.gram(1.0, (1, 6, 5)), normal(1, 6, 5, seed=1), 0.5 + weights(1, 6, 5)
    solution = structure.solve(x, shift)
    assert torch.allclose(structure.apply(solution) + shift * solution, x, atol=1e-8)


def test_factors_are_kept_and_let_go() -> None:
    everywhere = torch.ones(1, 4, 4, dtype=torch.bool)
    inverse = LocalInverse([ORIGIN], {ORIGIN: weights(1, 4, 4)}, everywhere, (-2, -1), real=False)
    for shift in range(1, 8):
        inverse(float(shift))
    assert list(inverse._factors) == [4.0, 5.0, 6.0, 7.0]


def test_multiples_and_shifted_sums_keep_the_inverse() -> None:
    structure = likelihoods.Sense(normal(2, 6, 5), (weights(1, 5) < 0.5).double().expand(6, 5)).gram(1.0, (1, 6, 5))
    assert isinstance(structure, MatrixFree)
    x = normal(1, 6, 5, seed=1)
    for total in (structure * 3.0, structure + Diagonal(torch.full((1, 1, 1), 0.7, dtype=torch.float64))):
        assert isinstance(total, MatrixFree)
        assert total.near_inverse is not None
        inverse = total.near_inverse(0.02)
        assert inverse is not None
        assert torch.allclose(total.apply(inverse(x)) + 0.02 * inverse(x), x, atol=1e-10)
    assert (structure * 0.0).near_inverse is None  # type: ignore[attr-defined]
    assert (structure + Diagonal(weights(1, 6, 5))).near_inverse is None  # type: ignore[attr-defined]


def test_what_would_take_too_much_memory_keeps_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, lines, points = normal(2, 6, 5), (weights(1, 5) < 0.5).double().expand(6, 5), (weights(6, 5) < 0.5).double()
    assert isinstance(likelihoods.Sense(maps, lines)._normal(1.0)._near_inverse(1), LineInverse)
    local = likelihoods.Sense(maps, points)._normal(1.0)._near_inverse(1)
    assert isinstance(local, LocalInverse)
    assert len(local.points) == 19
    monkeypatch.setattr(_sense_normal, "MOST_BYTES", 0)
    for mask in (lines, points):
        small = likelihoods.Sense(maps, mask)._normal(1.0)._near_inverse(1)
        assert isinstance(small, LocalInverse)
        assert small.points == [ORIGIN]


def birdcage(truncated: bool) -> Tensor:
    maps = likelihoods.birdcage_maps(8, (SIDE, SIDE))
    y = torch.linspace(-1, 1, SIDE)
    return maps * ((y[:, None] / 0.9).square() + (y / 0.75).square() < 1) if truncated else maps


def iterations(structure: MatrixFree, shift: float, how: str) -> int:
    white = structure.white(torch.Generator().manual_seed(1), (1, 1, SIDE, SIDE), dtype=torch.complex64)
    near = structure.approximation
    assert near is not None
    precondition = {
        "plain": None,
        "circulant": lambda v: near.solve(v, shift),
        "ours": structure._precondition(shift),
    }[how]
    return conjugate_gradients(
        lambda v: structure.action(v) + shift * v,
        structure.perturb(white, shift),
        precondition=precondition,
        tolerance=1e-4,
        max_iterations=2000,
    ).iterations


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("s", [0.1, 1.0])
def test_lines_take_two_iterations_at_most(truncated: bool, s: float) -> None:
    mask = likelihoods.cartesian_mask((SIDE, SIDE), 8, centre_fraction=0.05)
    structure = likelihoods.Sense(birdcage(truncated), mask).gram(torch.full((1, 1, 1), 2500.0), (1, SIDE, SIDE))
    assert isinstance(structure, MatrixFree)
    assert iterations(structure, s**-2, "ours") <= 2
    assert iterations(structure, s**-2, "plain") > 15


@pytest.mark.parametrize("truncated", [False, True])
def test_points_take_a_third_of_the_iterations_where_there_are_many(truncated: bool) -> None:
    mask = likelihoods.poisson_disk_mask((SIDE, SIDE), 6)
    structure = likelihoods.Sense(birdcage(truncated), mask).gram(torch.full((1, 1, 1), 2500.0), (1, SIDE, SIDE))
    assert isinstance(structure, MatrixFree)
    plain, ours = (iterations(structure, 1.0, how) for how in ("plain", "ours"))
    assert 3 * ours <= plain
    if truncated:  # where maps end, the circulant matrix does harm
        assert iterations(structure, 1.0, "circulant") > plain


def test_the_neighbours_are_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: neighbourhoods of the point alone, which is the circulant matrix again."""
    mask = likelihoods.poisson_disk_mask((SIDE, SIDE), 6)

    def made() -> MatrixFree:
        structure = likelihoods.Sense(birdcage(False), mask).gram(torch.full((1, 1, 1), 2500.0), (1, SIDE, SIDE))
        assert isinstance(structure, MatrixFree)
        return structure

    ours = iterations(made(), 1.0, "ours")
    monkeypatch.setitem(_near_inverse.REACH, 2, 0)
    alone, circulant = (iterations(made(), 1.0, how) for how in ("ours", "circulant"))
    assert abs(alone - circulant) <= 2
    assert alone > 2 * ours
