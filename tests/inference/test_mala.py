"""MALA: the ratio against dense densities, exactness on posteriors known in closed form, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia._potential import Energy, Sigma
from potentia._quadratic import Diagonal, Fourier
from potentia._random import chain_generators, standard_normal
from potentia._structure import Structure
from potentia._tensor import inner, squared_norm
from potentia.inference import Langevin, Preconditioner
from potentia.inference._covariance import Dense, LowRank
from potentia.inference._mala import MALA
from potentia.inference._metric import metric_of
from potentia.inference._metropolis import Point, leapfrog
from potentia.testing._dense import dense, to_vectors

SHAPE = (1, 3, 4)


class Quartic(Energy):
    """U = sum |x|^4 / 4 + 0.3 |x_i - x_j|^2 / 2 over neighbours: neither Gaussian nor independent, real or complex."""

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.25 * squared_norm(x.abs().square()) + 0.15 * squared_norm(x - x.roll(1, -1))


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def structures(kind: str, dtype: torch.dtype) -> Structure:
    d = math.prod(SHAPE)
    if kind == "diagonal":
        return Diagonal(0.5 + normal(*SHAPE, seed=1).square())
    if kind == "fourier":
        plane = 0.5 + normal(*SHAPE, seed=2).square()
        return Fourier(plane + torch.roll(plane.flip((-2, -1)), (1, 1), (-2, -1)))
    if kind == "dense":
        a = normal(d, d, seed=3, dtype=dtype)
        c = a @ a.mH / d + 0.2 * torch.eye(d, dtype=dtype)
        return Dense(c, torch.linalg.cholesky(c))
    q, _ = torch.linalg.qr(normal(d, 3, seed=4, dtype=dtype))
    return LowRank(0.5 + normal(*SHAPE, seed=5).square(), q, torch.tensor([9.0, 0.1, 3.0], dtype=torch.float64))


KINDS = ("diagonal", "fourier", "dense", "low-rank")


def point(u: Energy, metric: inference.Preconditioner, x: Tensor) -> Point:
    value, grad = u.value_and_grad(x)
    return Point(x, value, grad, metric.solve(grad))


@given(
    kind=st.sampled_from(KINDS),
    field=st.sampled_from([torch.float64, torch.complex128]),
    eps=st.floats(0.001, 1.0),
    temperature=st.floats(0.2, 3.0),
    seed=st.integers(0, 1000),
)
def test_the_ratio_is_that_of_the_dense_proposal_densities(
    kind: str, field: torch.dtype, eps: float, temperature: float, seed: int
) -> None:
    u, p = Quartic(), Preconditioner(structures(kind, field))
    metric = metric_of(p)
    covariance = 2 * eps * temperature * dense(p.solve, SHAPE, field)
    old = point(u, p, 0.7 * normal(3, *SHAPE, seed=seed, dtype=field))
    white = normal(3, *SHAPE, seed=seed + 1, dtype=field)
    velocity = math.sqrt(temperature) * metric.colour((white,))
    new, _, ratio = leapfrog(u, None, metric, old, velocity, math.sqrt(2 * eps), 1, temperature)

    def log_density(a: Point, b: Point) -> Tensor:
        off = to_vectors(b.x - a.x + eps * p.solve(a.grad))
        return -0.5 * (off * torch.linalg.solve(covariance, off.mT).mT).sum(-1)

    there, back = log_density(old, new), log_density(new, old)
    want = (old.value - new.value) / temperature + back - there
    size = 1 + (old.value + new.value) / temperature + there.abs() + back.abs()
    assert bool(((ratio - want).abs() <= 1e-12 * size).all())
    # The proposal itself: drift and noise as the convention says.
    move = -eps * p.solve(old.grad) + math.sqrt(2 * eps) * velocity
    torch.testing.assert_close(new.x, old.x + move, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ratio_without_its_drift_term_would_be_seen(kind: str) -> None:
    u, p, eps = Quartic(), Preconditioner(structures(kind, torch.float64)), 0.3
    old = point(u, p, normal(3, *SHAPE, seed=0))
    new, _, ratio = leapfrog(u, None, metric_of(p), old, normal(3, *SHAPE, seed=1), math.sqrt(2 * eps), 1)
    wrong = old.value - new.value + 0.5 * inner(new.x - old.x, old.grad + new.grad)
    assert bool(((ratio - wrong).abs() > 1e-3).all())


def test_the_log_ratio_vanishes_with_the_third_power_of_the_time_step() -> None:
    u, p = Quartic(), Preconditioner.identity()
    old, v = point(u, p, normal(50, *SHAPE, seed=0)), normal(50, *SHAPE, seed=1)
    sizes = [float(leapfrog(u, None, metric_of(p), old, v, h, 1)[2].abs().mean()) for h in (0.02, 0.01)]
    assert sizes[0] / sizes[1] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", [torch.float64, torch.complex128])
def test_metrics_act_as_their_preconditioner(kind: str, field: torch.dtype) -> None:
    p = Preconditioner(structures(kind, field))
    metric = metric_of(p)
    x = normal(2, *SHAPE, seed=7, dtype=field)
    torch.testing.assert_close(metric.solve(metric.apply(x)), x)
    torch.testing.assert_close(metric.solve(x), p.solve(x))
    torch.testing.assert_close(metric.colour((x,)), p.solve(p.perturb((x,))))
    root = dense(lambda z: metric.colour((z,)), SHAPE, field)
    torch.testing.assert_close(root @ root.mT, dense(p.solve, SHAPE, field))
    precision = dense(p.structure.apply, SHAPE, field)
    right = dense(lambda z: p.perturb((z,)), SHAPE, field)
    torch.testing.assert_close(right @ right.mT, precision)
    half = Preconditioner(p.structure * 4.0)
    torch.testing.assert_close(half.solve(x), p.solve(x) / 4)
    torch.testing.assert_close(half.solve(half.perturb((x,))), p.solve(p.perturb((x,))) / 2)


def closed_form(form: pt.Quadratic, shape: tuple[int, ...], field: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variances of a Gaussian posterior, as real vectors."""
    covariance = torch.linalg.inv(dense(form.structure.apply, shape, field))
    return to_vectors(form.solve(form.linear.expand(shape))), covariance.diagonal()


