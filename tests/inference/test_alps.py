"""ALPS: the published update written out, the rules on a Gaussian in closed form, and what a step may cost."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from potentia import annealers, energies, inference, likelihoods
from potentia._potential import Potential
from potentia._random import chain_generators, standard_normal

CHAINS, SHAPE = 3, (1, 8, 6)


class Psi(nn.Module):
    """A small smooth network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return x - sigma[:, None, None, None] * self.second(torch.tanh(self.first(x)))


def problem(kind: str) -> tuple[Potential, Callable[[Tensor, float], Tensor], Tensor]:
    """A posterior, powers of its P^-1 in the basis where that is diagonal, and A^T y / eta^2."""
    g = torch.Generator().manual_seed(4)
    eta = 0.2
    prior = energies.Denoiser(Psi().double(), scales=(0.01, 20.0))
    mask = (torch.rand(SHAPE[1:], generator=g) < 0.5).double()
    operator = {
        "inpainting": likelihoods.Mask(mask),
        "deblurring": likelihoods.GaussianBlur(1.0, SHAPE[1:]),
    }[kind].double()
    y = operator.measure(torch.randn(SHAPE, dtype=torch.float64, generator=g), eta, g)

    def power(v: Tensor, exponent: float, s: float) -> Tensor:
        if kind == "inpainting":
            return v * (mask / eta**2 + 1 / s**2) ** exponent
        assert isinstance(operator, likelihoods.Convolution)
        gain = (operator.power / eta**2 + 1 / s**2) ** exponent
        return torch.fft.ifft2(torch.fft.fft2(v) * gain).real

    return prior + likelihoods.Gaussian(y, operator, eta), power, operator.adjoint(y) / eta**2


@pytest.mark.parametrize("kind", ["inpainting", "deblurring"])
def test_the_published_rule_is_the_published_update(kind: str) -> None:
    """Chand and Jacob 2026, algorithm 1, written out: denoise, solve, add the noise of the scale to come."""
    posterior, power, b = problem(kind)
    psi = posterior.terms["denoiser"].psi  # type: ignore[attr-defined]
    anneal = annealers.Karras(10.0, 0.1, 4, rho=5.0)
    inner = 3
    noise = chain_generators(7, range(CHAINS))

    def xi() -> Tensor:
        return standard_normal((CHAINS, *SHAPE), noise, dtype=torch.float64)

    scales = [(10 ** (1 / 5) + i / 3 * (0.1 ** (1 / 5) - 10 ** (1 / 5))) ** 5 for i in range(4)]
    x = power(b.expand(CHAINS, *SHAPE), -1, scales[0]) + power(xi(), -0.5, scales[0])
    for i, s in enumerate(scales):
        for k in range(inner):
            z = x.clone().requires_grad_(True)
            r = z - psi(z, torch.full((CHAINS,), s, dtype=torch.float64))
            (score,) = torch.autograd.grad(0.5 * r.square().sum(), z)
            mean = power(b + (x - score) / s**2, -1, s)
            last_inner = k == inner - 1
            if not last_inner:
                x = mean + power(xi(), -0.5, s)
            elif i < len(scales) - 1:
                x = mean + power(xi(), -0.5, scales[i + 1])
            else:
                x = mean

    sampler = inference.ALPS(anneal, steps_per_level=inner, rule="published")
    ours = chain_generators(7, range(CHAINS))
    state = sampler.init(posterior, sampler.start(posterior, (CHAINS, *SHAPE), torch.float64, ours), ours)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
    assert (state.x - x).abs().max() < 1e-6 * x.abs().max()
    # A fault of the kind that this comparison is to see: noise in the last step.
    assert (state.x + power(xi(), -0.5, 0.1) - x).abs().max() > 1e-3 * x.abs().max()


