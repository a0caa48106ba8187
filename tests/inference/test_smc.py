"""Adaptive SMC over noise scales against posteriors known in closed form."""

import math

import pytest
import torch
from mixture_posteriors import inpainting

import potentia as pt
from potentia import annealers, energies, likelihoods
from potentia.inference import Langevin, _smc
from potentia.inference._smc import SMC

ANNEAL = annealers.Geometric(10.0, 0.05, 8)
INTEGRAL = 0.5 * math.log(2 * math.pi)


def passes(sampler: SMC, posterior, like, num: int, runs: int, seed: int = 0):  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(seed)
    return [sampler.run(posterior, like, num, g) for _ in range(runs)]


def standard_errors(found, truth: float) -> float:  # type: ignore[no-untyped-def]
    """How many standard errors the mean over runs is off."""
    t = torch.tensor([float(v) for v in found], dtype=torch.float64)
    return float((t.mean() - truth).abs() / (t.std() / math.sqrt(len(t))))


@pytest.mark.parametrize("is_complex", [False, True])
def test_a_gaussian_posterior_and_its_integral(is_complex: bool) -> None:
    g = torch.Generator().manual_seed(0)
    shape = (1, 4, 5)
    dtype = torch.complex128 if is_complex else torch.float64
    if is_complex:
        maps, mask = likelihoods.birdcage_maps(2, shape[1:]), likelihoods.cartesian_mask(shape[1:], 2.0)
        operator: likelihoods.Operator = likelihoods.Sense(maps, mask).double()
    else:
        operator = likelihoods.GaussianBlur(0.8, shape[1:]).double()
    prior = energies.Gaussian(torch.full(shape, 0.5, dtype=dtype), 0.6)
    y = operator.measure(prior.sample(g, 1)[0], 0.2, g)
    posterior = prior + likelihoods.Gaussian(y, operator, 0.2)
    form = posterior.quadratic(0.05)
    assert form is not None
    mode = form.mode()
    d = mode.numel()
    matrix = form.structure.apply(torch.eye(d, dtype=dtype).reshape(d, *shape)).reshape(d, d)
    parts = 2 if is_complex else 1
    log_integral = parts * (d * INTEGRAL - 0.5 * torch.linalg.slogdet(matrix)[1]) - posterior(mode, 0.05)
    found = passes(SMC(ANNEAL, moves=2, tolerance=1e-6), posterior, torch.zeros(shape, dtype=dtype), 64, 6)
    errors = [standard_errors([p.log_integral for p in found], float(log_integral))]
    assert max(errors) < 4.8  # Student's t of 5 degrees beyond it: p = 0.005
    # Planted: the start's normaliser forgotten.
    assert standard_errors([p.log_integral + parts * INTEGRAL for p in found], float(log_integral)) > 6
    x = torch.cat([p.x for p in found])
    spread = torch.linalg.inv(matrix).diagonal().real.mean().sqrt()
    # Particles of a run share ancestors: what varies is the mean of a run.
    means = torch.stack([(p.log_weights.exp()[:, None, None, None] * (p.x - mode)).sum(0).real for p in found])
    assert standard_errors(means.mean((1, 2, 3)), 0.0) < 4.8
    off = (x - mode).real.square().mean()
    assert abs(float(off / spread**2) - 1) < 0.2


def test_the_weights_of_two_modes_of_unlike_width_in_fifty_pixels() -> None:
    means = torch.ones(2, 1, 1, 50, dtype=torch.float64)
    means[0] = -1
    mixture = energies.GaussianMixture(torch.tensor([0.7, 0.3]), means, variances=torch.tensor([1.0, 0.3**2]))
    found = passes(SMC(annealers.Geometric(8.0, 0.1, 2), moves=5), mixture, means[0], 128, 6)
    logs = torch.stack([p.log_integral for p in found])
    shares = [float(p.log_weights.exp() @ mixture.responsibilities(p.x)[:, 0]) for p in found]
    assert standard_errors(logs, 0.0) < 4.8  # 5 degrees: p = 0.005
    assert standard_errors(shares, 0.7) < 4.8
    assert float(torch.tensor(shares).std()) < 0.3
    assert all(p.least_ess > 0.75 for p in found)


def two_explanations(monkeypatch: pytest.MonkeyPatch | None = None, fault: str = "") -> tuple[float, float]:
    """Mode weights and evidence of an inpainting whose static posteriors are of other weights; errors of both."""
    problem = inpainting(4)
    if fault == "weights":
        assert monkeypatch is not None
        weighed = _smc._weighed
        monkeypatch.setattr(_smc, "_weighed", lambda p, change, *a: weighed(p, 0 * change, *a))
    if fault == "level":
        assert monkeypatch is not None
        weighed = _smc._weighed

        def forgetful(p, change, *a):  # type: ignore[no-untyped-def]
            new = weighed(p, change, *a)
            return new._replace(log_integral=p.log_integral) if p.num_levels == 7 else new

        monkeypatch.setattr(_smc, "_weighed", forgetful)
    found = passes(SMC(ANNEAL, moves=6), problem.posterior, torch.zeros(1, 4, 4).double(), 100, 6)
    constant = 8 * math.log(0.3 * math.sqrt(2 * math.pi))
    shares = [float(p.log_weights.exp() @ problem.weights_of(p.x)[:, 0]) for p in found]
    # Weights are ratios: what a run is worth is its estimate of the evidence.
    evidence = standard_errors([p.log_integral - constant for p in found], problem.truth.log_evidence)
    return standard_errors(shares, float(problem.truth.weights[0])), evidence


