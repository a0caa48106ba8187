"""Parallel tempering over noise scales against mixtures in closed form."""

import math

import pytest
import torch
from mixture_posteriors import Problem, inpainting

import potentia as pt
from potentia import annealers, energies, likelihoods
from potentia._random import chain_generators
from potentia.inference import ALPS, State, _tempering
from potentia.inference._tempering import ParallelTempering

ANNEAL = annealers.Geometric(4.0, 0.05, 8)
# Where the swaps between the modes of the 50-pixel mixture are rejected equally often.
SPACED = annealers.Ladder.of(
    [5.0, 4.3, 3.68, 3.14, 2.68, 2.28, 1.94, 1.65, 1.38, 1.16, 0.96, 0.79, 0.62, 0.46, 0.3, 0.1]
)


def run(sampler, posterior, shape, chains, warmup, rounds, look, seed=0):  # type: ignore[no-untyped-def]
    """What ``look`` sees at every round after the warm-up, (rounds, chains), and the last state."""
    g = chain_generators(seed, chains)
    x0 = sampler.start(posterior, (len(chains), *shape), torch.float64, g)
    state = sampler.init(posterior, x0, g)
    seen = []
    for i in range(warmup + rounds):
        if i == warmup:
            state = state._replace(memory=sampler.freeze(state.memory))
        state, _ = sampler.step(posterior, state)
        if i >= warmup:
            seen.append(look(state.x))
    return torch.stack(seen), state


def over_chains(seen: torch.Tensor, truth: float) -> float:
    """Standard errors that the mean is off, from the scatter of chains, which are independent."""
    means = seen.double().mean(0)
    return float((means.mean() - truth).abs() / (means.std() / math.sqrt(len(means))))


def test_the_weights_of_two_modes_of_unlike_width_in_fifty_pixels() -> None:
    means = torch.ones(2, 1, 1, 50, dtype=torch.float64)
    means[0] = -1
    mixture = energies.GaussianMixture(torch.tensor([0.7, 0.3]), means, variances=torch.tensor([1.0, 0.3**2]))
    seen, state = run(
        ParallelTempering(SPACED), mixture, (1, 1, 50), range(32), 120, 300,
        lambda x: mixture.responsibilities(x)[:, 0],
    )  # fmt: skip
    assert over_chains(seen, 0.7) < 3.5  # Student's t of 31 degrees: p = 0.0014
    rates = ParallelTempering.swap_rates(state.memory).mean(0)
    assert rates.shape == (15,)
    assert bool(((rates > 0.15) & (rates < 0.75)).all())
    assert float(state.memory["arrivals"].double().mean()) > 2


def errors(problem: Problem, rounds: int = 180) -> tuple[float, float]:
    """Standard errors of a mode weight, and of the mean energy within the truth's own mixture."""
    look = lambda x: torch.stack([problem.weights_of(x)[:, 0], problem.posterior(x, 0.05)])  # noqa: E731
    seen, _ = run(ParallelTempering(ANNEAL), problem.posterior, (1, 4, 4), range(24), 60, rounds, look)
    g = torch.Generator().manual_seed(0)
    truth = problem.truth
    pick = torch.multinomial(truth.weights, 20_000, replacement=True, generator=g)
    root = torch.linalg.cholesky(truth.covariances)[pick]
    z = torch.randn(20_000, 16, 1, generator=g, dtype=torch.float64)
    exact = (truth.means[pick] + (root @ z)[..., 0]).reshape(-1, 1, 4, 4)
    energy = float(problem.posterior(exact, 0.05).mean())
    return over_chains(seen[:, 0], float(truth.weights[0])), over_chains(seen[:, 1], energy)


def test_mode_weights_and_energies_of_a_posterior() -> None:
    weight, energy = errors(inpainting(4))
    assert weight < 4
    assert energy < 4


def test_swaps_without_their_ratio_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tempering, "_acceptance", lambda log_ratio: torch.ones_like(log_ratio))
    _, energy = errors(inpainting(4), 60)
    assert energy > 7


