"""Log evidence against closed forms, with error bars that hold what they promise."""

import math
import warnings

import pytest
import torch
from mixture_posteriors import Problem, inpainting, written_out

from potentia import Sum, annealers, energies, likelihoods
from potentia._potential import Likelihood
from potentia.inference import _evidence, _smc
from potentia.inference._evidence import Evidence, EvidenceWarning, log_evidence, pooled

ANNEAL = annealers.Geometric(10.0, 0.05, 2)


def off(found: Evidence, truth: float) -> float:
    """Standard errors between the estimate and the truth."""
    return abs(found.log_value - truth) / found.std_error


def blurred(std: float = 0.8, fit: float | None = None) -> tuple[Sum, float]:
    """A Gaussian prior and a blurred image: the posterior, and log p(y)."""
    g = torch.Generator().manual_seed(0)
    shape = (1, 5, 4)
    prior = energies.Gaussian(torch.full(shape, 0.5, dtype=torch.float64), 0.6)
    true, used = (likelihoods.GaussianBlur(s, shape[1:]).double() for s in (std, fit or std))
    y = true.measure(prior.sample(g, 1)[0], 0.1, g)
    matrix = used(torch.eye(20, dtype=torch.float64).reshape(20, *shape)).reshape(20, 20).T
    mean, cov = torch.full((1, 20), 0.5, dtype=torch.float64), 0.36 * torch.eye(20).double()[None]
    truth = written_out(torch.ones(1).double(), mean, cov, matrix, y.reshape(-1), 0.1, 0.05)
    return prior + likelihoods.Gaussian(y, used, 0.1), truth.log_evidence


@pytest.mark.parametrize("method", ["smc", "power"])
def test_a_gaussian(method: str) -> None:
    posterior, truth = blurred()
    found = log_evidence(posterior, ANNEAL, method=method, num_particles=64, moves=2)
    assert off(found, truth) < 3
    assert found.std_error < 0.3
    assert len(found.log_values) == 8
    assert found.n_grad > 8 * 30


@pytest.mark.parametrize("method", ["smc", "power"])
def test_a_mixture_of_two_explanations(method: str) -> None:
    problem = inpainting(4)
    found = log_evidence(problem.posterior, ANNEAL, method=method, num_particles=80, moves=4)
    assert off(found, problem.truth.log_evidence) < 3
    assert found.std_error < 0.3


def test_twisted_particles_know_no_constant_of_the_prior() -> None:
    problem = inpainting(4, sigma=0.0)
    mixture, data = problem.prior, problem.posterior.terms["gaussian"]
    score = energies.ScoreModel(mixture.denoise, (0.01, 20.0), shape=mixture.event_shape)
    score.denoise_with_vjp = mixture.denoise_with_vjp  # type: ignore[method-assign]
    anneal = annealers.Geometric(10.0, 0.05, 96)
    found = log_evidence(score + data, anneal, method="twisted", num_particles=64)
    assert off(found, problem.truth.log_evidence) < 3
    assert found.std_error < 0.3
    # Too few scales leave a bias, of which the error bar knows nothing: the test would see it.
    coarse = log_evidence(score + data, annealers.Geometric(10.0, 0.05, 3), method="twisted", num_particles=64)
    assert off(coarse, problem.truth.log_evidence) > 6


def test_complex_images_and_masked_measurements() -> None:
    shape = (1, 4, 4)
    operator = likelihoods.Sense(likelihoods.birdcage_maps(2, shape[1:]), likelihoods.cartesian_mask(shape[1:], 2.0))
    operator = operator.double()
    g = torch.Generator().manual_seed(0)
    prior = energies.Gaussian(torch.zeros(shape, dtype=torch.complex128), 0.6)
    y = operator.measure(prior.sample(g, 1)[0], 0.2, g)
    sampled = operator.sampled
    assert sampled is not None
    rows = sampled.expand(y.shape).reshape(-1)
    matrix = operator(torch.eye(16, dtype=torch.complex128).reshape(16, *shape)).reshape(16, -1).T[rows]
    r = y.reshape(-1)[rows]
    total = (0.36 + 0.05**2) * matrix @ matrix.mH + 0.04 * torch.eye(len(r))
    # Each of the two parts has this covariance.
    misfit = (r.conj() @ torch.linalg.solve(total, r)).real
    truth = float(-0.5 * misfit - torch.linalg.slogdet(total)[1] - len(r) * math.log(2 * math.pi))
    posterior = prior + likelihoods.Gaussian(y, operator, 0.2)
    found = log_evidence(posterior, ANNEAL, num_particles=60, moves=2, tolerance=1e-6)
    assert off(found, truth) < 3
    assert found.std_error < 0.5