def ensemble(sampler: inference.Sampler, posterior: pt.Potential, x0: Tensor, steps: int, warm: int) -> Tensor:
    """Draws after the warm-up, as real vectors (steps, chains, D)."""
    generators = chain_generators(3, range(len(x0)))
    state = sampler.init(posterior, x0, generators)
    for _ in range(warm):
        state, _ = sampler.step(posterior, state)
    state = state._replace(memory=sampler.freeze(state.memory))
    out = []
    for _ in range(steps):
        state, _ = sampler.step(posterior, state)
        out.append(to_vectors(state.x))
    return torch.stack(out)


def check_moments(draws: Tensor, mean: Tensor, variance: Tensor, z: float = 4.5) -> None:
    """Each chain is one independent witness of the mean and of the mean square: errors are those over chains."""
    n = draws.shape[1]
    off = draws - mean
    for got, want in ((off.mean(0), torch.zeros_like(mean)), (off.square().mean(0), variance)):
        error = got.std(0) / n**0.5
        assert bool(((got.mean(0) - want).abs() <= z * error).all())
        # and the errors are small enough for the check to mean something
        assert float((error / variance.sqrt()).max()) < 0.1


def blurred() -> pt.Sum:
    prior = energies.Gaussian(torch.zeros(1, 4, 4, dtype=torch.float64), 1.0)
    y = normal(1, 4, 4, seed=1)
    return prior + likelihoods.Gaussian(y, likelihoods.GaussianBlur(0.8, (4, 4)), noise_std=0.3)


