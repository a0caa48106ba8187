"""Simulation-based calibration of the Metropolis-adjusted samplers on a nonlinear likelihood.

500 truths are drawn from a prior N(0, I) in 16 dimensions, measured as y = tanh(A x) + noise, and sampled as 500 chains
of one batch, each with its own measurements. The rank of a function of the truth among the draws is uniform if and only
if the draws are of the posterior (and thinned until they are independent). Functions: every coordinate, U and the
likelihood, which looks at the data as well and finds errors that coordinates alone do not.

Source: Talts et al. 2018 (arXiv 1804.06788), algorithm 2; Modrák et al. 2023 on functions of the data.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from potentia._potential import Energy, Potential, Sigma
from potentia._random import Generators
from potentia._tensor import EVENT_DIMS, sum_event
from potentia.inference import Info, Preconditioner, State
from potentia.inference._chees import ChEES
from potentia.inference._hmc import HMC
from potentia.inference._mala import MALA
from potentia.inference._metropolis import Adjusted

SHAPE, D, NUM_DATA = (1, 4, 4), 16, 24
CHAINS, RANKS, BINS = 500, 99, 10
NOISE = 0.3


class Saturating(Energy):
    """N(0, I) prior and y = tanh(A x) + noise: chain c has measurements y[c] of its own."""

    def __init__(self, y: Tensor, matrix: Tensor, power: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("y", y)
        self.register_buffer("matrix", matrix)
        self.power = power

    def misfit(self, x: Tensor) -> Tensor:
        off = (x.flatten(-EVENT_DIMS) @ self.matrix.mT).tanh() - self.y
        return 0.5 * off.square().sum(-1) / NOISE**2

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.5 * sum_event(x.square()) + self.power * self.misfit(x)


def scene(power: float = 1.0) -> tuple[Saturating, Tensor]:
    """The posteriors of 500 truths, and the truths."""
    generator = torch.Generator().manual_seed(11)
    matrix = torch.randn(NUM_DATA, D, generator=generator, dtype=torch.float64) / math.sqrt(D) * 1.5
    truth = torch.randn(CHAINS, *SHAPE, generator=generator, dtype=torch.float64)
    clean = (truth.flatten(1) @ matrix.mT).tanh()
    y = clean + NOISE * torch.randn(CHAINS, NUM_DATA, generator=generator, dtype=torch.float64)
    return Saturating(y, matrix, power), truth


def features(posterior: Saturating, x: Tensor) -> Tensor:
    misfit = posterior.misfit(x)
    return torch.cat([x.flatten(1), (0.5 * sum_event(x.square()) + misfit)[:, None], misfit[:, None]], dim=1)


def p_values(sampler: Adjusted, warm: int, thin: int, power: float = 1.0, seed: int = 0) -> Tensor:
    """Chi-square p of the ranks of each feature in 10 bins."""
    posterior, truth = scene(power)
    generator: Generators = torch.Generator().manual_seed(seed)
    x0 = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    state = sampler.init(posterior, x0, generator)
    for _ in range(warm):
        state, _ = sampler.step(posterior, state)
    state = state._replace(memory=sampler.freeze(state.memory))
    target = features(posterior, truth)
    rank = torch.zeros_like(target, dtype=torch.int64)
    for _ in range(RANKS):
        for _ in range(thin):
            state, _ = sampler.step(posterior, state)
        rank += features(posterior, state.x) < target
    bins = rank * BINS // (RANKS + 1)
    counts = torch.stack([(bins == k).sum(0) for k in range(BINS)]).double()
    expected = CHAINS / BINS
    chi_square = ((counts - expected) ** 2 / expected).sum(0)
    degrees = torch.full_like(chi_square, (BINS - 1) / 2)
    return torch.special.gammaincc(degrees, chi_square / 2)


def adjusted(found: Tensor) -> float:
    """The p of the worst of several features, by Bonferroni: with 18 of them one is below 0.01 in a sixth of cases."""
    return min(1.0, len(found) * float(found.min()))


@dataclass(frozen=True)
class Unadjusted(MALA):
    """Takes every proposal."""

    def step(self, posterior: Potential, state: State) -> tuple[State, Info]:
        eps = float(self.step_size or 0.0)
        assert state.grad is not None
        assert isinstance(state.generator, torch.Generator)
        noise = torch.randn(state.x.shape, generator=state.generator, dtype=state.x.dtype)
        x = state.x - eps * state.grad + math.sqrt(2 * eps) * noise
        value, grad = posterior.value_and_grad(x)
        return state._replace(x=x, value=value, grad=grad, step=state.step + 1), Info(None, eps, 1)


IDENTITY = Preconditioner.identity()
SOUND = {
    "MALA": (MALA(preconditioner=IDENTITY), 200, 60),
    "HMC": (HMC(preconditioner=IDENTITY, trajectory_length=0.8), 100, 5),
    "ChEES": (ChEES(preconditioner=IDENTITY), 100, 8),
}


@pytest.mark.parametrize("name", SOUND)
def test_ranks_are_uniform(name: str) -> None:
    assert adjusted(p_values(*SOUND[name])) > 0.01


def test_a_likelihood_that_counts_nine_tenths_is_caught() -> None:
    assert adjusted(p_values(*SOUND["HMC"], power=0.9)) < 0.001


def test_a_sampler_without_the_test_is_caught() -> None:
    assert adjusted(p_values(Unadjusted(0.02, preconditioner=IDENTITY), 200, 20)) < 1e-6
