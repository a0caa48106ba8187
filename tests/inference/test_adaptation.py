"""Step sizes by dual averaging, learned preconditioners, and that both survive a stop to the bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potentia._potential import Energy, Sigma
from potentia._random import chain_generators, standard_normal
from potentia._tensor import EVENT_DIMS, inner
from potentia.inference import Langevin, Preconditioner, _checkpoint
from potentia.inference import _dual_averaging as averaging
from potentia.inference._chees import ChEES
from potentia.inference._hmc import HMC
from potentia.inference._learned import Kind, Learner, ends_window, geometric_mean
from potentia.inference._mala import MALA
from potentia.inference._metropolis import Adjusted
from potentia.testing._dense import dense

SHAPE = (1, 4, 5)
D = 20


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


class Normal(Energy):
    """N(0, precision^-1), the precision Hermitian with eigenvalues from 1 to ``condition``, turned at random."""

    def __init__(self, condition: float, dtype: torch.dtype = torch.float64, spikes: int = 0) -> None:
        super().__init__()
        q, _ = torch.linalg.qr(normal(D, D, seed=9, dtype=dtype))
        values = torch.logspace(0, math.log10(condition), D, dtype=torch.float64)
        if spikes:
            values = torch.ones(D, dtype=torch.float64)
            values[:spikes] = condition
        self.register_buffer("precision", (q * values) @ q.mH)

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        flat = x.flatten(-EVENT_DIMS)
        product = flat.to(self.precision.dtype) @ self.precision.mT
        return 0.5 * inner(flat, product, 1)


def condition_with(u: Normal, p: Tensor) -> float:
    """Condition number of P times the Hessian, both as real matrices."""
    hessian = dense(lambda x: u.grad(x), SHAPE, u.precision.dtype)
    values = torch.linalg.eigvals(p @ hessian).real
    return float(values.max() / values.min())


@given(st.floats(-3.0, 3.0), st.floats(0.3, 0.9))
def test_dual_averaging_finds_the_step_that_meets_the_target(offset: float, target: float) -> None:
    """Acceptance 2 Phi(-s h^3 / 2) falls with the step h; the step wanted is known."""
    scale = math.exp(-3 * offset)

    def acceptance(h: Tensor) -> Tensor:
        return 2 * torch.special.ndtr(-scale * h**3 / 2)

    record = averaging.restart(torch.ones(2, dtype=torch.float64))
    for _ in range(300):
        record = averaging.update(record, target - acceptance(averaging.current(record)))
    assert acceptance(averaging.averaged(record))[0] == pytest.approx(target, abs=0.05)
    assert record[4].tolist() == [300, 300]


def test_a_wrong_sign_would_not_find_it() -> None:
    record = averaging.restart(torch.ones((), dtype=torch.float64))
    for _ in range(100):
        record = averaging.update(record, 2 * torch.special.ndtr(-(averaging.current(record) ** 3) / 2) - 0.574)
    step = averaging.averaged(record)
    assert abs(float(2 * torch.special.ndtr(-(step**3) / 2)) - 0.574) > 0.3


def adapted(sampler: Adjusted, u: Energy, x: Tensor, steps: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Mean acceptance of each chain over 100 steps after the warm-up, the step size and the memory."""
    state = sampler.init(u, x, chain_generators(0, range(len(x))))
    for _ in range(steps):
        state, _ = sampler.step(u, state)
    state = state._replace(memory=sampler.freeze(state.memory))
    rates = []
    for _ in range(100):
        state, info = sampler.step(u, state)
        assert info.acceptance is not None
        rates.append(info.acceptance)
    return torch.stack(rates).mean(0), torch.as_tensor(info.step_size), dict(state.memory)


@pytest.mark.parametrize("start", [0.01, 1.0, 30.0])
def test_mala_meets_its_target_from_any_start(start: float) -> None:
    x = start * normal(32, *SHAPE, seed=1)
    rates, step, _ = adapted(MALA(preconditioner=Preconditioner.identity()), Normal(100.0), x, 200)
    assert float(rates.mean()) == pytest.approx(0.574, abs=0.04)
    assert step.shape == ()


def test_every_chain_meets_it_with_a_step_of_its_own() -> None:
    sampler = MALA(preconditioner=Preconditioner.identity(), per_chain=True, target_acceptance=0.7)
    rates, step, _ = adapted(sampler, Normal(30.0), normal(8, *SHAPE, seed=1), 400)
    assert step.shape == (8,)
    # 100 correlated tests a chain have an error of about 0.05 themselves.
    assert bool(((rates - 0.7).abs() < 0.2).all())
    assert float(rates.mean()) == pytest.approx(0.7, abs=0.07)