def masked_field(field: torch.dtype) -> pt.Sum:
    """A correlated prior under a mask: a form that no transform diagonalises."""
    y = normal(1, 4, 4, seed=2, dtype=field)
    mask = (torch.arange(16).reshape(1, 4, 4) % 3 > 0).double()
    smooth = torch.tensor([1.0, 0.4, 0.1, 0.4], dtype=torch.float64)
    spectrum = smooth[:, None] * smooth[None, :] + 0.05
    mean = torch.zeros(1, 4, 4, dtype=field)
    return energies.GaussianField(spectrum[None], mean) + likelihoods.Gaussian(
        mask * y, likelihoods.Mask(mask), noise_std=0.5
    )


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("p", [None, "identity", "dense"])
def test_a_gaussian_posterior_is_met(p: str | None, temperature: float) -> None:
    posterior = blurred()
    given_p = Preconditioner.identity() if p == "identity" else p
    sampler = MALA(preconditioner=given_p, temperature=temperature)
    form = posterior.quadratic()
    assert form is not None
    mean, variance = closed_form(form, (1, 4, 4), torch.float64)
    draws = ensemble(sampler, posterior, normal(200, 1, 4, 4, seed=3), 300, 150)
    check_moments(draws[50:], mean, temperature * variance)


@pytest.mark.parametrize("field", [torch.float64, torch.complex128])
def test_a_matrix_free_posterior_is_met_real_and_complex(field: torch.dtype) -> None:
    """Halved noise in complex images would give variances that are off by far more than the error."""
    posterior = masked_field(field)
    form = posterior.quadratic()
    assert form is not None
    mean, variance = closed_form(form, (1, 4, 4), field)
    draws = ensemble(MALA(), posterior, normal(150, 1, 4, 4, seed=3, dtype=field), 60, 60)
    check_moments(draws[10:], mean, variance)
    with pytest.raises(AssertionError):
        check_moments(draws[10:], mean, variance / 2)


def test_single_precision_images_have_double_precision_energies() -> None:
    x = normal(4, *SHAPE, seed=0).float()
    state = MALA(0.1).init(Quartic(), x, chain_generators(0, range(4)))
    state, info = MALA(0.1).step(Quartic(), state)
    assert state.x.dtype == torch.float32
    assert state.value is not None
    assert state.value.dtype == torch.float64
    assert info.log_ratio is not None
    assert info.log_ratio.dtype == torch.float64


def test_chains_with_step_sizes_of_their_own_are_independent_in_the_warm_up_too() -> None:
    sampler, u, x = MALA(per_chain=True), Quartic(), normal(4, *SHAPE, seed=0)

    def run(chosen: list[int], x0: Tensor) -> list[Tensor]:
        state = sampler.init(u, x0[chosen], chain_generators(1, chosen))
        for _ in range(40):
            state, info = sampler.step(u, state)
        return [state.x, torch.as_tensor(info.step_size)]

    full = run([0, 1, 2, 3], x)
    for a, b in zip(run([1, 3], x), full, strict=True):
        torch.testing.assert_close(a, b[[1, 3]], rtol=1e-9, atol=1e-9)
    other = x.clone()
    other[0] *= 5
    for a, b in zip(run([0, 1, 2, 3], other), full, strict=True):
        assert torch.equal(a[1:], b[1:])
    assert len(torch.unique(full[1])) == 4


class Cliff(Quartic):
    """NaN on one side of a plane, 1e9 nats up beyond another."""

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        edge = x[..., 0, 0, 0].detach()
        high = torch.where(edge > 0.5, 1e9, 0.0).double()
        return super().forward(x) + high + torch.where(edge < -0.5, math.nan, 0.0)


def test_proposals_without_a_value_are_refused_and_counted() -> None:
    sampler, u = MALA(0.5), Cliff()
    state = sampler.init(u, torch.zeros(400, *SHAPE, dtype=torch.float64), torch.Generator().manual_seed(0))
    seen = torch.zeros(400, dtype=torch.bool)
    for _ in range(5):
        before = state
        state, info = sampler.step(u, state)
        assert info.diverging is not None
        assert info.accepted is not None
        assert info.acceptance is not None
        assert info.log_ratio is not None
        seen |= info.diverging
        assert torch.equal(state.x[info.diverging], before.x[info.diverging])
        assert bool((info.acceptance[info.diverging] == 0).all())
        assert bool((info.diverging == ~(info.log_ratio >= -1000)).all())
    assert bool(torch.isfinite(state.x).all())
    assert 0.2 < float(seen.double().mean()) < 1


