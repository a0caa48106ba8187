"""Micro-benchmarks that are followed over time, by pytest-benchmark.

    pytest benchmarks/small --benchmark-autosave                      # measure, and keep
    pytest benchmarks/small --benchmark-compare --benchmark-compare-fail=min:15%     # measure, and fail if slower

Runs are kept under ``.benchmarks/MACHINE``, one file a run with its commit: only runs of one machine are compared. The
least time of the rounds is what is compared, since everything else on the machine can only add to it.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia._random import chain_generators
from potentia.io import EnsembleWriter

SIDE, CHAINS = 64, 4
Benchmark = Callable[..., Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(CHAINS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def blurred() -> likelihoods.Gaussian:
    return likelihoods.Gaussian(torch.zeros(1, SIDE, SIDE), likelihoods.GaussianBlur(1.5, (SIDE, SIDE)), 0.1)


def posterior() -> pt.Sum:
    return energies.GaussianField.power_law((1, SIDE, SIDE)) + 3.0 * energies.TotalVariation() + blurred()


def test_gradient_of_a_sum(benchmark: Benchmark, x: torch.Tensor) -> None:
    found = benchmark(posterior().grad, x, 0.1)
    assert found.shape == x.shape


def test_value_and_gradient_of_a_sum(benchmark: Benchmark, x: torch.Tensor) -> None:
    value, _ = benchmark(posterior().value_and_grad, x, 0.1)
    assert value.shape == (CHAINS,)


def test_draw_of_a_quadratic(benchmark: Benchmark, x: torch.Tensor) -> None:
    form = blurred().quadratic()
    assert form is not None
    generators = chain_generators(0, range(CHAINS))
    drawn = benchmark(form.draw, generators, x.shape, 1.0)
    assert drawn.shape == x.shape


def test_step_of_alps(benchmark: Benchmark, x: torch.Tensor) -> None:
    target, sampler = posterior(), inference.ALPS(annealers.Constant(0.3, 2), steps_per_level=10**6)
    state = sampler.init(target, x, chain_generators(0, range(CHAINS)))
    after, _ = benchmark(sampler.step, target, state)
    assert after.x.shape == x.shape


def test_append_to_a_store(benchmark: Benchmark, x: torch.Tensor, tmp_path: Path) -> None:
    draws = 10_000
    stats = {"lp": -1.0, "sigma": 0.1, "step_size": 1.0, "acceptance_rate": 1.0, "n_grad": 1}
    shape = (1, SIDE, SIDE)
    writer = EnsembleWriter.create(tmp_path / "e.zarr", num_chains=CHAINS, num_draws=draws, event_shape=shape)
    benchmark.pedantic(writer.append, (x, stats), rounds=500, warmup_rounds=20)  # type: ignore[attr-defined]
    writer.close()


def test_import(benchmark: Benchmark) -> None:
    command = [sys.executable, "-c", "import potentia"]
    benchmark.pedantic(subprocess.run, (command,), {"check": True}, rounds=5)  # type: ignore[attr-defined]
