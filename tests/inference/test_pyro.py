"""Pyro's kernels on our posteriors, and our kernel under Pyro's runner, against closed forms."""

# ruff: noqa: TID253 - the kernels are Pyro's
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from potentia import ScoreOnly, energies, inference, likelihoods
from potentia._potential import Potential
from potentia._quadratic import Diagonal
from potentia.inference import _pyro_kernel
from potentia.inference._pyro import potential_fn
from potentia.inference._pyro_kernel import Point, PyroMALA, evaluate, log_ratio, mala_step, propose

MOST_SE = 4.5  # standard errors: one Gaussian error in 150,000 is larger
PLANE = (2, 3)


def blurred(dtype: torch.dtype = torch.float64, shape: tuple[int, int] = PLANE, noise: float = 0.3) -> Potential:
    """A Gaussian posterior with a spread of curvatures."""
    g = torch.Generator().manual_seed(3)
    prior = energies.GaussianField.power_law((1, *shape), dtype=dtype, corner=0.4)
    blur = likelihoods.GaussianBlur(0.5, shape).to(dtype)
    return prior + likelihoods.Gaussian(blur.measure(prior.sample(g, 1)[0], noise, g), blur, noise)


def complex_posterior() -> Potential:
    g = torch.Generator().manual_seed(4)
    mean = torch.zeros(1, 1, 2, dtype=torch.complex128)
    matrix = torch.randn(3, 2, generator=g, dtype=torch.complex128)
    y = torch.randn(3, generator=g, dtype=torch.complex128)
    data = likelihoods.Gaussian(y, likelihoods.Matrix(matrix, (1, 1, 2)), 0.5)
    return energies.Gaussian(mean, torch.tensor([[[0.5, 1.0]]], dtype=torch.float64)) + data