def test_a_matrix_free_posterior_refuses_what_is_not_finite_chain_by_chain() -> None:
    """Conjugate gradients cannot be given a NaN; the other chains go on."""
    posterior = masked_field(torch.float64) + Cliff()
    x = torch.zeros(20, 1, 4, 4, dtype=torch.float64)
    sampler = MALA(0.5)
    state = sampler.init(posterior, x, chain_generators(0, range(20)))
    new, info = sampler.step(posterior, state)
    assert info.diverging is not None
    assert info.accepted is not None
    assert bool(info.diverging.any())
    assert bool(info.accepted.any())
    assert bool(torch.isfinite(new.x).all())


def test_a_start_that_is_not_finite_names_its_chain() -> None:
    x = torch.zeros(4, *SHAPE, dtype=torch.float64)
    x[2, 0, 0, 0] = -1.0
    with pytest.raises(FloatingPointError, match=r"MALA: chain 2 starts .* \(sigma None\), with 1 of 4 chains"):
        MALA().init(Cliff(), x, chain_generators(0, range(4)))
    x[2, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="chain 2"):
        MALA().init(Quartic(), x, chain_generators(0, range(4)))


def test_a_singular_preconditioner_asks_for_a_curvature() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.float64)
    mask[..., 0] = 1
    posterior = Quartic() + likelihoods.Gaussian(normal(1, 4, 4, seed=0), likelihoods.Mask(mask), noise_std=0.5)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"MALA: .*singular.*give a curvature"):
        MALA().init(posterior, x, chain_generators(0, range(2)))
    MALA(curvature=1.0).init(posterior, x, chain_generators(0, range(2)))


def test_a_score_only_prior_is_refused() -> None:
    score = energies.from_function(lambda x, sigma: x, (0.1, 1.0), shape=SHAPE)
    assert not score.has_value
    with pytest.raises(TypeError, match="score-only prior, which has no value"):
        MALA().init(score, torch.zeros(2, *SHAPE), chain_generators(0, range(2)))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"step_size": -1.0}, ValueError, "MALA: step_size must be positive, got -1"),
        ({"step_size": math.nan}, ValueError, "step_size must be finite"),
        ({"sigma": 0.0}, ValueError, "sigma must be positive"),
        ({"target_acceptance": 1.0}, ValueError, "target_acceptance must be below 1, got 1"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"steps_per_draw": 0}, ValueError, "steps_per_draw must be at least 1"),
        ({"default_warmup": -1}, ValueError, "default_warmup must be at least 0"),
        ({"preconditioner": "full"}, ValueError, "'full', expected a Preconditioner or one of 'diagonal'"),
        ({"preconditioner": 3}, TypeError, "preconditioner is a int"),
        ({"preconditioner": "dense", "per_chain": True}, ValueError, "learned from all chains together"),
        ({"curvature": -2.0}, ValueError, "curvature must be positive"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be positive"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        MALA(**arguments)  # type: ignore[arg-type]


def test_sample_runs_it_alone_and_after_another_sampler() -> None:
    posterior = blurred()
    for sampler in (MALA(), Langevin(0.5, steps_per_draw=5) >> MALA(steps_per_draw=5)):
        found = pt.sample(posterior, sampler, num_chains=4, num_draws=5, num_warmup=10, progress=False)
        stats = found.tree["sample_stats"]
        assert not bool(stats["diverging"].any())
        rate = float(stats["acceptance_rate"].mean())
        assert 0.3 < rate < 0.9
        steps = stats["step_size"].values
        assert steps.max() == steps.min()  # frozen
        assert 0 < steps.mean() < 2
