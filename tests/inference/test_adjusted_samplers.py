"""What MALA and HMC make of the Metropolis rule: paths, stretched steps, what they learn, what they refuse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from potentia import energies
from potentia._potential import Energy, Sigma
from potentia._quadratic import Diagonal, MatrixFree, Quadratic
from potentia._random import chain_generators, standard_normal
from potentia._tensor import squared_norm
from potentia.inference import HMC, MALA, Preconditioner
from potentia.inference import _dual_averaging as averaging
from potentia.inference._learned import Kind
from potentia.inference._metric import metric_of
from potentia.inference._metropolis import DRIFT, FROZEN, RECORD, STEP, STEPS, Point, leapfrog

SHAPE = (2, 3, 2)
DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


class Smoothed(Energy):
    """-log of a standard normal prior smoothed at each scale: every scale has another gradient."""

    @property
    def scales(self) -> tuple[float, float]:
        return 0.1, 10.0

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.5 * squared_norm(x) / (1 + float(self.sigma_of(x, sigma)) ** 2)


class Centred(Smoothed):
    """The same about a mean, with its quadratic form at each scale; the least scale is given."""

    def __init__(self, low: float = 0.1) -> None:
        super().__init__()
        self.low = low
        self.mean = normal(*SHAPE, seed=8)

    @property
    def scales(self) -> tuple[float, float]:
        return self.low, 10.0

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().forward(x - self.mean, sigma)

    def quadratic(self, sigma: Sigma = None) -> Quadratic:
        precision = 1 / (1 + (self.low if sigma is None else float(sigma)) ** 2)
        return Quadratic(Diagonal(torch.full((1, 1, 1), precision, dtype=DOUBLE)), precision * self.mean)


class Varied(Energy):
    """Pixels have scales of their own, and tails lighter than a Gaussian's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("precision", 0.2 + normal(*SHAPE, seed=9).square())
        self.precision: Tensor

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.5 * squared_norm(self.precision.sqrt() * x) + 0.1 * squared_norm(x.square())


@pytest.mark.parametrize("sigma", [None, 3.0])
@pytest.mark.parametrize("sampler", [MALA(step_size=0.3), HMC(step_size=0.4, num_leapfrog=2)], ids=["MALA", "HMC"])
def test_a_step_is_taken_at_the_samplers_scale(sampler: Any, sigma: float | None) -> None:
    u, x = Smoothed(), normal(4, *SHAPE)
    flat = Preconditioner.identity()
    at_scale = type(sampler)(step_size=sampler.step_size, preconditioner=flat, sigma=sigma, **length(sampler))
    state = at_scale.init(u, x, chain_generators(0, range(4)))
    after, info = at_scale.step(u, state)
    # The same chain on the potential of that scale alone, which is a Gaussian.
    variance = 1 + (0.1 if sigma is None else sigma) ** 2
    plain = energies.Gaussian(torch.zeros(SHAPE, dtype=DOUBLE), math.sqrt(variance))
    other = type(sampler)(step_size=sampler.step_size, preconditioner=flat, **length(sampler))
    want, _ = other.step(plain, other.init(plain, x, chain_generators(0, range(4))))
    torch.testing.assert_close(after.x, want.x)
    torch.testing.assert_close(after.grad, want.grad)
    assert info.sigma == sigma


def length(sampler: Any) -> dict[str, int]:
    return {"num_leapfrog": sampler.num_leapfrog} if isinstance(sampler, HMC) else {}


@pytest.mark.parametrize("make", [Smoothed, Centred, lambda: Centred(2.0)])
@pytest.mark.parametrize("sigma", [None, 3.0])
def test_the_preconditioner_is_that_of_the_scale_and_the_curvature(make: Any, sigma: float | None) -> None:
    u, g = make(), normal(2, *SHAPE)
    for curvature in (None, 5.0):
        p = HMC(sigma=sigma, curvature=curvature)._given(u, g[0])
        want = Preconditioner.of(u, u.scales[0] if sigma is None else sigma, curvature)
        torch.testing.assert_close(p.solve(g), want.solve(g))


@pytest.mark.parametrize(("sigma", "scale"), [(None, 0.1), (3.0, 3.0)])
def test_beside_a_form_a_prior_without_one_counts_as_its_scale_says(sigma: float | None, scale: float) -> None:
    u, g = Smoothed() + energies.Gaussian(torch.zeros(SHAPE, dtype=DOUBLE), 0.5), normal(2, *SHAPE)
    precision = 1 / (0.25 + scale**2) + 1 / scale**2
    torch.testing.assert_close(MALA(sigma=sigma)._given(u, g[0]).solve(g), g / precision)


def test_a_prior_down_to_no_noise_at_all_is_taken_as_it_is() -> None:
    u, g = Centred(0.0), normal(2, *SHAPE)
    torch.testing.assert_close(HMC()._given(u, g[0]).solve(g), Preconditioner.of(u, None, None).solve(g))