def test_swaps_by_the_ratio_upside_down_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _tempering._acceptance
    monkeypatch.setattr(_tempering, "_acceptance", lambda log_ratio: right(-log_ratio))
    _, energy = errors(inpainting(4), 60)
    assert energy > 7


def blurred() -> pt.Sum:
    g = torch.Generator().manual_seed(0)
    operator = likelihoods.GaussianBlur(0.7, (4, 4)).double()
    prior = energies.Gaussian(torch.zeros(1, 4, 4, dtype=torch.float64), 0.5)
    return prior + likelihoods.Gaussian(operator.measure(prior.sample(g, 1)[0], 0.1, g), operator, 0.1)


def test_a_gaussian_posterior() -> None:
    posterior = blurred()
    form = posterior.quadratic(0.05)
    assert form is not None
    mode = form.mode()
    precision = form.structure.apply(torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)).reshape(16, 16)
    variance = float(torch.linalg.inv(precision).diagonal().mean())
    look = lambda x: (x - mode).square().mean((1, 2, 3))  # noqa: E731
    seen, _ = run(ParallelTempering(ANNEAL), posterior, (1, 4, 4), range(24), 60, 150, look)
    assert over_chains(seen, variance) < 4
    assert float(seen.mean(0).std()) < 0.3 * variance


def state_after(sampler, posterior, chains, warmup=6, rounds=6) -> State:  # type: ignore[no-untyped-def]
    return run(sampler, posterior, (1, 4, 4), chains, warmup, rounds, lambda x: x[:, 0, 0, 0])[1]


def test_a_chain_does_not_depend_on_its_neighbours() -> None:
    sampler, posterior = ParallelTempering(ANNEAL, moves=2), inpainting(4).posterior
    together, alone = state_after(sampler, posterior, range(3)), state_after(sampler, posterior, [2])
    torch.testing.assert_close(together.x[2:], alone.x, rtol=1e-9, atol=1e-9)
    for name in ("replicas", "swaps", "adapted_curvature"):
        a, b = together.memory[name], alone.memory[name]
        a = a[2:] if name == "replicas" else a[:, 2:]
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_values_and_gradients_follow_the_images_through_swaps() -> None:
    sampler, posterior = ParallelTempering(ANNEAL), inpainting(4).posterior
    state = state_after(sampler, posterior, range(4))
    assert float(state.memory["swaps"][0].sum()) > 0
    sigma = torch.tensor(ANNEAL.sigmas, dtype=torch.float64).expand(4, -1)
    x = torch.cat([state.memory["replicas"], state.x[:, None]], 1)
    value, grad = posterior.value_and_grad(x, sigma)
    assert state.value is not None
    assert state.grad is not None
    torch.testing.assert_close(torch.cat([state.memory["values"], state.value[:, None]], 1), value)
    torch.testing.assert_close(torch.cat([state.memory["grads"], state.grad[:, None]], 1), grad)


def test_what_is_learned_is_frozen_after_the_warm_up() -> None:
    sampler, posterior = ParallelTempering(ANNEAL), inpainting(4).posterior
    state = state_after(sampler, posterior, range(2))
    learning = state._replace(memory={**state.memory, "adapted_frozen": torch.zeros(())})
    frozen = learning._replace(memory=sampler.freeze(learning.memory))
    assert not bool(frozen.memory["swaps"].any())
    for before, same in ((learning, False), (frozen, True)):
        after, _ = sampler.step(posterior, before._replace(generator=chain_generators(0, range(2))))
        for name in ("adapted_angle", "adapted_curvature"):
            assert bool((after.memory[name] == before.memory[name]).all()) == same


