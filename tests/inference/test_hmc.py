"""HMC and ChEES: one leapfrog step is MALA, Pyro's integrator, exactness, paths and their lengths."""

import math

import pytest
import torch
from torch import Tensor

from potentia._potential import Energy, Potential, Sigma
from potentia._random import chain_generators, standard_normal
from potentia._tensor import squared_norm, to_event
from potentia.inference import Preconditioner, State
from potentia.inference._chees import ChEES, halton
from potentia.inference._covariance import Dense
from potentia.inference._hmc import HMC
from potentia.inference._mala import MALA
from potentia.inference._metric import metric_of
from potentia.inference._metropolis import Adjusted, Point, leapfrog

SHAPE = (1, 2, 3)
D = math.prod(SHAPE)


class Quartic(Energy):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.25 * squared_norm(x.abs().square()) + 0.15 * squared_norm(x - x.roll(1, -1))


class Wide(Energy):
    """Independent normal pixels with standard deviations from 0.1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("std", torch.logspace(-1, 0, D, dtype=torch.float64).reshape(SHAPE))

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.5 * squared_norm(x / self.std)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(dtype: torch.dtype = torch.float64) -> Preconditioner:
    a = normal(D, D, seed=3, dtype=dtype)
    c = a @ a.mH / D + 0.2 * torch.eye(D, dtype=dtype)
    return Preconditioner(Dense(c, torch.linalg.cholesky(c)))


@pytest.mark.parametrize("field", [torch.float64, torch.complex128])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_one_leapfrog_step_is_mala(field: torch.dtype, temperature: float) -> None:
    eps, u, p = 0.3, Quartic(), correlated(field)
    langevin = MALA(eps, preconditioner=p, temperature=temperature)
    hamiltonian = HMC(
        math.sqrt(2 * eps), num_leapfrog=1, jitter=0.0, preconditioner=p, temperature=temperature, steps_per_draw=10
    )
    ends = []
    for sampler in (langevin, hamiltonian):
        state = sampler.init(u, normal(20, *SHAPE, seed=0, dtype=field), chain_generators(0, range(20)))
        for _ in range(10):
            state, info = sampler.step(u, state)
        ends.append((state.x, info.log_ratio))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


def test_the_path_is_that_of_pyros_integrator() -> None:
    """Pyro's momentum is r = P^-1 v for its mass matrix P^-1; a factor of 2 or sqrt(2) between the two would show."""
    from pyro.ops.integrator import velocity_verlet

    u, p, h, num = Quartic(), correlated(), 0.2, 7
    metric = metric_of(p)
    x, m = normal(1, *SHAPE, seed=0), normal(1, *SHAPE, seed=1)
    value, grad = u.value_and_grad(x)
    start = Point(x, value, grad, metric.solve(grad))
    end, v, ratio = leapfrog(u, None, metric, start, metric.solve(m), h, num)
    z, r, _, energy = velocity_verlet(
        {"x": x}, {"x": m}, lambda site: u(site["x"]).sum(), lambda mom: {"x": metric.solve(mom["x"])}, h, num
    )
    torch.testing.assert_close(end.x, z["x"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(metric.apply(v), r["x"], rtol=1e-10, atol=1e-10)

    def total(u_: Tensor, mom: Tensor) -> float:
        return float(u_) + 0.5 * float((mom * metric.solve(mom)).sum())

    assert float(ratio) == pytest.approx(total(value[0], m) - total(energy, r["x"]), abs=1e-10)


def test_the_path_can_be_gone_back() -> None:
    u, p = Quartic(), correlated()
    metric = metric_of(p)
    x = normal(5, *SHAPE, seed=0)
    value, grad = u.value_and_grad(x)
    start = Point(x, value, grad, metric.solve(grad))
    v = metric.solve(normal(5, *SHAPE, seed=1))
    end, w, there = leapfrog(u, None, metric, start, v, 0.3, 6)
    home, back_v, back = leapfrog(u, None, metric, end, -w, 0.3, 6)
    torch.testing.assert_close(home.x, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_v, -v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back, -there, rtol=1e-9, atol=1e-9)


def run(sampler: Adjusted, u: Potential, chains: int, warm: int, steps: int) -> tuple[Tensor, list[float], State, int]:
    """Draws (steps, chains, d), the mean acceptances, the last state and the gradients a step."""
    state = sampler.init(u, 2 * normal(chains, *SHAPE, seed=0), chain_generators(2, range(chains)))
    for _ in range(warm):
        state, _ = sampler.step(u, state)
    state = state._replace(memory=sampler.freeze(state.memory))
    out, rates, spent = [], [], 0
    for _ in range(steps):
        state, info = sampler.step(u, state)
        assert info.acceptance is not None
        out.append(state.x.flatten(1))
        rates.append(float(info.acceptance.mean()))
        spent += info.n_grad
    return torch.stack(out), rates, state, spent


@pytest.mark.parametrize(
    "sampler",
    [
        HMC(preconditioner=Preconditioner.identity(), trajectory_length=1.0),
        HMC(num_leapfrog=8, per_chain=True, preconditioner=Preconditioner.identity()),
        HMC(preconditioner="diagonal"),
        ChEES(preconditioner=Preconditioner.identity()),
        ChEES(preconditioner="dense"),
    ],
    ids=["length", "number, per chain", "diagonal", "ChEES", "ChEES, dense"],
)
def test_moments_are_right(sampler: Adjusted) -> None:
    u = Wide()
    draws, rates, _, _ = run(sampler, u, 64, 150, 120)
    assert sum(rates) / len(rates) == pytest.approx(0.75, abs=0.15)
    white = draws / u.std.flatten()
    for powers in (white, white.square() - 1):
        each = powers.mean(0)
        error = each.std(0) / 8
        assert bool((each.mean(0).abs() < 4.5 * error).all())
        assert float(error.max()) < 0.12


def test_jitter_breaks_the_periods_of_a_path() -> None:
    """A path as long as the period of a coordinate comes back to its start: that coordinate does not move."""
    u, period = Wide(), 2 * math.pi * 0.1
    num = 20
    stuck = HMC(period / num, num_leapfrog=num, jitter=0.0, preconditioner=Preconditioner.identity())
    loose = HMC(period / num, num_leapfrog=num, jitter=0.3, preconditioner=Preconditioner.identity())
    moves = []
    for sampler in (stuck, loose):
        state = sampler.init(u, u.std * normal(64, *SHAPE, seed=0), chain_generators(0, range(64)))
        new, _ = sampler.step(u, state)
        moves.append(float((new.x - state.x)[..., 0, 0, 0].abs().mean()) / 0.1)
    assert moves[0] < 0.1
    assert moves[1] > 0.3


def test_the_number_of_steps_follows_the_length_and_is_capped() -> None:
    u = Quartic()
    x = normal(20, *SHAPE, seed=0)
    for sampler, want in (
        (HMC(0.1, trajectory_length=1.0), 10),
        (HMC(0.3), math.ceil(math.pi / 2 / 0.3)),
        (HMC(1e-9), 100),
        (HMC(0.1, num_leapfrog=3), 3),
        (ChEES(0.1, trajectory_length=2.0), 10),  # the sequence begins at 1/2
        (ChEES(1e-9, trajectory_length=2.0, max_leapfrog=7), 7),
    ):
        _, info = sampler.step(u, sampler.init(u, x, chain_generators(0, range(20))))
        assert info.n_grad == want


def test_chees_finds_paths_that_are_long_enough_and_no_longer() -> None:
    """Long enough for the widest direction, of std 1: its best is near pi / 2, over the mean share of 1/2."""
    _, _, state, spent = run(ChEES(preconditioner=Preconditioner.identity()), Wide(), 64, 200, 40)
    length = math.exp(float(state.memory["adapted_length"]))
    assert 1.2 < length < 4.5
    assert spent / 40 < 40
    _, _, white, _ = run(ChEES(preconditioner="diagonal"), Wide(), 64, 200, 1)
    assert 1.2 < math.exp(float(white.memory["adapted_length"])) < 4.5


def test_chees_is_fixed_after_the_warm_up() -> None:
    u, sampler = Wide(), ChEES(preconditioner="diagonal")
    _, _, state, _ = run(sampler, u, 16, 40, 1)
    later = state
    for _ in range(20):
        later, _ = sampler.step(u, later)
    adapted = [k for k in state.memory if k.startswith("adapted_")]
    changed = [k for k in adapted if not torch.equal(state.memory[k], later.memory[k])]
    assert changed == ["adapted_halton"]
    assert not any("statistics" in k for k in adapted)


def test_chees_needs_an_ensemble() -> None:
    u = Wide()
    with pytest.raises(ValueError, match="ChEES: got 1 chain, expected 2 or more"):
        ChEES().init(u, normal(1, *SHAPE, seed=0), chain_generators(0, range(1)))
    with pytest.warns(UserWarning, match="ChEES: 4 chains say little"):
        ChEES().init(u, normal(4, *SHAPE, seed=0), chain_generators(0, range(4)))
    ChEES(trajectory_length=1.0).init(u, normal(1, *SHAPE, seed=0), chain_generators(0, range(1)))


def test_a_frozen_chain_of_chees_does_not_depend_on_those_beside_it() -> None:
    u, sampler = Wide(), ChEES(0.1, trajectory_length=1.0)
    x = normal(4, *SHAPE, seed=0)

    def end(chosen: list[int]) -> Tensor:
        state = sampler.init(u, x[chosen], chain_generators(1, chosen))
        for _ in range(10):
            state, _ = sampler.step(u, state)
        return state.x

    torch.testing.assert_close(end([0, 1, 2, 3])[[1, 3]], end([1, 3]), rtol=1e-10, atol=1e-10)


def test_the_halton_sequence_fills_the_interval() -> None:
    assert [halton(k) for k in range(1, 8)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
    assert sorted(halton(k) for k in range(1, 256)) == [k / 256 for k in range(1, 256)]


class Cliff(Wide):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        bad = (x.detach() > 0.9).flatten(-3).any(-1)
        return super().forward(x) + torch.where(bad, math.nan, 0.0)


@pytest.mark.parametrize("sampler", [HMC(0.1, num_leapfrog=12), ChEES(preconditioner=Preconditioner.identity())])
def test_paths_through_nan_are_refused_and_counted_and_adaptation_survives(sampler: Adjusted) -> None:
    u = Cliff()
    state = sampler.init(u, torch.zeros(64, *SHAPE, dtype=torch.float64), chain_generators(0, range(64)))
    seen = 0
    for _ in range(60):
        before = state
        state, info = sampler.step(u, state)
        assert info.diverging is not None
        assert info.accepted is not None
        assert not bool((info.diverging & info.accepted).any())
        stayed = to_event(info.diverging)
        assert isinstance(stayed, Tensor)
        assert torch.equal(torch.where(stayed, state.x, 0.0), torch.where(stayed, before.x, 0.0))
        seen += int(info.diverging.sum())
    assert seen > 0
    assert bool(torch.isfinite(state.x).all())
    assert all(bool(torch.isfinite(t).all()) for t in state.memory.values())
    assert float(torch.as_tensor(info.step_size)) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_leapfrog": 0}, "num_leapfrog must be at least 1"),
        ({"num_leapfrog": 2, "trajectory_length": 1.0}, "expected one of them"),
        ({"per_chain": True}, "per_chain is True without num_leapfrog"),
        ({"jitter": 1.0}, "jitter is 1, expected 0 or more and below 1"),
        ({"trajectory_length": -1.0}, "trajectory_length must be positive"),
        ({"max_leapfrog": 0}, "max_leapfrog must be at least 1"),
        ({"step_size": 0.0}, "HMC: step_size must be positive"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HMC(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ChEES: learning_rate must be positive"):
        ChEES(learning_rate=0.0)
