"""The Metropolis rule piece by piece: the decision, what is kept, the path, the random numbers, the first step size."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from potentia import energies
from potentia._potential import Energy, Potential, ScoreOnly, Sigma
from potentia._quadratic import Diagonal
from potentia._random import chain_generators, standard_normal
from potentia._tensor import squared_norm
from potentia.inference import HMC, MALA, Preconditioner, State
from potentia.inference import _dual_averaging as averaging
from potentia.inference._metric import Metric, metric_of
from potentia.inference._metropolis import (
    DRIFT,
    EXTRA,
    FROZEN,
    MOST_NATS,
    NOISE,
    RECORD,
    STEP,
    STEPS,
    Point,
    decide,
    leapfrog,
    settle,
)
from potentia.inference._protocol import NOTHING

SHAPE = (1, 2, 3)
D = math.prod(SHAPE)
DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


class Stiff(Energy):
    """U = sum of lam x^2 / 2 and a quartic, at a scale that is noted down, as are the evaluations."""

    def __init__(self, lam: float = 1.0, quartic: float = 0.0) -> None:
        super().__init__()
        self.lam, self.quartic = lam, quartic
        self.seen: list[tuple[str, Sigma]] = []

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.5 * self.lam * squared_norm(x) + 0.25 * self.quartic * squared_norm(x.abs().square())

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        self.seen.append(("value", sigma))
        return super().value_and_grad(x, sigma)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.seen.append(("grad", sigma))
        return Energy.value_and_grad(self, x, sigma)[1]


def point(u: Potential, metric: Metric, x: Tensor) -> Point:
    value, grad = u.value_and_grad(x)
    return Point(x, value, grad, metric.solve(grad))


IDENTITY = metric_of(Preconditioner.identity())


def test_a_proposal_is_accepted_where_the_uniform_number_lies_below_the_ratio() -> None:
    uniform = torch.tensor([0.1, 0.39, 0.41, 0.9, 0.999999, 0.5, 0.5], dtype=DOUBLE)
    ratio = torch.tensor([0.4, 0.4, 0.4, 0.4, 1.0, 2.0, 1e-3], dtype=DOUBLE).log()
    got = decide(ratio, torch.special.ndtri(uniform))
    assert got.accepted.tolist() == [True, True, False, False, True, True, False]
    torch.testing.assert_close(got.acceptance, ratio.exp().clamp(max=1))
    assert torch.equal(got.log_ratio, ratio)
    assert not bool(got.diverging.any())


def test_the_share_accepted_is_the_probability() -> None:
    n = 40_000
    for p in (0.02, 0.3, 0.85):
        accepted = decide(torch.full((n,), math.log(p), dtype=DOUBLE), normal(n, seed=3)).accepted
        assert abs(float(accepted.double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("ratio", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_diverges(ratio: float) -> None:
    got = decide(torch.tensor([ratio], dtype=DOUBLE), torch.tensor([-30.0], dtype=DOUBLE))
    assert (got.accepted.item(), got.acceptance.item(), got.diverging.item()) == (False, 0.0, True)
    torch.testing.assert_close(got.log_ratio, torch.tensor([ratio], dtype=DOUBLE), equal_nan=True)


def test_divergence_begins_beyond_a_thousand_nats() -> None:
    assert MOST_NATS == 1000
    ratio = torch.tensor([-999.0, -1000.0, -1000.1], dtype=DOUBLE)
    assert decide(ratio, torch.zeros(3, dtype=DOUBLE)).diverging.tolist() == [False, False, True]
    assert decide(ratio, torch.zeros(3, dtype=DOUBLE), 999.5).diverging.tolist() == [False, True, True]


@pytest.mark.parametrize("shared", [False, True])
def test_each_chain_keeps_all_of_the_old_point_or_takes_all_of_the_new(shared: bool) -> None:
    def made(seed: int) -> Point:
        grad = normal(3, *SHAPE, seed=seed + 1)
        drift = grad if shared else normal(3, *SHAPE, seed=seed + 2)
        return Point(normal(3, *SHAPE, seed=seed), normal(3, seed=seed), grad, drift)

    old, new = made(0), made(10)
    got = settle(torch.tensor([True, False, True]), new, old)
    for chain, want in enumerate((new, old, new)):
        for field, whole in zip(got, want, strict=True):
            assert torch.equal(field[chain], whole[chain])
    assert (got.drift is got.grad) is shared
    if not shared:
        half = settle(torch.tensor([False, True, True]), new._replace(drift=new.grad), old)
        assert torch.equal(half.drift, torch.stack([old.drift[0], new.grad[1], new.grad[2]]))


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("per_chain", [False, True])
def test_the_path_is_the_textbooks_with_momenta_and_its_hamiltonian(
    num: int, temperature: float, per_chain: bool
) -> None:
    u = Stiff(1.5, 0.4)
    precision = 0.5 + normal(*SHAPE, seed=4).square()
    metric = metric_of(Preconditioner(Diagonal(precision)))
    x, v = normal(4, *SHAPE), normal(4, *SHAPE, seed=1)
    h = torch.tensor([0.05, 0.1, 0.2, 0.3], dtype=DOUBLE) if per_chain else 0.2
    wide = h.reshape(-1, 1, 1, 1) if isinstance(h, Tensor) else h
    start = point(u, metric, x)
    end, velocity, ratio = leapfrog(u, 0.7, metric, start, v, h, num, temperature)
    q, m = x, precision * v
    for _ in range(num):
        m = m - wide / 2 * u.grad(q)
        q = q + wide * m / precision
        m = m - wide / 2 * u.grad(q)
    torch.testing.assert_close(end.x, q)
    torch.testing.assert_close(velocity, m / precision)
    torch.testing.assert_close(end.drift, u.grad(q) / precision)
    torch.testing.assert_close(end.value, u(q))
    energy = [u(a) + 0.5 * (b.square() / precision).flatten(1).sum(1) for a, b in ((x, precision * v), (q, m))]
    torch.testing.assert_close(ratio, (energy[0] - energy[1]) / temperature)


def test_a_step_a_chain_leaves_single_precision_as_it_is() -> None:
    u, x = Stiff(), normal(2, *SHAPE, dtype=torch.float32)
    step = torch.tensor([0.1, 0.2], dtype=DOUBLE)
    end, velocity, ratio = leapfrog(u, None, IDENTITY, point(u, IDENTITY, x), normal(2, *SHAPE, dtype=x.dtype), step, 2)
    assert end.x.dtype == end.grad.dtype == velocity.dtype == torch.float32
    assert end.value.dtype == ratio.dtype == DOUBLE


def test_a_path_costs_a_gradient_a_step_at_the_scale_and_one_value() -> None:
    u = Stiff()
    start = point(u, IDENTITY, normal(2, *SHAPE))
    u.seen.clear()
    end, _, ratio = leapfrog(u, 0.7, IDENTITY, start, normal(2, *SHAPE, seed=1), 0.1, 3)
    assert u.seen == [("grad", 0.7), ("grad", 0.7), ("value", 0.7)]
    assert end.value.dtype == ratio.dtype == DOUBLE


def test_solvers_that_iterate_are_not_given_a_gradient_of_a_chain_that_is_lost() -> None:
    class Hole(Stiff):
        def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
            return torch.where(x.flatten(1).sum(1)[:, None, None, None] > 0, math.nan, x)

        def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
            return 0.5 * squared_norm(x), self.grad(x)

    given: list[Tensor] = []

    def solve(g: Tensor) -> Tensor:
        given.append(g)
        return g

    metric = Metric(solve, lambda w: w[0], lambda v: v, iterative=True)
    x = torch.stack([torch.full(SHAPE, s, dtype=DOUBLE) for s in (-5.0, -0.01)])
    start = Point(x, 0.5 * squared_norm(x), x, x)
    end, _, ratio = leapfrog(Hole(), None, metric, start, torch.ones(2, *SHAPE, dtype=DOUBLE), 0.1, 2)
    assert all(bool(torch.isfinite(g).all()) for g in given)
    assert torch.isfinite(ratio).tolist() == [True, False]
    assert torch.equal(end.grad[1], torch.zeros(SHAPE, dtype=DOUBLE))
    assert not torch.equal(end.grad[0], torch.zeros(SHAPE, dtype=DOUBLE))


def numbers_of(sampler: MALA, x: Tensor, steps: int, metric: Metric = IDENTITY) -> list[tuple[Tensor, Tensor]]:
    state = State(x, None, 0, chain_generators(0, range(len(x))))
    out = []
    for step in range(steps):
        numbers, kept = sampler._numbers(state, metric)
        out.append((numbers.white[0], numbers.extra))
        state = state._replace(step=step + 1, memory=kept or NOTHING)
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_every_step_has_random_numbers_of_its_own(dtype: torch.dtype) -> None:
    sampler = MALA(step_size=0.1)
    drawn = numbers_of(sampler, torch.zeros(3, *SHAPE, dtype=dtype), 70)
    white, extra = torch.stack([w for w, _ in drawn]), torch.stack([e for _, e in drawn])
    assert white.shape == (70, 3, *SHAPE)
    assert white.dtype == dtype
    assert extra.shape == (70, 3, 2)
    for numbers in (white.real, extra):
        assert len(set(numbers.flatten().tolist())) == numbers.numel()
    n = white.numel() * (2 if dtype.is_complex else 1)
    assert abs(float(white.abs().square().sum()) / n - 1) < 5 * math.sqrt(2 / n)
    # Beside others or alone, a chain has the same.
    alone = State(torch.zeros(1, *SHAPE, dtype=dtype), None, 0, chain_generators(0, [2]))
    numbers, _ = sampler._numbers(alone, IDENTITY)
    assert torch.equal(numbers.white[0][0], white[0, 2])
    assert torch.equal(numbers.extra[0], extra[0, 2])


def test_blocks_are_as_long_as_the_image_is_small() -> None:
    for pixels, length in ((6, 32), (255, 32), (256, 32), (300, 27), (4096, 2), (4097, 1), (9000, 1)):
        state = State(torch.zeros(2, 1, 1, pixels), None, 0, chain_generators(0, range(2)))
        _, kept = MALA(step_size=0.1)._numbers(state, IDENTITY)
        if length == 1:
            assert kept == {}
        else:
            assert kept[NOISE].shape == (2, length, 1, 1, pixels)
            assert kept[EXTRA].shape == (2, length, 2)
    state = State(torch.zeros(2, 1, 1, 300, dtype=torch.complex64), None, 0, chain_generators(0, range(2)))
    assert MALA(step_size=0.1)._numbers(state, IDENTITY)[1][NOISE].shape[1] == 13


def test_within_a_block_nothing_is_drawn() -> None:
    generators = chain_generators(0, range(2))
    before = [g.get_state() for g in generators]
    block = {NOISE: normal(2, 32, *SHAPE), EXTRA: normal(2, 32, 2, seed=1)}
    state = State(torch.zeros(2, *SHAPE, dtype=DOUBLE), None, 37, generators, memory=block)
    numbers, kept = MALA(step_size=0.1)._numbers(state, IDENTITY)
    assert torch.equal(numbers.white[0], block[NOISE][:, 5])
    assert torch.equal(numbers.extra, block[EXTRA][:, 5])
    assert kept == block
    assert all(torch.equal(g.get_state(), s) for g, s in zip(generators, before, strict=True))
    # At its end, and where either half is missing, both are drawn.
    for step, memory in ((64, block), (37, {NOISE: block[NOISE]}), (37, {EXTRA: block[EXTRA]})):
        _, kept = MALA(step_size=0.1)._numbers(state._replace(step=step, memory=memory), IDENTITY)
        assert not torch.equal(kept[NOISE], block[NOISE])
        assert not torch.equal(kept[EXTRA], block[EXTRA])


def test_the_drift_that_a_state_holds_is_not_solved_for_again() -> None:
    u, sampler = Stiff(2.0), MALA(step_size=0.1, preconditioner=Preconditioner(Diagonal(torch.full((1, 1, 1), 4.0))))
    state = sampler.init(u, normal(3, *SHAPE), chain_generators(0, range(3)))
    metric = sampler._metric(u, state)
    assert state.grad is not None
    torch.testing.assert_close(sampler._point(state, metric).drift, state.grad / 4)
    held = normal(3, *SHAPE, seed=7)
    assert sampler._point(state._replace(memory={DRIFT: held}), metric).drift is held
    for step in (1, 2):
        state, _ = sampler.step(u, state)
        assert state.step == step
        assert state.grad is not None
        torch.testing.assert_close(state.memory[DRIFT], state.grad / 4)


def test_a_score_only_prior_is_refused_by_name() -> None:
    class Score(ScoreOnly):
        @property
        def scales(self) -> tuple[float, float]:
            return 0.1, 10.0

        def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
            return x / 2

    want = r"^HMC: score holds a score-only prior, which has no value for the Metropolis test; expected energies$"
    with pytest.raises(TypeError, match=want):
        HMC(step_size=0.1).init(Score(), normal(3, *SHAPE), chain_generators(0, range(3)))


def test_a_metric_that_draws_for_itself_keeps_nothing() -> None:
    asked: list[Any] = []

    def white(generator: Any, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
        asked.append((shape, dtype))
        return (standard_normal(shape, generator, dtype=dtype),) * 2

    metric = Metric(lambda g: g, lambda w: w[0], lambda v: v, white)
    state = State(torch.zeros(2, *SHAPE), None, 5, chain_generators(0, range(2)), memory={NOISE: torch.zeros(2, 9)})
    numbers, kept = MALA(step_size=0.1)._numbers(state, metric)
    assert asked == [((2, *SHAPE), torch.float32)]
    assert len(numbers.white) == 2
    assert numbers.extra.shape == (2, 2)
    assert numbers.extra.dtype == DOUBLE
    assert kept == {}


@pytest.mark.parametrize("begin", [1e-4, 0.3, 20.0])
@pytest.mark.parametrize("per_chain", [False, True])
def test_the_first_step_size_is_where_the_acceptance_crosses_one_half(begin: float, per_chain: bool) -> None:
    u, sampler = Stiff(9.0), MALA(per_chain=per_chain)
    old, v = point(u, IDENTITY, normal(5, *SHAPE)), normal(5, *SHAPE, seed=1)
    first = torch.full((5,) if per_chain else (), begin, dtype=DOUBLE)
    step, tries = sampler._first_guess(u, IDENTITY, old, v, first)
    assert step.dtype == DOUBLE

    def acceptance(h: Tensor) -> Tensor:
        each = leapfrog(u, None, IDENTITY, old, v, h.expand(5), 1)[2].exp().clamp(max=1)
        return each if per_chain else each.mean()

    assert bool((acceptance(step) > 0.5).all())
    assert bool((acceptance(2 * step) <= 0.5).all())
    powers = (step / first).log2()
    assert torch.equal(powers, powers.round())
    # Upwards the step beyond the crossing is tried as well.
    upwards = powers >= 0
    assert tries == int(torch.where(upwards, powers + 2, -powers + 1).max())


def test_a_step_size_without_a_crossing_is_given_up() -> None:
    class Flat(Stiff):
        def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
            return 0 * squared_norm(x)

    old = point(Flat(), IDENTITY, normal(2, *SHAPE))
    step, tries = MALA()._first_guess(Flat(), IDENTITY, old, normal(2, *SHAPE, seed=1), torch.ones((), dtype=DOUBLE))
    assert tries == 60
    assert float(step) == 2.0**60


def test_a_state_holds_what_a_step_needs_and_refuses_without() -> None:
    u, sampler = Stiff(2.0), MALA(step_size=0.1)
    x = normal(3, *SHAPE, dtype=torch.float32)
    state = sampler.init(u, x.requires_grad_(True), chain_generators(0, range(3)))
    assert (state.white, state.step, state.memory) == (None, 0, NOTHING)
    assert not state.x.requires_grad
    assert state.value is not None
    assert state.grad is not None
    assert (state.value.dtype, state.grad.dtype) == (DOUBLE, torch.float32)
    torch.testing.assert_close(state.grad, 2 * x.detach())
    want = r"^MALA: the state holds no U and no gradient, expected one made by init$"
    for lacking in (state._replace(value=None), state._replace(grad=None)):
        with pytest.raises(ValueError, match=want):
            sampler.step(u, lacking)


@pytest.mark.parametrize(
    ("sampler", "first", "shape"),
    [
        (MALA(), 1.65 * D ** (-1 / 6), ()),
        (MALA(per_chain=True), 1.65 * D ** (-1 / 6), (3,)),
        (HMC(num_leapfrog=3, per_chain=True), 1.65 * D ** (-1 / 6), (3,)),
        (MALA(step_size=0.08, preconditioner="diagonal"), 0.4, ()),
        (HMC(step_size=0.08, preconditioner="diagonal"), 0.08, ()),
    ],
)
def test_adaptation_begins_at_the_time_step(sampler: MALA | HMC, first: float, shape: tuple[int, ...]) -> None:
    memory = sampler.init(Stiff(), normal(3, *SHAPE), chain_generators(0, range(3))).memory
    assert memory[STEP].shape == shape
    assert memory[STEP].dtype == DOUBLE
    assert memory[STEP].flatten()[0].item() == pytest.approx(first)
    assert (int(memory[STEPS]), bool(memory[FROZEN])) == (0, False)
    assert torch.equal(memory[RECORD], averaging.restart(memory[STEP]))
    assert sampler.adapts
    assert sampler.couples_chains is not sampler.per_chain


def test_a_single_chain_adapts_too() -> None:
    memory = MALA().init(Stiff(), normal(1, *SHAPE), chain_generators(0, [0])).memory
    assert float(memory[STEP]) == pytest.approx(1.65 * D ** (-1 / 6))
    assert (memory[STEPS].dtype, memory[FROZEN].dtype) == (torch.int64, torch.bool)


def test_freezing_keeps_the_average_and_lets_go_of_statistics() -> None:
    sampler, u = MALA(preconditioner="diagonal"), Stiff(3.0)
    state = sampler.init(u, normal(4, *SHAPE), chain_generators(0, range(4)))
    never = sampler.freeze(state.memory)
    torch.testing.assert_close(never[STEP], state.memory[STEP])
    for _ in range(7):
        state, _ = sampler.step(u, state)
    frozen = sampler.freeze(state.memory)
    assert bool(frozen[FROZEN])
    assert torch.equal(frozen[STEP], averaging.averaged(state.memory[RECORD]))
    assert not torch.equal(frozen[STEP], state.memory[STEP])
    assert len(frozen) < len(state.memory)
    after, info = sampler.step(u, state._replace(memory=frozen))
    assert torch.equal(after.memory[STEP], frozen[STEP])
    assert info.n_grad == 1
    given = MALA(step_size=0.1)
    assert given.freeze(NOTHING) is NOTHING
    assert not given.couples_chains


def test_the_adaptation_sees_the_mean_acceptance_of_all_chains() -> None:
    sampler, u = MALA(target_acceptance=0.7), Stiff(3.0)
    state = sampler.init(u, normal(4, *SHAPE), chain_generators(0, range(4)))
    first, info = sampler.step(u, state)
    assert info.n_grad > 1  # the first guess
    second, info = sampler.step(u, first)
    assert info.n_grad == 1
    assert info.acceptance is not None
    want = averaging.update(first.memory[RECORD], 0.7 - info.acceptance.mean())
    torch.testing.assert_close(second.memory[RECORD], want)
    torch.testing.assert_close(second.memory[STEP], averaging.current(want))
    torch.testing.assert_close(torch.as_tensor(info.step_size), first.memory[STEP] ** 2 / 2)
    assert [int(s.memory[STEPS]) for s in (first, second)] == [1, 2]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_starts_are_twice_as_wide_as_the_forms_there_are(temperature: float) -> None:
    n, mean = 4000, normal(*SHAPE, seed=2)
    u = energies.Gaussian(mean, 0.5)
    x = MALA(temperature=temperature).start(u, (n, *SHAPE), DOUBLE, torch.Generator().manual_seed(0))
    std = 2 * math.sqrt(temperature) * 0.5
    assert x.shape == (n, *SHAPE)
    assert float((x.mean(0) - mean).abs().max()) < 5 * std / math.sqrt(n)
    assert float((x.var(0) / std**2 - 1).abs().max()) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("bad", ["x", "value", "grad"])
def test_a_start_that_is_not_finite_is_counted(bad: str) -> None:
    class Broken(Stiff):
        def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
            value, grad = squared_norm(x), x.clone()
            if bad == "value":
                value[1:] = math.inf
            if bad == "grad":
                grad[1:, 0, 0, 0] = math.nan
            return torch.nan_to_num(value) if bad == "x" else value, torch.nan_to_num(grad) if bad == "x" else grad

    x = normal(3, *SHAPE)
    if bad == "x":
        x[1:, 0, 1, 2] = math.nan
    with pytest.raises(
        FloatingPointError,
        match=r"^HMC: chain 1 starts where U or its gradient is not finite \(sigma 0.3\), with 2 of 3 chains affected$",
    ):
        HMC(step_size=0.1, sigma=0.3).init(Broken(), x, chain_generators(0, range(3)))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"step_size": 0.0}, ValueError, r"^MALA: step_size must be positive, got 0$"),
        ({"sigma": -1.0}, ValueError, r"^MALA: sigma must be positive, got -1$"),
        ({"curvature": 0.0}, ValueError, r"^MALA: curvature must be positive, got 0$"),
        ({"tolerance": 0.0}, ValueError, r"^MALA: tolerance must be positive, got 0$"),
        ({"temperature": 0.0}, ValueError, r"^MALA: temperature must be positive, got 0$"),
        ({"steps_per_draw": 0}, ValueError, r"^MALA: steps_per_draw must be at least 1, got 0$"),
        ({"default_warmup": -1}, ValueError, r"^MALA: default_warmup must be at least 0, got -1$"),
        ({"rank": 0}, ValueError, r"^MALA: rank must be at least 1, got 0$"),
        ({"target_acceptance": 1.0}, ValueError, r"^MALA: target_acceptance must be below 1, got 1$"),
        ({"target_acceptance": 0.0}, ValueError, r"^MALA: target_acceptance must be positive, got 0$"),
        ({"preconditioner": 3}, TypeError, r"^MALA: preconditioner is a int, expected a Preconditioner, 'diagonal', "),
        (
            {"preconditioner": "dense", "per_chain": True},
            ValueError,
            r"^MALA: per_chain is True, but a preconditioner is learned from all chains together; expected a Precond",
        ),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        MALA(**arguments)


def test_the_least_allowed_arguments_are_allowed() -> None:
    sampler = MALA(steps_per_draw=1, default_warmup=0, rank=1, target_acceptance=0.999, tolerance=None)
    assert (sampler.steps_per_draw, sampler.default_warmup, sampler.rank) == (1, 0, 1)
