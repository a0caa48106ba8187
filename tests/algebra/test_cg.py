"""Conjugate gradients: solutions, stopping per entry, warnings, refusals."""

import warnings

import pytest
import torch
from torch import Tensor

from potentia import ConvergenceWarning
from potentia._cg import conjugate_gradients, default_tolerance
from potentia._random import standard_normal
from potentia._tensor import squared_norm

SHAPE = (1, 4, 5)
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


class Dense:
    """A Hermitian matrix with given eigenvalues, acting on images; counts how often it is applied."""

    def __init__(self, eigenvalues: Tensor, dtype: torch.dtype = torch.float64) -> None:
        n = len(eigenvalues)
        q, _ = torch.linalg.qr(rand(n, n, seed=9, dtype=dtype))
        self.matrix = (q * eigenvalues.to(dtype)) @ q.mH
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (x.flatten(-3) @ self.matrix.mT).reshape(x.shape)


def relative_residual(a: Dense, z: Tensor, rhs: Tensor) -> Tensor:
    return (squared_norm(a(z) - rhs) / squared_norm(rhs)).sqrt()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tolerance_is_met_in_every_field_and_precision(dtype: torch.dtype) -> None:
    a = Dense(torch.linspace(0.5, 20, 20), dtype)
    rhs = rand(3, 2, *SHAPE, dtype=dtype)
    result = conjugate_gradients(a, rhs)
    assert result.converged
    assert result.solution.dtype == dtype
    assert result.residual.shape == (3, 2)
    # The residual that CG carries along drifts from the true one by the rounding of some dozens of updates.
    slack = 100 * torch.finfo(dtype).eps
    assert float(relative_residual(a, result.solution, rhs).max()) <= default_tolerance(dtype) + slack
    assert float(result.residual.max()) <= default_tolerance(dtype)


def test_it_ends_after_as_many_steps_as_there_are_eigenvalues() -> None:
    a = Dense(torch.tensor([1.0, 3.0, 10.0, 50.0]).repeat(5))
    result = conjugate_gradients(a, rand(*SHAPE))
    assert result.iterations == 4
    assert a.calls == 4


def test_the_solution_is_the_dense_one() -> None:
    a = Dense(torch.linspace(0.5, 20, 20), torch.complex128)
    rhs = rand(3, *SHAPE, dtype=torch.complex128)
    want = torch.linalg.solve(a.matrix, rhs.flatten(1).mT).mT.reshape(rhs.shape)
    torch.testing.assert_close(conjugate_gradients(a, rhs).solution, want, rtol=0, atol=1e-8)


def scaled_laplacian(x: Tensor) -> Tensor:
    """Elementwise arithmetic and rolls only: what an entry gets does not depend on the batch, to the last bit."""
    return 4.1 * x - x.roll(1, -1) - x.roll(-1, -1) - x.roll(1, -2) - x.roll(-1, -2)


def test_an_entry_stops_on_its_own_whatever_stands_beside_it() -> None:
    slow = rand(1, 6, 6)
    fast = torch.ones(1, 6, 6, dtype=torch.float64)  # an eigenvector: one step
    together = conjugate_gradients(scaled_laplacian, torch.stack([fast, slow, 0 * slow, 1e6 * slow]))
    for k, rhs in enumerate((fast, slow, 0 * slow, 1e6 * slow)):
        alone = conjugate_gradients(scaled_laplacian, rhs)
        assert torch.equal(together.solution[k], alone.solution)
        assert torch.equal(together.residual[k], alone.residual)
    assert conjugate_gradients(scaled_laplacian, fast).iterations == 1
    assert together.iterations == conjugate_gradients(scaled_laplacian, slow).iterations > 1


def test_a_zero_right_hand_side_has_the_zero_solution_at_once() -> None:
    a = Dense(torch.linspace(1, 20, 20))
    result = conjugate_gradients(a, torch.zeros(2, *SHAPE, dtype=torch.float64))
    assert torch.equal(result.solution, torch.zeros(2, *SHAPE, dtype=torch.float64))
    assert (result.iterations, result.converged, a.calls) == (0, True, 0)
    assert torch.equal(result.residual, torch.zeros(2, dtype=torch.float64))


def test_zero_beside_others_stays_zero() -> None:
    a = Dense(torch.linspace(1, 20, 20))
    rhs = torch.stack([rand(*SHAPE), torch.zeros(SHAPE, dtype=torch.float64)])
    result = conjugate_gradients(a, rhs)
    assert float(result.solution[1].abs().max()) == 0
    assert bool(torch.isfinite(result.solution).all())