def closed_form(post: Potential) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of a Gaussian posterior; of complex images that of each part."""
    form = post.quadratic() if not hasattr(post, "terms") else None
    forms = [form] if form is not None else [f for t in post.terms.values() if (f := t.quadratic()) is not None]
    shape = post.event_shape
    assert shape is not None
    d = math.prod(shape)
    basis = torch.eye(d, dtype=forms[0].linear.dtype).reshape(d, *shape)
    precision = sum(f.structure.apply(basis).reshape(d, d).mT for f in forms)
    linear = sum(f.linear.expand(shape).reshape(d) for f in forms)
    covariance = torch.linalg.inv(precision)
    return covariance @ linear, covariance


def worst_errors(x: Tensor, mean: Tensor, std: Tensor) -> tuple[float, float]:
    """Largest error of a mean and of a variance, in standard errors from the draws' effective number.

    Shapes: x (chains, draws, d); mean and std (d,).
    """
    off = (x - mean) / std
    square = off.square() - 1
    worst = []
    for s in (off, square):
        se = s.flatten(0, 1).std(0) / effective_sample_size(s).sqrt()
        worst.append(float((s.mean((0, 1)) / se).abs().max()))
    return worst[0], worst[1]


def run(kernel: Any, draws: int, warmup: int, start: dict[str, Tensor] | None = None, **kwargs: Any) -> MCMC:
    pyro.set_rng_seed(2)
    mcmc = MCMC(kernel, draws, warmup, initial_params=start, disable_progbar=True, **kwargs)
    mcmc.run()
    return mcmc


# --- potential_fn


class Score(ScoreOnly):
    @property
    def scales(self) -> tuple[float, float]:
        return 0.1, 1.0

    def denoise(self, x: Tensor, sigma: Any = None) -> Tensor:
        return 0.5 * x


class ClosedForm(energies.Gaussian):
    """A Gaussian whose value cannot be differentiated: only its closed-form gradient can be right."""

    @torch.no_grad()
    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        return super().forward(x, sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_gradient_and_dtype_are_the_posteriors(dtype: torch.dtype) -> None:
    post = blurred(dtype)
    u = potential_fn(post, offset=7.0)
    x = torch.randn(1, *PLANE, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()
    value = u({"x": x})
    (grad,) = torch.autograd.grad(3 * value, x)
    want, want_grad = post.value_and_grad(x)
    assert value.shape == ()
    assert value.dtype == grad.dtype == dtype
    assert torch.equal(value, (want - 7.0).to(dtype))
    assert torch.equal(grad, 3 * want_grad)
    with torch.no_grad():
        assert torch.allclose(u({"x": x}), value.detach())


def test_the_gradient_is_the_closed_form_and_not_differentiated_twice() -> None:
    post = ClosedForm(torch.zeros(1, *PLANE, dtype=torch.float64), 2.0)
    x = torch.ones(1, *PLANE, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(potential_fn(post)({"x": x}), x, create_graph=True)
    assert torch.allclose(grad, x / 4)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.square().sum().backward()
    with pytest.raises(RuntimeError, match="does not require grad"):  # what autograd alone would have made of it
        torch.autograd.grad(post(x), x)


def test_complex_images_are_real_parameters() -> None:
    post = complex_posterior()
    u = potential_fn(post)
    x = torch.randn(1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    params = u.params(x)
    assert params["x"].shape == (1, 1, 2, 2)
    assert torch.equal(u.images({"x": params["x"][None]})[0], x)
    assert torch.autograd.gradcheck(lambda z: u({"x": z}), params["x"].clone().requires_grad_())


def test_what_has_no_value_and_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="score-only"):
        potential_fn(Score())
    with pytest.raises(TypeError, match="score-only"):
        PyroMALA(Score())
    with pytest.raises(TypeError, match="is a Tensor"):
        potential_fn(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Tensor"):
        PyroMALA(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma"):
        potential_fn(blurred(), sigma=-1.0)
    u = potential_fn(blurred())
    x = torch.zeros(1, *PLANE)
    with pytest.raises(ValueError, match="sites"):
        u({"x": x, "y": x})
    with pytest.raises(ValueError, match="one chain"):
        u({"x": x[None]})
    with pytest.raises(ValueError, match="one chain"):
        u({"x": x + 0j})
    with pytest.raises(ValueError, match="expected"):
        u({"x": torch.zeros(1, 5, 5)})


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_tracing_is_refused() -> None:
    u = potential_fn(blurred())
    with pytest.raises(RuntimeError, match="jit_compile"):
        torch.jit.trace(lambda z: u({"x": z}), (torch.zeros(1, *PLANE),), check_trace=False)


def test_importing_inference_does_not_import_pyro() -> None:
    code = "import sys, potentia.inference, potentia.inference._pyro; sys.exit('pyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the accept rule


def dense(d: int, seed: int) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]], inference.Preconditioner]:
    """A covariance P, a quartic U with its gradient, and P as a preconditioner, on images (1, 1, d)."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=g, dtype=torch.float64)
    precision = a @ a.T / d + 0.3 * torch.eye(d, dtype=torch.float64)
    matrix = likelihoods.Matrix(torch.linalg.cholesky(precision).T, (1, 1, d))
    form = likelihoods.Gaussian(torch.zeros(d, dtype=torch.float64), matrix, 1.0).quadratic()

    def value_and_grad(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x**4 / 4 + x.cos()).sum((1, 2, 3)), x**3 - x.sin()

    return torch.linalg.inv(precision), value_and_grad, inference.Preconditioner(form.structure.with_tolerance(1e-14))


def proposal_density(x_new: Tensor, point: Point, covariance: Tensor, step_size: float) -> Tensor:
    """Log q(x' | x) of N(x - eps P g, 2 eps P), written out, (chains,)."""
    mean = (point.x - step_size * point.drift).flatten(1)
    normal = torch.distributions.MultivariateNormal(mean, 2 * step_size * covariance)
    return normal.log_prob(x_new.flatten(1))


@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(0.01, 3.0))
def test_the_ratio_is_that_of_the_explicit_densities(d: int, seed: int, step_size: float) -> None:
    covariance, value_and_grad, p = dense(d, seed)
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(5, 1, 1, d, generator=g, dtype=torch.float64)
    old, _ = evaluate(value_and_grad, p, x)
    assert torch.allclose(old.drift.flatten(1), old.grad.flatten(1) @ covariance, atol=1e-11)
    noise = p.draw(g, x.shape, x.dtype)
    new, _ = evaluate(value_and_grad, p, propose(old, noise, step_size))
    forward = proposal_density(new.x, old, covariance, step_size)
    backward = proposal_density(old.x, new, covariance, step_size)
    want = old.value - new.value + backward - forward
    got = log_ratio(old, new, step_size)
    scale = float(torch.stack([old.value, new.value, forward, backward]).abs().max())
    assert float((got - want).abs().max()) < 1e-10 * max(1.0, scale)
    # Leaving out the proposal's asymmetry, or counting a stale gradient, is not lost in that tolerance.
    for wrong in (old.value - new.value, log_ratio(old, new._replace(grad=old.grad, drift=old.drift), step_size)):
        assert float((wrong - want).abs().max()) > 1e-6