def test_equal_scales_always_swap_and_images_arrive() -> None:
    sampler = ParallelTempering(annealers.Constant(0.3, 3))
    state = state_after(sampler, blurred(), range(2), rounds=40)
    torch.testing.assert_close(sampler.swap_rates(state.memory), torch.ones(2, 2, dtype=torch.float64))
    # Three images, each of which is up and down again within six rounds.
    assert bool(((state.memory["arrivals"] >= 18) & (state.memory["arrivals"] <= 21)).all())


def test_one_scale_alone_is_plain_langevin() -> None:
    state = state_after(ParallelTempering(annealers.Constant(0.3)), blurred(), range(2))
    assert state.memory["replicas"].shape == (2, 0, 1, 4, 4)
    assert bool(torch.isfinite(state.x).all())


def test_scales_are_respaced_evenly() -> None:
    prior = energies.Gaussian(torch.zeros(1, 4, 4, dtype=torch.float64), 0.5)
    rough = ParallelTempering(annealers.Geometric(10.0, 0.01, 10))
    state = state_after(rough, prior, range(16), 20, 80)
    better = rough.respaced(state.memory)
    assert better.annealer.sigmas[0] == 10.0
    assert better.annealer.sigmas[-1] == 0.01
    even = better.swap_rates(state_after(better, prior, range(16), 20, 80).memory).mean(0)
    before = rough.swap_rates(state.memory).mean(0)
    assert float(even.max() - even.min()) < 0.5 * float(before.max() - before.min())
    assert len(rough.respaced(state.memory, 5).annealer) == 5


def test_through_sample_and_after_another() -> None:
    posterior = inpainting(4).posterior
    sampler = ParallelTempering(ANNEAL, steps_per_draw=2, default_warmup=3)
    one, two = (pt.sample(posterior, sampler, num_chains=2, num_draws=3, progress=False).samples() for _ in range(2))
    assert bool((one == two).all())
    joined = pt.sample(posterior, ALPS(ANNEAL, 1) >> sampler, num_chains=2, num_draws=3, progress=False)
    assert bool(torch.isfinite(joined.samples()).all())
    single = pt.sample(posterior, sampler, num_chains=2, dtype="float32", progress=False).samples()
    assert single.dtype == torch.float32


def test_complex_images() -> None:
    operator = likelihoods.Fourier(likelihoods.cartesian_mask((4, 4), 2.0)).double()
    prior = energies.Gaussian(torch.zeros(1, 4, 4, dtype=torch.complex128), 0.5)
    g = torch.Generator().manual_seed(0)
    posterior = prior + likelihoods.Gaussian(operator.measure(prior.sample(g, 1)[0], 0.1, g), operator, 0.1)
    form = posterior.quadratic(0.05)
    assert form is not None
    basis = torch.eye(16, dtype=torch.complex128).reshape(16, 1, 4, 4)
    variance = torch.linalg.inv(form.structure.apply(basis).reshape(16, 16)).diagonal().real.mean()
    sampler, mode = ParallelTempering(ANNEAL), form.mode()
    gens = chain_generators(0, range(16))
    state = sampler.init(posterior, sampler.start(posterior, (16, 1, 4, 4), torch.complex128, gens), gens)
    seen = []
    for i in range(120):
        state, _ = sampler.step(posterior, state)
        if i >= 40:
            seen.append((state.x - mode).abs().square().mean((1, 2, 3)))
    assert over_chains(torch.stack(seen), float(2 * variance)) < 4.1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="annealer is a float"):
        ParallelTempering(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="moves must be at least 1"):
        ParallelTempering(ANNEAL, moves=0)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        ParallelTempering(ANNEAL, tolerance=0.0)
    sampler = ParallelTempering(ANNEAL)
    with pytest.raises(TypeError, match="score-only"):
        sampler.init(energies.ScoreModel(lambda x, s: x, scales=(0.01, 20.0)), torch.zeros(1, 1, 4, 4), [])
    state = sampler.init(blurred(), torch.zeros(1, 1, 4, 4).double(), chain_generators(0, [0]))
    with pytest.raises(ValueError, match="never tried to swap"):
        sampler.respaced(state.memory)