@pytest.mark.parametrize("tolerance", [1e-5, 1e-3, None])
def test_the_solvers_tolerance_is_the_samplers(tolerance: float | None) -> None:
    free = MatrixFree(lambda v: 2 * v, lambda g, s, d: standard_normal(s, g, dtype=d), tolerance=1e-8)
    p = MALA(preconditioner=Preconditioner(free), tolerance=tolerance)._given(Varied(), normal(*SHAPE))
    assert isinstance(p.structure, MatrixFree)
    assert p.structure.tolerance == Preconditioner(free).adapted(normal(*SHAPE), tolerance).structure.tolerance  # type: ignore[attr-defined]
    if tolerance is not None:
        assert p.structure.tolerance == tolerance


@pytest.mark.parametrize("sigma", [0.1, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 16.0])
def test_the_first_step_size_is_sought_at_the_scale_and_the_temperature(sigma: float, temperature: float) -> None:
    u, sampler = Smoothed(), MALA(sigma=sigma, temperature=temperature)
    x, v = normal(6, *SHAPE), normal(6, *SHAPE, seed=1)
    value, grad = u.value_and_grad(x, sigma)
    old, metric = Point(x, value, grad, grad), metric_of(Preconditioner.identity())
    step, _ = sampler._first_guess(u, metric, old, v, torch.tensor(0.1, dtype=DOUBLE))

    def acceptance(h: Tensor) -> float:
        return float(leapfrog(u, sigma, metric, old, v, h, 1, temperature)[2].exp().clamp(max=1).mean())

    assert acceptance(step) > 0.5
    assert acceptance(2 * step) <= 0.5


def test_starts_are_centred_at_the_scale() -> None:
    u = Centred()
    x = HMC(sigma=3.0).start(u, (3, *SHAPE), DOUBLE, chain_generators(0, range(3)))
    z = standard_normal((3, *SHAPE), chain_generators(0, range(3)), dtype=DOUBLE)
    torch.testing.assert_close(x, u.mean + 2 * math.sqrt(10.0) * z)


def test_a_path_of_given_length_takes_as_many_steps_as_fit_into_it() -> None:
    for total, h, num in (
        (None, 0.5, 4),
        (1.0, 0.25, 4),
        (1.0, 0.26, 4),
        (1.0, 0.24, 5),
        (0.1, 3.0, 1),
        (9.0, 0.01, 100),
    ):
        sampler = HMC(trajectory_length=total)
        assert sampler._length(h) == num
        assert sampler._length(torch.tensor(h, dtype=DOUBLE)) == num
    assert HMC(max_leapfrog=7)._length(1e-3) == 7
    assert HMC(num_leapfrog=3)._length(1e-3) == 3


def test_steps_are_stretched_uniformly_about_their_length() -> None:
    uniform = torch.tensor([1e-6, 0.25, 0.5, 0.9, 1 - 1e-6], dtype=DOUBLE)
    numbers = torch.special.ndtri(uniform)
    for jitter in (0.2, 0.9):
        got = HMC(jitter=jitter)._stretched(0.5, numbers)
        torch.testing.assert_close(torch.as_tensor(got), 0.5 * (1 + jitter * (2 * uniform - 1)))
    each = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=DOUBLE)
    torch.testing.assert_close(HMC(jitter=0.2)._stretched(each, numbers), each * (1 + 0.2 * (2 * uniform - 1)))
    assert HMC(jitter=0.0)._stretched(0.5, numbers) == 0.5


@pytest.mark.parametrize(("sampler", "num"), [(HMC(num_leapfrog=3), 3), (MALA(), 1)], ids=["HMC", "MALA"])
def test_the_first_guess_is_counted_among_the_gradients(sampler: Any, num: int) -> None:
    u = 50 * Varied()
    state = sampler.init(u, normal(4, *SHAPE), chain_generators(0, range(4)))
    metric = sampler._metric(u, state)
    numbers, _ = sampler._numbers(state._replace(generator=chain_generators(0, range(4))), metric)
    velocity = metric.colour(numbers.white)
    point = sampler._point(state, metric)
    guess, tries = sampler._first_guess(u, metric, point, velocity, state.memory[STEP])
    after, info = sampler.step(u, state)
    assert not torch.equal(guess, state.memory[STEP])
    torch.testing.assert_close(after.memory[RECORD][3], guess.log())  # what steps are pulled to
    assert tries > 0
    assert info.n_grad == num + tries
    assert sampler.step(u, after)[1].n_grad == num