def test_proposals_have_the_step_sizes_drift_and_noise() -> None:
    step_size, n = 0.7, 40_000
    _, value_and_grad, p = dense(3, 8)
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).expand(n, 1, 1, 3).contiguous()
    old, _ = evaluate(value_and_grad, p, x)
    p = inference.Preconditioner(Diagonal(torch.tensor([[[0.5, 1.0, 4.0]]], dtype=torch.float64)))
    new = propose(old, p.draw(torch.Generator().manual_seed(1), x.shape, x.dtype), step_size).flatten(1)
    off = new - (x - step_size * old.drift).flatten(1)
    variance = 2 * step_size / torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    assert float((off.mean(0) / (variance / n).sqrt()).abs().max()) < MOST_SE
    ratio = off.var(0) / variance
    assert float((ratio - 1).abs().max()) < MOST_SE * math.sqrt(2 / n)
    # Published ALPS has noise sqrt(eps), which this bound sees.
    assert float((ratio / 2 - 1).abs().max()) > MOST_SE * math.sqrt(2 / n)


# --- invariance: chains that start exactly distributed stay so

CHAINS, STEPS = 100_000, 12


def kolmogorov(steps: int = STEPS, chains: int = CHAINS, step_size: float = 0.6) -> float:
    """sqrt(n) times the distance between a coordinate's distribution and the exact one, the larger of two."""
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([[-1.0, 0.5], [1.2, -0.2]]).double()
    stds = torch.tensor([[0.5, 1.0], [0.8, 0.4]]).double()
    target = energies.GaussianMixture(weights, means.reshape(2, 1, 1, 2), variances=stds.square().reshape(2, 1, 1, 2))
    p = inference.Preconditioner(Diagonal(torch.tensor([[[1.0, 3.0]]]).double()))
    g = torch.Generator().manual_seed(11)
    point, _ = evaluate(target.value_and_grad, p, target.sample(g, chains))
    rate = 0.0
    for _ in range(steps):
        point, outcome = mala_step(target.value_and_grad, p, point, step_size, g)
        rate += float(outcome.accepted.double().mean()) / steps
    assert 0.3 < rate <= 1.0  # neither stuck nor free of rejections
    x = point.x.reshape(chains, 2).sort(dim=0).values
    normal = torch.distributions.Normal(means, stds)
    exact = (weights[:, None] * normal.cdf(x[:, None, :])).sum(1)
    ranks = torch.arange(1, chains + 1, dtype=torch.float64)[:, None] / chains
    return float((exact - ranks).abs().max() * math.sqrt(chains))


MOST_KOLMOGOROV = 2.2  # the limit law exceeds this once in 8,000 times


def test_the_kernel_leaves_a_mixture_invariant() -> None:
    assert kolmogorov() < MOST_KOLMOGOROV


def test_planted_faults_change_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(point: Point, z: Tensor, step_size: float) -> Tensor:
        return propose(point, z / math.sqrt(2), step_size)

    settle = _pyro_kernel.settle
    faults: dict[str, tuple[str, Callable[..., Any]]] = {
        "wrong noise factor": ("propose", noise),
        "no Metropolis ratio": ("log_ratio", lambda old, new, step_size: torch.zeros_like(old.value)),
        "ratio without the proposal": ("log_ratio", lambda old, new, step_size: old.value - new.value),
        "gradient not put back": (
            "settle",
            lambda accepted, new, old: settle(accepted, new, old)._replace(grad=new.grad, drift=new.drift),
        ),
    }
    for name, (function, wrong) in faults.items():
        with monkeypatch.context() as patch:
            patch.setattr(_pyro_kernel, function, wrong)
            assert kolmogorov() > 2 * MOST_KOLMOGOROV, name


# --- under Pyro's runner


def check_gaussian(x: Tensor, post: Potential, most: float = MOST_SE) -> bool:
    """Whether draws (chains, draws, d), real or complex, have the mean and std of a Gaussian posterior."""
    mean, covariance = closed_form(post)
    std = covariance.diagonal().real.sqrt()
    if x.is_complex():
        x, mean, std = torch.cat([x.real, x.imag], -1), torch.cat([mean.real, mean.imag]), torch.cat([std, std])
    return max(worst_errors(x, mean, std)) < most