def faulty(monkeypatch: pytest.MonkeyPatch, fault: str) -> float:
    if fault == "normaliser":
        monkeypatch.setattr(likelihoods.Gaussian, "log_normaliser", lambda self: torch.zeros(()))
    elif fault == "level":
        weighed = _smc._weighed

        def forgetful(p, change, *a):  # type: ignore[no-untyped-def]
            new = weighed(p, change, *a)
            return new._replace(log_integral=p.log_integral) if p.num_levels == 5 else new

        monkeypatch.setattr(_smc, "_weighed", forgetful)
    posterior, truth = blurred()
    return off(log_evidence(posterior, ANNEAL, num_particles=100, moves=3), truth)


@pytest.mark.parametrize("fault", ["normaliser", "level"])
def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    assert faulty(monkeypatch, fault) > 6


def test_error_bars_hold_what_they_promise() -> None:
    problem = inpainting(1, side=2)
    z = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvidenceWarning)
        for seed in range(16):
            found = log_evidence(
                problem.posterior, ANNEAL, num_particles=24, num_runs=6, moves=2, target=0.6, seed=seed
            )
            z.append((found.log_value - problem.truth.log_evidence) / found.std_error)
    off = torch.tensor(z, dtype=torch.float64)
    assert int((off.abs() > 3).sum()) <= 1
    # With the true error the mean square is 1 with a standard deviation of about 0.55 (heavy tails of six runs' t).
    assert 0.3 < float(off.square().mean()) < 2.7


def test_the_pooled_error_has_unit_variance_on_normal_estimates() -> None:
    g = torch.Generator().manual_seed(0)
    for n in (6, 20):
        logs = 0.1 * torch.randn(4000, n, generator=g, dtype=torch.float64)
        found = [pooled(row.tolist()) for row in logs]
        z = torch.tensor([(v - 0.5 * 0.1**2) / e for v, e in found])
        # Of t with 5 degrees the variance of the mean square is 2 * 2.6 / 4000 or less, here allowed four times over.
        assert abs(float(z.square().mean()) - 1) < 0.2


def test_constants_of_a_prior_are_estimated_or_cancel() -> None:
    problem = inpainting(1, side=2)
    mixture, data = problem.prior, problem.posterior.terms["gaussian"]
    shifted = energies.Function(lambda x, s: mixture(x, s) + 7.0, scales=(0.01, 20.0)) + data
    run = lambda **k: log_evidence(shifted, ANNEAL, num_particles=40, num_runs=5, moves=3, **k)  # noqa: E731
    truth = problem.truth.log_evidence
    assert off(run(), truth - 7.0) < 3
    assert off(run(normalise_prior=True), truth) < 3
    assert off(run(method="power"), truth) < 3


def test_the_right_blur_and_noise_have_the_greater_evidence() -> None:
    right, truth = blurred()
    wrong, other = blurred(fit=1.5)
    a, b = (log_evidence(p, ANNEAL, num_particles=60, moves=2, num_runs=4) for p in (right, wrong))
    assert truth > other
    assert a.log_value > b.log_value
    assert abs((a.log_value - b.log_value) - (truth - other)) < 4 * math.hypot(a.std_error, b.std_error)


def test_it_is_reproducible_and_leaves_the_posterior_alone() -> None:
    posterior, _ = blurred()
    one, two, other = (log_evidence(posterior, ANNEAL, num_particles=16, moves=1, seed=s) for s in (1, 1, 2))
    assert one == two
    assert one.log_value != other.log_value
    assert posterior.terms["gaussian"].mean.dtype == torch.float64
    single = log_evidence(posterior, ANNEAL, num_particles=60, moves=2, dtype="float32")
    assert off(single, blurred()[1]) < 4