@pytest.mark.parametrize("kind", ["diagonal", "low-rank", "dense"])
@pytest.mark.parametrize("step_size", [None, 0.2])
def test_what_is_learned_at_the_end_of_a_window_serves_from_the_next_step(kind: str, step_size: float | None) -> None:
    u = Varied()
    sampler = MALA(step_size=step_size, preconditioner=kind, rank=2)
    state = sampler.init(u, normal(8, *SHAPE), chain_generators(0, range(8)))
    before = state
    for _ in range(16):
        before = state
        state, _ = sampler.step(u, state)
    assert int(state.memory[STEPS]) == 16
    assert state.memory[STEPS].dtype == torch.int64
    old, new = (sampler._metric(u, s) for s in (before, state))
    g = normal(2, *SHAPE, seed=5)
    assert not torch.allclose(old.solve(g), new.solve(g))
    assert state.grad is not None
    torch.testing.assert_close(state.memory[DRIFT], new.solve(state.grad))
    if step_size is None:  # the step size is sought anew from the average so far
        assert float(before.memory[RECORD][4]) == 15
        torch.testing.assert_close(averaging.restart(state.memory[STEP]), state.memory[RECORD])
    else:
        assert float(state.memory[STEP]) == pytest.approx(math.sqrt(2 * step_size))
    frozen = sampler.freeze(state.memory)
    assert frozen[FROZEN].dtype == torch.bool
    after, info = sampler.step(u, state._replace(memory=frozen))
    assert info.step_size == pytest.approx(float(frozen[STEP]) ** 2 / 2) if step_size is None else step_size
    assert torch.equal(sampler._metric(u, after).solve(g), new.solve(g))


def test_dual_averaging_is_the_papers_recursion() -> None:
    """Hoffman and Gelman 2014, equation 6, written out as sums, with gamma 0.25 and pulled to the first step."""
    errors = normal(2, 6, seed=1).mul(0.2)
    first = torch.tensor([0.3, 2.0], dtype=DOUBLE)
    record = averaging.restart(first)
    mean, average = torch.zeros(2, dtype=DOUBLE), first.log()
    for t in range(1, 7):
        record = averaging.update(record, errors[:, t - 1])
        mean = (1 - 1 / (t + 10)) * mean + errors[:, t - 1] / (t + 10)
        log = first.log() - math.sqrt(t) / 0.25 * mean
        average = t**-0.75 * log + (1 - t**-0.75) * average
        torch.testing.assert_close(averaging.current(record), log.exp())
        torch.testing.assert_close(averaging.averaged(record), average.exp())
        assert record[4].tolist() == [t, t]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, DOUBLE], ids=str)
def test_starts_are_the_centre_and_twice_a_draw(dtype: torch.dtype) -> None:
    mean = normal(*SHAPE, seed=2, dtype=dtype)
    u = energies.Gaussian(mean, 0.5)
    sampler = HMC(temperature=4.0)
    x = sampler.start(u, (3, *SHAPE), dtype, chain_generators(0, range(3)))
    z = standard_normal((3, *SHAPE), chain_generators(0, range(3)), dtype=dtype)
    assert x.dtype == dtype
    torch.testing.assert_close(x, mean + 2 * 2.0 * 0.5 * z, rtol=1e-5, atol=1e-5)


def test_a_preconditioner_to_be_learned_is_known_by_its_name() -> None:
    for given in ("low-rank", Kind.LOW_RANK):
        kept = MALA(preconditioner=given).preconditioner
        assert type(kept) is str
        assert kept == "low-rank"
    want = r"^HMC: preconditioner is 'sparse', expected a Preconditioner or one of 'diagonal', 'low-rank', 'dense'$"
    with pytest.raises(ValueError, match=want):
        HMC(preconditioner="sparse")
    with pytest.raises(
        TypeError,
        match=r"^HMC: preconditioner is a int, expected a Preconditioner, 'diagonal', 'low-rank', 'dense' or None$",
    ):
        HMC(preconditioner=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"max_leapfrog": 0}, ValueError, "HMC: max_leapfrog must be at least 1, got 0"),
        ({"num_leapfrog": 0}, ValueError, "HMC: num_leapfrog must be at least 1, got 0"),
        ({"trajectory_length": 0.0}, ValueError, "HMC: trajectory_length must be positive, got 0"),
        ({"jitter": "much"}, TypeError, "HMC: jitter must be a number, got str"),
        ({"jitter": -0.1}, ValueError, "HMC: jitter is -0.1, expected 0 or more and below 1"),
        ({"jitter": 1}, ValueError, "HMC: jitter is 1, expected 0 or more and below 1"),
        (
            {"num_leapfrog": 2, "trajectory_length": 1.0},
            ValueError,
            "HMC: got num_leapfrog and trajectory_length, expected one of them",
        ),
        (
            {"per_chain": True},
            ValueError,
            "HMC: per_chain is True without num_leapfrog, expected a number of steps for all chains",
        ),
    ],
)
def test_arguments_of_paths_are_named(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        HMC(**arguments)
    assert str(caught.value) == says


def test_the_least_path_is_allowed() -> None:
    assert HMC(max_leapfrog=1, num_leapfrog=1, jitter=0.0, per_chain=True).num_leapfrog == 1