@pytest.mark.parametrize("name", ["HMC", "NUTS", "PyroMALA"])
def test_each_kernel_agrees_with_the_closed_form(name: str) -> None:
    post = blurred()
    u = potential_fn(post)
    start = u.params(torch.zeros(1, *PLANE, dtype=torch.float64))
    if name == "PyroMALA":
        mcmc = run(PyroMALA(post), 1200, 200)
    elif name == "HMC":
        # Five leapfrogs of a fixed length: adapted, they become one and a half, of which one is taken.
        mcmc = run(HMC(potential_fn=u, step_size=0.3, adapt_step_size=False, trajectory_length=1.55), 400, 100, start)
    else:
        mcmc = run(NUTS(potential_fn=u), 250, 100, start)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert x.dtype == torch.float64
    assert float(effective_sample_size(x.flatten(2)).min()) > 80
    assert check_gaussian(x.flatten(2), post)
    # Half the variance, or a mean off by half a standard deviation, would be seen.
    mean, covariance = closed_form(post)
    assert not check_gaussian(mean + (x.flatten(2) - mean) / math.sqrt(2), post)
    assert not check_gaussian(x.flatten(2) + 0.5 * covariance.diagonal().sqrt(), post)


def test_hmc_with_its_default_trajectory_resonates() -> None:
    """What the docstring warns of: unit variances, a full period, and draws that stay where the chain started."""
    post = energies.Gaussian(torch.zeros(1, 1, 4, dtype=torch.float64), 1.0)
    u = potential_fn(post)
    start = u.params(torch.full((1, 1, 4), 0.2, dtype=torch.float64))
    spread = {}
    for length in (None, 1.5):
        kernel = HMC(potential_fn=u, step_size=0.25, trajectory_length=length, adapt_step_size=False)
        mcmc = run(kernel, 150, 0, start)
        spread[length] = float(mcmc.get_samples()["x"].square().mean().sqrt())
        assert mcmc.diagnostics()["acceptance rate"]["chain 0"] > 0.9
        assert mcmc.diagnostics()["divergences"]["chain 0"] == []
    assert spread[None] < 0.7
    assert abs(spread[1.5] - 1) < MOST_SE / math.sqrt(2 * 600)


def test_complex_images_have_the_right_variance_in_each_part() -> None:
    post = complex_posterior()
    kernel = PyroMALA(post)
    start = torch.zeros(30, 1, 1, 2, 2, dtype=torch.float64)
    mcmc = run(kernel, 150, 60, {"x": start})
    assert mcmc.get_samples()["x"].shape == (150, 30, 1, 1, 2, 2)
    x = kernel.potential_fn.images(mcmc.get_samples()).flatten(2).transpose(0, 1)
    assert x.dtype == torch.complex128
    assert check_gaussian(x, post)
    # Draws with torch's own complex normal have half the variance.
    mean = closed_form(post)[0]
    assert not check_gaussian(mean + (x - mean) / math.sqrt(2), post)


def test_the_preconditioner_makes_an_ill_conditioned_posterior_easy() -> None:
    std = torch.logspace(-2, 2, 16, dtype=torch.float64).reshape(1, 4, 4)
    post = energies.Gaussian(torch.zeros(1, 4, 4, dtype=torch.float64), std)
    draws = {}
    for name, p in (("own", None), ("none", inference.Preconditioner.identity())):
        mcmc = run(PyroMALA(post, preconditioner=p), 1000, 300, {"x": torch.zeros(1, 4, 4, dtype=torch.float64)})
        draws[name] = mcmc.get_samples(group_by_chain=True)["x"].flatten(2)
    assert check_gaussian(draws["own"], post)
    assert float(effective_sample_size(draws["own"]).min()) > 100
    # Without it the widest direction has hardly moved by the end.
    assert float(draws["none"][0, :, -1].abs().max()) < 0.1 * float(std.max())


def test_the_step_size_is_adapted_in_the_warm_up_and_frozen_for_the_draws() -> None:
    seen: dict[str, list[float]] = {"Warmup": [], "Sample": []}

    def hook(kernel: PyroMALA, params: dict[str, Tensor], stage: str, i: int) -> None:
        seen[stage].append(kernel.step_size)

    kernel = PyroMALA(blurred(), target_acceptance=0.8)
    mcmc = run(kernel, 800, 400, hook_fn=hook)
    assert len(set(seen["Warmup"])) == 400
    # The average is in force before the first draw, after which nothing changes.
    assert set(seen["Sample"]) == {seen["Warmup"][-1]} == {kernel.step_size}
    late = torch.tensor(seen["Warmup"][200:-1]).log()
    assert abs(math.log(kernel.step_size) - float(late.mean())) < 3 * float(late.std()) / math.sqrt(10)
    told = mcmc.diagnostics()
    assert abs(told["acceptance rate"]["chain 0"] - 0.8) < 0.08
    assert told["step size"]["chain 0"] == kernel.step_size
    assert told["gradients"]["chain 0"] >= 1201
    assert told["divergences"]["chain 0"] == []
    log = kernel.logging()
    assert list(log) == ["step size", "acc. prob"]
    assert all(isinstance(v, str) for v in log.values())
    mcmc.summary()