def test_hmc_and_chees_meet_theirs() -> None:
    x = normal(32, *SHAPE, seed=1)
    rates, _, _ = adapted(HMC(preconditioner=Preconditioner.identity(), num_leapfrog=5), Normal(30.0), x, 200)
    assert float(rates.mean()) == pytest.approx(0.8, abs=0.05)
    # ChEES's target is of the harmonic mean, which is below the arithmetic one.
    rates, _, _ = adapted(ChEES(preconditioner=Preconditioner.identity()), Normal(30.0), x, 200)
    assert 0.64 < float(rates.mean()) < 0.9


def test_a_step_size_that_is_given_stays() -> None:
    for sampler in (MALA(0.01, preconditioner="diagonal"), MALA(0.01)):
        _, step, _ = adapted(sampler, Normal(10.0), normal(8, *SHAPE, seed=1), 40)
        assert float(step) == pytest.approx(0.01, rel=1e-6)
    assert not MALA(0.01).adapts
    assert MALA(0.01, preconditioner="diagonal").adapts


def test_without_a_warm_up_nothing_adapts() -> None:
    sampler, u = MALA(), Normal(10.0)
    state = sampler.init(u, normal(8, *SHAPE, seed=1), chain_generators(0, range(8)))
    state = state._replace(memory=sampler.freeze(state.memory))
    steps = set()
    for _ in range(5):
        state, info = sampler.step(u, state)
        steps.add(float(torch.as_tensor(info.step_size)))
    assert len(steps) == 1