def normal_log_density(r: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    parts = torch.view_as_real(r) if r.is_complex() else r[..., None]
    return torch.distributions.Normal(0.0, std.double()[..., None]).log_prob(parts.double()).sum(-1)


@pytest.mark.parametrize("case", ["plain", "masked", "per entry", "complex, masked"])
def test_the_gaussian_likelihood_is_a_density_of_its_measurements(case: str) -> None:
    g = torch.Generator().manual_seed(0)
    shape = (2, 4, 4)
    mask = (torch.rand(4, 4, generator=g) < 0.5).double()
    operator: likelihoods.Operator = likelihoods.Identity()
    if case == "masked":
        operator = likelihoods.Mask(mask)
    elif case == "complex, masked":
        operator = likelihoods.Fourier(mask)
    dtype = torch.complex128 if case == "complex, masked" else torch.float64
    std = torch.rand(shape, generator=g) + 0.1 if case in ("per entry", "complex, masked") else torch.full(shape, 0.3)
    x = torch.randn(shape, generator=g, dtype=dtype)
    likelihood = likelihoods.Gaussian(operator.measure(x, std, g), operator, std)
    each = normal_log_density(likelihood.residual(x), std)
    expected = each.sum() if operator.sampled is None else each[operator.sampled.expand(shape)].sum()
    got = -likelihood(x) - likelihood.log_normaliser()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)


class Silent(likelihoods.Gaussian):
    log_normaliser = Likelihood.log_normaliser


def test_what_cannot_be_done_is_refused() -> None:
    posterior, _ = blurred()
    prior, data = posterior.terms["gaussian"], posterior.terms["gaussian_2"]
    with pytest.raises(ValueError, match="method is 'ais', expected one of 'smc', 'power'"):
        log_evidence(posterior, ANNEAL, method="ais")
    with pytest.raises(ValueError, match="no likelihood"):
        log_evidence(prior, ANNEAL)
    with pytest.raises(ValueError, match="no prior"):
        log_evidence(data, ANNEAL)
    with pytest.raises(ValueError, match="num_runs must be at least 4"):
        log_evidence(posterior, ANNEAL, num_runs=3)
    with pytest.raises(TypeError, match="annealer is a str"):
        log_evidence(posterior, "fast")  # type: ignore[arg-type]
    score = energies.ScoreModel(lambda x, s: x, scales=(0.01, 20.0))
    with pytest.raises(TypeError, match="score-only"):
        log_evidence(score + data, ANNEAL)
    silent = Silent(torch.zeros(1, 5, 4).double(), noise_std=0.1)
    with pytest.raises(TypeError, match="does not say its normaliser"):
        log_evidence(prior + silent, ANNEAL)


def test_weighted_likelihoods_count_as_powers_of_their_density() -> None:
    posterior, _ = blurred()
    data = posterior.terms["gaussian_2"]
    assert float(_evidence._log_normaliser(0.5 * data)) == pytest.approx(0.5 * float(data.log_normaliser()))


def test_runs_that_disagree_are_reported() -> None:
    with pytest.warns(EvidenceWarning, match="runs scatter by 2"):
        pooled([0.0, 5.0, 1.0, 2.0])


def test_the_truth_is_itself_right() -> None:
    problem: Problem = inpainting(1, side=2)
    # By brute force: the measured half has two pixels, and the mixture's marginal there is a mixture.
    data = problem.posterior.terms["gaussian"]
    rows = [0, 2]
    y = data.y.reshape(-1)[rows]
    means = problem.prior.means.flatten(1)[:, rows]
    var = torch.tensor([0.5**2, 0.2**2]).double() + 0.05**2 + 0.3**2
    logs = [
        w.log() + torch.distributions.Normal(m, v.sqrt()).log_prob(y).sum()
        for w, m, v in zip(problem.prior.weights, means, var, strict=True)
    ]
    assert problem.truth.log_evidence == pytest.approx(float(torch.stack(logs).logsumexp(0)))