def test_a_given_step_size_is_kept() -> None:
    kernel = PyroMALA(blurred(), step_size=0.3)
    run(kernel, 20, 20)
    assert kernel.step_size == 0.3
    assert isinstance(kernel, MCMCKernel)


# --- batched chains


def test_batched_chains_are_each_the_same_chain_whatever_runs_beside_them() -> None:
    post = blurred()
    draws = {}
    for chains in (1, 3, 5):
        mcmc = run(PyroMALA(post, step_size=0.5, num_batched_chains=chains), 15, 5)
        draws[chains] = mcmc.get_samples(group_by_chain=True)["x"]
        assert draws[chains].shape == (1, 15, chains, 1, *PLANE)
    assert torch.equal(draws[5][:, :, :3], draws[3])
    # Alone, a chain's sums are taken in another order.
    assert torch.allclose(draws[5][:, :, :1], draws[1], rtol=0, atol=1e-12)
    assert not torch.equal(draws[3][:, :, 0], draws[3][:, :, 1])


def test_batched_chains_are_accepted_each_for_itself_and_agree_with_the_closed_form() -> None:
    post = blurred(torch.float32)
    start = torch.randn(40, 1, *PLANE, generator=torch.Generator().manual_seed(5))
    mcmc = run(PyroMALA(post), 200, 100, {"x": start})
    x = mcmc.get_samples()["x"]
    assert x.dtype == torch.float32
    assert x.shape == (200, 40, 1, *PLANE)
    moved = (x[1:] != x[:-1]).flatten(2).any(-1)
    assert bool((moved.any(1) & ~moved.all(1)).any())
    rate = float(moved.double().mean())
    assert abs(rate - mcmc.diagnostics()["acceptance rate"]["chain 0"]) < 0.01
    assert check_gaussian(x.transpose(0, 1).flatten(2).double(), post)


# --- functions, refusals, processes


def two_sites(params: dict[str, Tensor]) -> Tensor:
    """A correlated Gaussian over a scalar and a pair: precision 2 I plus a one between the scalar and the first."""
    a, b = params["scale"], params["offset"]
    return a.square() + b.square().sum(-1) + a * b[..., 0]


def test_any_function_of_several_sites_is_a_target() -> None:
    start = {"scale": torch.zeros(16, dtype=torch.float64), "offset": torch.zeros(16, 2, dtype=torch.float64)}
    mcmc = run(PyroMALA(two_sites, num_batched_chains=16), 300, 100, start)
    samples = mcmc.get_samples()
    x = torch.cat([samples["offset"], samples["scale"][..., None]], -1).transpose(0, 1)
    precision = torch.tensor([[2.0, 0, 1], [0, 2, 0], [1, 0, 2]], dtype=torch.float64)
    std = torch.linalg.inv(precision).diagonal().sqrt()
    assert max(worst_errors(x, torch.zeros(3, dtype=torch.float64), std)) < MOST_SE
    single = run(PyroMALA(two_sites), 10, 10, {name: value[0] for name, value in start.items()})
    assert single.get_samples()["offset"].shape == (10, 2)
    with pytest.raises(ValueError, match="returned shape"):
        run(PyroMALA(lambda p: p["x"]), 10, 10, {"x": torch.zeros(3)})