def test_mode_weights_and_evidence_of_a_posterior() -> None:
    problem = inpainting(4)
    assert abs(float(problem.truth.weights[0] - inpainting(4, sigma=0.5).truth.weights[0])) > 0.4
    weight, evidence = two_explanations()
    assert weight < 4.8
    assert evidence < 4.8


def test_weights_that_are_not_applied_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = two_explanations(monkeypatch, "weights")
    assert weight > 8


def test_one_levels_weights_left_out_of_the_integral_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    _, evidence = two_explanations(monkeypatch, "level")
    assert evidence > 6


def test_priors_without_scales_are_tempered_from_a_gaussian() -> None:
    quartic = energies.Function(lambda x: 2 * (x - 1).pow(4).sum((-3, -2, -1)))
    y = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 2, 3)
    posterior = quartic + likelihoods.Gaussian(y, noise_std=0.5)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    log = -2 * (grid - 1).pow(4)[:, None] - (grid[:, None] - y.reshape(-1)).square() / 0.5
    log_integral = float((log.logsumexp(0) + math.log(12 / 4000)).sum())
    found = passes(SMC(annealers.Constant(2.0)), posterior, torch.zeros_like(y), 120, 6)
    assert standard_errors([p.log_integral for p in found], log_integral) < 4.8
    assert found[0].num_levels > 2


def test_levels_of_the_annealers_own_collapse_where_they_lie_far_apart() -> None:
    prior = energies.Gaussian(torch.zeros(1, 8, 8, dtype=torch.float64), 0.5)
    like = torch.zeros(1, 8, 8, dtype=torch.float64)
    far, near, adaptive = (
        passes(s, prior, like, 64, 1)[0]
        for s in (
            SMC(annealers.Geometric(10.0, 0.05, 5), adaptive=False),
            SMC(annealers.Geometric(10.0, 0.05, 80), adaptive=False),
            SMC(annealers.Geometric(10.0, 0.05, 5)),
        )
    )
    assert far.num_levels == 5  # one of tempering, four of scale
    assert far.least_ess < 0.1 < 0.5 < near.least_ess
    assert adaptive.least_ess > 0.75


def test_through_sample() -> None:
    problem = inpainting(4)
    sampler = SMC(ANNEAL, moves=2)
    run = lambda s, **k: pt.sample(problem.posterior, s, seed=3, progress=False, **k)  # noqa: E731
    once, again = (run(sampler, num_chains=40, num_draws=2).samples() for _ in range(2))
    assert once.shape == (40, 2, 1, 4, 4)
    assert bool((once == again).all())
    assert not bool((once[:, 0] == once[:, 1]).any())
    # The last moves separate copies.
    assert len(once[:, 0].flatten(1).unique(dim=0)) == 40
    assert sampler.independent_draws
    joined = run(sampler >> Langevin(0.2, sigma=0.05, steps_per_draw=2), num_chains=10)
    assert bool(torch.isfinite(joined.samples()).all())
    single = run(sampler, num_chains=40, dtype="float32").samples()
    assert single.dtype == torch.float32


def test_the_memory_says_how_the_pass_went() -> None:
    problem = inpainting(4)
    sampler = SMC(ANNEAL, moves=2)
    g = torch.Generator().manual_seed(0)
    state = sampler.init(problem.posterior, torch.zeros(64, 1, 4, 4, dtype=torch.float64), g)
    new, info = sampler.step(problem.posterior, state)
    assert set(new.memory) == {"log_integral", "least_ess", "num_levels", "num_ancestors"}
    assert 10 < int(new.memory["num_levels"]) < 60
    assert 1 < int(new.memory["num_ancestors"]) < 64
    assert new.value is not None
    assert new.grad is not None
    value, grad = problem.posterior.value_and_grad(new.x, 0.05)
    torch.testing.assert_close(new.value, value)
    torch.testing.assert_close(new.grad, grad)
    assert info.acceptance is not None
    assert bool(((info.acceptance > 0.5) & (info.acceptance <= 1)).all())
    assert info.n_grad > 3 * int(new.memory["num_levels"])
    assert not bool(state.x.any())


def test_energies_that_are_not_finite_are_named() -> None:
    nan = energies.Function(lambda x, s: x.square().sum((-3, -2, -1)) * torch.nan, scales=(0.01, 20.0))
    with pytest.raises(FloatingPointError, match="weights of 8 of 8 particles are not finite on the way to sigma 10"):
        SMC(ANNEAL).run(nan, torch.zeros(1, 2, 2).double(), 8, torch.Generator().manual_seed(0))


def test_too_few_levels_are_reported() -> None:
    prior = energies.Gaussian(torch.zeros(1, 8, 8, dtype=torch.float64), 0.5)
    with pytest.raises(FloatingPointError, match=r"still at sigma .* after 3 levels"):
        passes(SMC(ANNEAL, max_levels=3, moves=1), prior, torch.zeros(1, 8, 8).double(), 32, 1)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="annealer is a list"):
        SMC([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no levels"):
        SMC(annealers.Ladder([]))
    with pytest.raises(ValueError, match="expected temperature 1"):
        SMC(ANNEAL.with_temperature(0.5))
    with pytest.raises(ValueError, match="target must lie between 0 and 1"):
        SMC(ANNEAL, target=1.0)
    with pytest.raises(ValueError, match="moves must be at least 1"):
        SMC(ANNEAL, moves=0)
    score = energies.ScoreModel(lambda x, s: x, scales=(0.01, 20.0))
    with pytest.raises(TypeError, match="score-only"):
        SMC(ANNEAL).init(score, torch.zeros(2, 1, 4, 4), torch.Generator())