@given(st.integers(1, 8), st.integers(0, 1000), st.booleans())
def test_the_geometric_mean_solves_its_equation(d: int, seed: int, is_complex: bool) -> None:
    dtype = torch.complex128 if is_complex else torch.float64
    a, b = (normal(d, d, seed=seed + k, dtype=dtype) for k in range(2))
    eye = torch.eye(d, dtype=dtype)
    x, g = a @ a.mH / d + 0.1 * eye, b @ b.mH / d + 0.1 * eye
    p = geometric_mean(x, g, 0.0)
    torch.testing.assert_close(p @ g @ p, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(p, p.mH)


def learnt(kind: Kind, u: Normal, x: Tensor, steps: int = 1) -> Tensor:
    """P as a real matrix, learned from points that need not be draws of the posterior."""
    learner = Learner("test", kind, rank=4)
    memory = learner.begin(x, u.grad(x))
    for k in range(steps):
        points = x if k == 0 else x.flip(0) * (1 + 0.1 * k) + 0.3 * normal(*x.shape, seed=50 + k, dtype=x.dtype)
        memory |= learner.observe(memory, points, u.grad(points))
    memory |= learner.learn(memory, x)
    return dense(learner.metric(memory).solve, SHAPE, x.dtype)


@pytest.mark.parametrize("field", [torch.float64, torch.complex128])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_dense_p_is_exact_on_a_gaussian_with_more_points_than_dimensions(field: torch.dtype, steps: int) -> None:
    """Whatever the points' own distribution; their covariance alone would be nowhere near."""
    u, x = Normal(100.0, field), normal(60, *SHAPE, seed=1, dtype=field)
    assert condition_with(u, learnt(Kind.DENSE, u, x, steps)) < 1.01
    rows = x.flatten(1)
    alone = (rows.mT @ rows.conj()) / len(rows)

    def act(z: Tensor) -> Tensor:
        return (z.flatten(-3) @ alone.mT).reshape(z.shape)

    assert condition_with(u, dense(act, SHAPE, field)) > 50


def test_a_dense_p_with_few_points_is_still_positive_and_no_worse() -> None:
    u = Normal(100.0)
    p = learnt(Kind.DENSE, u, normal(6, *SHAPE, seed=1))
    assert float(torch.linalg.eigvalsh(p).min()) > 0
    assert condition_with(u, p) < 200


@pytest.mark.parametrize("field", [torch.float64, torch.complex128])
def test_a_low_rank_p_takes_out_a_few_stiff_directions(field: torch.dtype) -> None:
    u = Normal(100.0, field, spikes=3)
    x = normal(40, *SHAPE, seed=1, dtype=field)
    assert condition_with(u, learnt(Kind.LOW_RANK, u, x)) < 10
    assert condition_with(u, learnt(Kind.DIAGONAL, u, x)) > 50


def test_a_diagonal_p_is_exact_where_pixels_are_independent() -> None:
    u, x = Normal(100.0), normal(5, *SHAPE, seed=1)
    u.precision = torch.diag(torch.logspace(0, 2, D, dtype=torch.float64))
    assert condition_with(u, learnt(Kind.DIAGONAL, u, x)) < 1 + 1e-9


def test_statistics_merged_in_batches_are_those_of_all_at_once() -> None:
    """Planted: a mean that starts at the origin with weight, or a missing shift, changes the sums of squares."""
    learner = Learner("test", Kind.DENSE)
    x, g = 5 + normal(12, *SHAPE, seed=1), normal(12, *SHAPE, seed=2)
    memory = learner.begin(x, g)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        memory |= learner.observe(memory, x[part], g[part])
    rows = torch.stack([x, g]).flatten(2)
    off = rows - rows.mean(1, keepdim=True)
    torch.testing.assert_close(memory["adapted_statistics_square"], off.mT @ off)
    torch.testing.assert_close(memory["adapted_statistics_mean"], rows.mean(1))
    assert int(memory["adapted_statistics_count"]) == 12


def test_windows_double() -> None:
    assert [k for k in range(1, 300) if ends_window(k)] == [16, 32, 64, 128, 256]


def test_points_without_spread_leave_p_at_one() -> None:
    x = torch.ones(6, *SHAPE, dtype=torch.float64)
    memory = Learner("test", Kind.DIAGONAL).begin(x, x)
    assert torch.equal(memory["adapted_scale"], torch.ones(SHAPE, dtype=torch.float64))


def test_a_dense_p_of_large_images_is_refused() -> None:
    x = torch.zeros(2, 1, 80, 80)
    with pytest.raises(ValueError, match=r"MALA: a dense preconditioner of images \(1, 80, 80\)"):
        Learner("MALA", Kind.DENSE).begin(x, x)


@pytest.mark.parametrize("kind", ["diagonal", "low-rank", "dense"])
def test_mala_mixes_faster_with_what_it_learns(kind: str) -> None:
    """The learned step size tells: in the metric of P it is of order one, without it of the stiffest direction's."""
    u = Normal(100.0, spikes=3)
    if kind == "diagonal":
        u.precision = torch.diag(torch.logspace(0, 2, D, dtype=torch.float64))
    x = normal(32, *SHAPE, seed=1)
    _, plain, _ = adapted(MALA(preconditioner=Preconditioner.identity()), u, x, 150)
    rates, step, memory = adapted(MALA(preconditioner=kind, rank=4), u, x, 150)
    assert float(step) > 0.15
    assert float(plain) < 0.03
    assert float(rates.mean()) == pytest.approx(0.574, abs=0.06)
    assert not any("statistics" in name for name in memory)


SAMPLERS = {
    "MALA": MALA(),
    "MALA, per chain": MALA(per_chain=True),
    "MALA, diagonal": MALA(preconditioner="diagonal"),
    "MALA, low rank": MALA(preconditioner="low-rank", rank=3),
    "MALA, dense": MALA(preconditioner="dense"),
    "HMC": HMC(preconditioner="dense"),
    "ChEES": ChEES(preconditioner="diagonal"),
    "a chain of samplers": Langevin(0.01, steps_per_draw=3) >> MALA(preconditioner="diagonal", steps_per_draw=4),
}


@pytest.mark.parametrize("field", [torch.float32, torch.complex64])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("stop", [5, 21])
def test_a_run_goes_on_to_the_bit_where_it_stopped(name: str, field: torch.dtype, stop: int) -> None:
    """In the middle of a block of random numbers, of a window and of the adaptation; and after freezing."""
    sampler, u = SAMPLERS[name], Normal(10.0, torch.complex128 if field.is_complex else torch.float64)
    generators = chain_generators(0, range(16))
    state = sampler.init(u, normal(16, *SHAPE, seed=1, dtype=field), generators)
    saved = b""
    for k in range(40):
        if k == 30:
            state = state._replace(memory=sampler.freeze(state.memory))
        if k == stop:
            saved = _checkpoint.encode(state, generators, k, 0)
            assert len(saved) <= _checkpoint.capacity(state, generators)
        state, _ = sampler.step(u, state)
    again = chain_generators(0, range(16))
    resumed, done, _ = _checkpoint.decode(saved, again, torch.device("cpu"))
    for k in range(done, 40):
        if k == 30:
            resumed = resumed._replace(memory=sampler.freeze(resumed.memory))
        resumed, _ = sampler.step(u, resumed)
    assert torch.equal(resumed.x, state.x)
    assert set(resumed.memory) == set(state.memory)
    for key, held in state.memory.items():
        assert torch.equal(resumed.memory[key], held), key