def test_what_is_not_finite_is_refused_and_counted() -> None:
    """NaN beyond a radius of 1.5, the gradient's alone beyond 1.2: neither is entered, and no draw is mended."""

    def hole(x: Tensor) -> Tensor:
        r = x.square().sum((-3, -2, -1))
        return torch.where(r < 2.25, 0.5 * r, torch.nan)

    class Holes(energies.Function):
        def value_and_grad(self, x: Tensor, sigma: Any = None) -> tuple[Tensor, Tensor]:
            value, grad = super().value_and_grad(x, sigma)
            outside = x.square().sum((-3, -2, -1), keepdim=True) >= 1.44
            return value, torch.where(outside, torch.nan, grad)

    post = Holes(hole, shape=(1, 1, 2))
    mcmc = run(PyroMALA(post, step_size=0.5), 400, 50, {"x": torch.zeros(1, 1, 2)})
    told = mcmc.diagnostics()
    x = mcmc.get_samples()["x"]
    assert bool(torch.isfinite(x).all())
    assert float(x.flatten(1).norm(dim=1).max()) < 1.2
    divergences = told["divergences"]["chain 0"]
    assert len(divergences) > 50
    assert all(0 <= i < 400 for i in divergences)
    assert len(divergences) + told["warm-up divergences"]["chain 0"] == told["proposals not finite"]["chain 0"]
    still = (x[1:] == x[:-1]).flatten(1).all(1)
    assert all(bool(still[i - 1]) for i in divergences if i > 0)
    starts = torch.zeros(3, 1, 1, 2)
    starts[1] = 5.0
    with pytest.raises(ValueError, match="chain 1 starts, with 1 of 3"):
        run(PyroMALA(post, step_size=0.5), 1, 1, {"x": starts})


def test_bad_arguments_are_refused() -> None:
    post = blurred()
    for bad in ({"step_size": -1.0}, {"target_acceptance": 1.0}, {"num_batched_chains": 0}, {"curvature": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PyroMALA(post, **bad)
    with pytest.raises(ValueError, match="belong to a posterior"):
        PyroMALA(two_sites, sigma=0.1)
    with pytest.raises(ValueError, match="warmup_steps"):
        run(PyroMALA(post), 5, 0)
    with pytest.raises(ValueError, match="initial_params"):
        run(PyroMALA(two_sites), 5, 5)
    with pytest.raises(ValueError, match="leading dimensions"):
        run(PyroMALA(post, num_batched_chains=4), 5, 5, {"x": torch.zeros(3, 1, *PLANE)})
    with pytest.raises(ValueError, match="dimensions for one chain"):
        run(PyroMALA(post), 5, 5, {"x": torch.zeros(*PLANE)})
    with pytest.raises(ValueError, match="sites"):
        run(PyroMALA(post), 5, 5, {"y": torch.zeros(1, *PLANE)})
    with pytest.raises(ValueError, match="expected real numbers"):
        run(PyroMALA(complex_posterior()), 5, 5, {"x": torch.zeros(1, 1, 2) + 0j})
    with pytest.raises(RuntimeError, match="before setup"):
        PyroMALA(post).sample({})
    flat = energies.TotalVariation() + likelihoods.Gaussian(
        torch.zeros(1, *PLANE), likelihoods.Mask(torch.eye(2, 3)), 1
    )
    with pytest.raises(ValueError, match="give curvature"):
        run(PyroMALA(flat), 5, 5)
    run(PyroMALA(flat, curvature=1.0), 5, 5)


def test_chains_in_processes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro.infer.mcmc import api

    monkeypatch.setattr(api.mp, "cpu_count", lambda: 3)
    post = blurred()
    mcmc = run(PyroMALA(post), 20, 20, num_chains=2, mp_context="spawn")
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert x.shape == (2, 20, 1, *PLANE)
    assert bool((x[0] != x[1]).all())
    assert set(mcmc.diagnostics()["acceptance rate"]) == {"chain 0", "chain 1"}


@pytest.mark.filterwarnings("ignore:num_chains=.*:UserWarning")
def test_chains_in_sequence_differ_and_the_same_seed_repeats_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro.infer.mcmc import api

    monkeypatch.setattr(api.mp, "cpu_count", lambda: 1)
    first, second = (
        run(PyroMALA(blurred()), 10, 10, num_chains=2).get_samples(group_by_chain=True)["x"] for _ in range(2)
    )
    assert bool((first[0] != first[1]).all())
    assert torch.equal(first, second)


def test_a_hook_may_move_the_chain() -> None:
    """A kernel that takes turns with another must not go on with the old gradient."""
    kernel = PyroMALA(blurred(), step_size=0.1)
    start = torch.zeros(1, *PLANE, dtype=torch.float64)
    kernel.initial_params = {"x": start}
    kernel.setup(0)
    kernel.sample(kernel.initial_params)
    moved = {"x": torch.full((1, *PLANE), 3.0, dtype=torch.float64)}
    after = kernel.sample(moved)["x"]
    assert float((after - 3.0).abs().max()) < 2.5
    assert torch.equal(start, torch.zeros_like(start))