@pytest.mark.parametrize("rule", ["euler", "leimkuhler-matthews"])
def test_the_other_rules_are_their_updates(rule: str) -> None:
    posterior, power, _ = problem("inpainting")
    eps, temperature, s = 0.6, 0.5, 0.7
    anneal = annealers.Constant(s, 1).with_temperature(temperature).with_step_size(eps)
    sampler = inference.ALPS(anneal, steps_per_level=2, rule=rule)
    x0 = torch.randn(CHAINS, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = chain_generators(2, range(CHAINS))
    xi = [standard_normal((CHAINS, *SHAPE), noise, dtype=torch.float64) for _ in range(3)]
    x = x0
    for k in range(2):
        drift = x - eps * power(posterior.grad(x, s), -1, s)
        if rule == "euler":
            x = drift + math.sqrt(2 * eps * temperature) * power(xi[k], -0.5, s)
        else:
            x = drift + math.sqrt(eps * temperature / 2) * power(xi[k] + xi[k + 1], -0.5, s)
    generators = chain_generators(2, range(CHAINS))
    state = sampler.init(posterior, x0, generators)
    for _ in range(2):
        state, info = sampler.step(posterior, state)
    assert (state.x - x).abs().max() < 1e-10
    assert info.sigma == s
    assert info.step_size == eps


def test_every_rule_has_the_variance_that_theory_gives_it() -> None:
    """Identity, Gaussian prior of std 1, at one scale: lam, the Hessian times P, is known, and so is the variance."""
    s, eta, n = 0.5, 0.6, 40_000
    prior = energies.Gaussian(torch.zeros(1, 1, 1), 1.0)
    posterior = prior + likelihoods.Gaussian(torch.zeros(1, 1, 1), None, eta)
    hessian = 1 / (1 + s**2) + 1 / eta**2
    lam = hessian / (1 / s**2 + 1 / eta**2)
    variances = {"leimkuhler-matthews": 1.0, "euler": 2 / (2 - lam)}
    for rule, ratio in variances.items():
        sampler = inference.ALPS(annealers.Constant(s, 1), steps_per_level=12, rule=rule)
        generator = torch.Generator().manual_seed(0)
        state = sampler.init(posterior, sampler.start(posterior, (n, 1, 1, 1), torch.float32, generator), generator)
        for _ in range(12):
            state, _ = sampler.step(posterior, state)
        # A sample variance errs by sqrt(2 / n); what the start still weighs after 12 steps is (1 - lam)^12 < 1e-4.
        assert abs(float(state.x.var()) * hessian / ratio - 1) < 5 * math.sqrt(2 / n) + 1e-3


def test_one_denoiser_evaluation_a_step_and_no_graph() -> None:
    posterior, _, _ = problem("inpainting")
    psi = posterior.terms["denoiser"].psi  # type: ignore[attr-defined]
    sampler = inference.ALPS(annealers.Geometric(5.0, 0.1, 3), steps_per_level=2)
    generators = chain_generators(0, range(CHAINS))
    state = sampler.init(posterior, sampler.start(posterior, (CHAINS, *SHAPE), torch.float64, generators), generators)
    for k in range(1, 13):
        state, info = sampler.step(posterior, state)
        assert psi.calls == k
        assert info.n_grad == 1
        assert not state.x.requires_grad
        assert state.x.grad_fn is None
    assert all(p.requires_grad and p.grad is None for p in psi.parameters())


def test_a_new_draw_starts_afresh() -> None:
    posterior, _, _ = problem("inpainting")
    sampler = inference.ALPS(annealers.Geometric(5.0, 0.1, 2), steps_per_level=2)
    states = []
    for offset in (0.0, 100.0):
        generators = chain_generators(0, range(CHAINS))
        state = sampler.init(posterior, torch.full((CHAINS, *SHAPE), offset, dtype=torch.float64), generators)
        for _ in range(5):
            state, _ = sampler.step(posterior, state)
        states.append(state.x)
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: inference.ALPS([1.0, 0.1]), "annealer is a list"),
        (lambda: inference.ALPS(annealers.Constant(1.0), rule="best"), "rule is 'best', expected one of 'euler'"),
        (lambda: inference.ALPS(annealers.Constant(1.0), steps_per_level=0), "at least 1"),
        (lambda: inference.ALPS(annealers.Constant(1.0), tolerance=0.0), "tolerance must be positive"),
        (lambda: inference.ALPS(annealers.Constant(1.0).with_step_size(0.5), rule="published"), "step size 1"),
        (lambda: inference.Langevin(0.0), "step_size must be positive"),
        (lambda: inference.Langevin(rule="published"), "belongs to ALPS"),
        (lambda: inference.Langevin(temperature=-1.0), "must not be negative"),
        (lambda: inference.Langevin(sigma=0.0), "sigma must be positive"),
    ],
)
def test_bad_arguments_are_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        build()


def test_samplers_are_samplers() -> None:
    for sampler in (inference.ALPS(annealers.Constant(1.0)), inference.Langevin()):
        assert isinstance(sampler, inference.Sampler)
