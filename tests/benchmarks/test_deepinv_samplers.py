"""deepinv's samplers are given what ours are given: the same posterior, and the exact denoiser."""

from types import ModuleType

import pytest
import torch
from benchmark_scripts import load

pytest.importorskip("deepinv", reason="a peer, which the benchmarks alone need")


@pytest.fixture(scope="module")
def bed() -> ModuleType:
    return load("_closed_form")


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return load("_deepinv_samplers")


@pytest.mark.parametrize("name", ["box-8/0", "blur-8/0"])
def test_the_denoiser_is_the_prior_s(bed: ModuleType, peers: ModuleType, name: str) -> None:
    problem = bed.problem(name)
    exact = peers.Exact(problem)
    x = problem.prior.sample(torch.Generator().manual_seed(1), 3)
    u = exact.into(x).requires_grad_(True)
    torch.testing.assert_close(exact.out_of(u), x)
    clean = exact(u, 0.1 / (2 * exact.half))
    wanted, pull = problem.prior.denoise_with_vjp(x, 0.1)
    torch.testing.assert_close(exact.out_of(clean), wanted)
    v = torch.randn_like(u)
    torch.testing.assert_close(torch.autograd.grad(clean, u, v)[0], pull(v))
    through = torch.func.vjp(lambda z: exact(z, 0.1 / (2 * exact.half)), u.detach())[1](v)[0]
    torch.testing.assert_close(through, pull(v))


@pytest.mark.parametrize("name", ["random50-8/0", "blur-8/0"])
def test_the_data_term_is_the_problem_s(bed: ModuleType, peers: ModuleType, name: str) -> None:
    """deepinv's misfit at u differs from ours at x by one number, whatever the image."""
    problem = bed.problem(name)
    exact = peers.Exact(problem)
    physics, y = peers.physics_of(problem, exact)
    x = problem.posterior.sample(torch.Generator().manual_seed(2), 5).reshape(5, *problem.shape)
    misfit = (physics.A(exact.into(x)) - y).square().sum((1, 2, 3)) / (2 * physics.noise_model.sigma.double() ** 2)
    ours = problem.likelihood(x)
    torch.testing.assert_close(misfit.flatten(), ours, rtol=1e-4, atol=1e-3)


def test_every_sampler_draws_and_counts(bed: ModuleType, peers: ModuleType) -> None:
    calibration = load("calibration")
    problem = bed.problem("box-8/0")
    for name in ("deepinv DDRM", "deepinv DiffPIR"):
        sampler = peers.SAMPLERS[name]()
        assert isinstance(sampler, calibration.Foreign)
        found = calibration.run_case(problem, sampler, 30, 0)["scores"]
        assert 90 <= found["evaluations"] <= 110, name
        assert found["tv"] < 0.9