def test_whoever_does_not_get_there_is_reported() -> None:
    a = Dense(torch.logspace(0, 10, 20))
    rhs = torch.stack([rand(*SHAPE), torch.zeros(SHAPE, dtype=torch.float64)])
    with pytest.warns(
        ConvergenceWarning, match=r"^here: 1 of 2 systems not solved after 5 iterations: .*, expected 1e-10"
    ):
        result = conjugate_gradients(a, rhs, max_iterations=5, where="here")
    assert not result.converged
    assert result.iterations == 5
    assert float(result.residual[0]) > 1e-10


def test_a_residual_reported_is_the_true_one() -> None:
    a = Dense(torch.logspace(0, 4, 20))
    rhs = rand(2, *SHAPE)
    with pytest.warns(ConvergenceWarning):
        result = conjugate_gradients(a, rhs, max_iterations=6)
    torch.testing.assert_close(result.residual, relative_residual(a, result.solution, rhs), rtol=1e-6, atol=0)


@pytest.mark.parametrize("eigenvalue", [-1.0, 0.0])
def test_operators_that_are_not_positive_definite_are_refused(eigenvalue: float) -> None:
    with pytest.raises(ValueError, match=r"^there: the operator is not positive definite \(curvature"):
        conjugate_gradients(lambda v: eigenvalue * v, rand(2, *SHAPE), where="there")


def test_an_indefinite_operator_is_refused() -> None:
    a = Dense(torch.linspace(-1, 20, 20))
    with pytest.raises(ValueError, match="not positive definite"):
        conjugate_gradients(a, rand(8, *SHAPE))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_right_hand_sides_that_are_not_finite_are_refused(bad: float) -> None:
    rhs = rand(2, *SHAPE)
    rhs[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"the right-hand side of shape \(2, 1, 4, 5\) is not finite"):
        conjugate_gradients(scaled_laplacian, rhs)


def test_an_operator_that_gives_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        conjugate_gradients(lambda v: v * float("nan"), rand(2, *SHAPE))


def test_a_preconditioner_saves_iterations_and_gives_the_same_solution() -> None:
    spread = torch.logspace(0, 4, 20, dtype=torch.float64).reshape(SHAPE)
    weak = 0.05 * Dense(torch.linspace(1, 2, 20)).matrix

    def apply(v: Tensor) -> Tensor:
        return spread * v + (v.flatten(-3) @ weak.mT).reshape(v.shape)

    rhs = rand(3, *SHAPE)
    plain = conjugate_gradients(apply, rhs)
    helped = conjugate_gradients(apply, rhs, precondition=lambda r: r / spread)
    assert plain.converged
    assert helped.converged
    assert helped.iterations <= plain.iterations // 3
    # Both residuals are below 1e-10 of rhs, and the least eigenvalue is above one.
    bound = 2e-10 * float(squared_norm(rhs).sqrt().max())
    torch.testing.assert_close(helped.solution, plain.solution, rtol=0, atol=bound)


def test_the_exact_inverse_as_preconditioner_takes_one_step() -> None:
    spread = torch.logspace(0, 4, 20, dtype=torch.float64).reshape(SHAPE)
    result = conjugate_gradients(lambda v: spread * v, rand(3, *SHAPE), precondition=lambda r: r / spread)
    assert result.iterations == 1


@pytest.mark.parametrize("start", [1.0, 0.0])
def test_a_preconditioner_is_applied_once_an_iteration(start: float) -> None:
    """And not once more when all is done, nor at all where there is nothing to do."""
    a = Dense(torch.linspace(0.5, 20, 20))
    calls = 0

    def precondition(r: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return r / 3

    result = conjugate_gradients(a, start * rand(2, *SHAPE), precondition=precondition)
    assert calls == result.iterations == a.calls
    assert (calls > 0) == (start > 0)


def test_a_looser_tolerance_takes_fewer_steps() -> None:
    a = Dense(torch.logspace(0, 3, 20))
    steps = [conjugate_gradients(a, rand(*SHAPE), tolerance=t).iterations for t in (1e-1, 1e-3, 1e-6)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_vectors_are_solved_with_one_event_dimension() -> None:
    a = torch.diag(torch.linspace(1, 4, 6, dtype=torch.float64))
    rhs = rand(3, 6)
    result = conjugate_gradients(lambda v: v @ a, rhs, event_dims=1)
    assert result.residual.shape == (3,)
    torch.testing.assert_close(result.solution, rhs / a.diagonal(), rtol=1e-8, atol=1e-10)


def test_nothing_is_warned_of_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conjugate_gradients(scaled_laplacian, rand(2, 1, 6, 6))


@pytest.mark.parametrize("size", [1e-23, 1e20])
def test_right_hand_sides_far_from_one_are_solved_in_single_precision(size: float) -> None:
    rhs = size * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    result = conjugate_gradients(lambda v: 3 * v, rhs)
    assert torch.allclose(3 * result.solution, rhs, rtol=1e-5, atol=0.0)
