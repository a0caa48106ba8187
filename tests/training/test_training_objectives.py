"""Losses against their formulas, scales against their distributions, measurements against known answers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potentia import energies
from potentia.training import (
    Denoising,
    Distillation,
    LogNormal,
    LogUniform,
    ScoreMatching,
    asymmetry,
    denoising_psnr,
    energy_asymmetry,
    ordering,
    psnr,
    relative_residual,
    roc_area,
)
from potentia.training._judge import alike
from potentia.training._noise import draw_scales, noise_from_spec

STD = 0.6


def exact() -> energies.Denoiser:
    """The energy of N(0, STD^2), exactly: (1 - w)^2 = s^2 / (s^2 + STD^2)."""
    return energies.Denoiser(exact_psi, (0.01, 10.0))


def exact_psi(x: Tensor, sigma: Tensor) -> Tensor:
    s = sigma[:, None, None, None]
    return x * (1 - s / (s**2 + STD**2).sqrt())


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of N(0, STD^2)."""
    s = sigma[:, None, None, None]
    return x * STD**2 / (s**2 + STD**2)


def batch(images: int, is_complex: bool = False, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if is_complex else torch.float64
    parts = math.sqrt(2) if is_complex else 1.0  # torch's complex normal has variance 1/2 a part
    x, noise = (parts * torch.randn(images, 2, 4, 3, generator=generator, dtype=dtype) for _ in range(2))
    return STD * x, torch.logspace(-1.5, 1, images, dtype=torch.float64), noise


@pytest.mark.parametrize("is_complex", [False, True])
def test_denoising_loss_is_the_weighted_mean_square(is_complex: bool) -> None:
    x, sigma, noise = batch(6, is_complex)

    class Net(torch.nn.Module):
        def forward(self, z: Tensor, s: Tensor) -> Tensor:
            return shrink(z, s)

    losses = Denoising(Net(), STD)(x, sigma, noise)
    for k in range(6):
        error = shrink(x[k : k + 1] + sigma[k] * noise[k : k + 1], sigma[k : k + 1]) - x[k : k + 1]
        weight = (sigma[k] ** 2 + STD**2) / (sigma[k] * STD) ** 2
        parts = torch.view_as_real(error) if is_complex else error
        torch.testing.assert_close(losses[k], weight * parts.square().mean())


def test_the_exact_denoiser_has_loss_one_at_every_scale() -> None:
    x, _, noise = batch(4000)
    for s in (0.05, 0.5, 5.0):
        losses = ScoreMatching(exact(), STD)(x, torch.full((4000,), s, dtype=torch.float64), noise)
        # 24 entries of unit-variance squares, 4,000 images: the mean of chi-squares has std sqrt(2 / 96,000)
        assert float(losses.mean().detach()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 96_000))


@pytest.mark.parametrize("is_complex", [False, True])
def test_distillation_from_the_exact_teacher_is_zero(is_complex: bool) -> None:
    x, sigma, noise = batch(6, is_complex)
    assert float(Distillation(exact(), shrink, STD)(x, sigma, noise).detach().max()) < 1e-20
    off = Distillation(exact(), lambda z, s: shrink(z, 1.01 * s), STD)(x, sigma, noise)
    assert float(off.detach().min()) > 1e-9


@pytest.mark.parametrize("is_complex", [False, True])
def test_consistency_vanishes_on_average_for_the_normalised_potential(is_complex: bool) -> None:
    """dU/ds of -log of the smoothed density is the mean of (n - ||noise||^2) / s given the noisy image."""
    entries = 24 * (2 if is_complex else 1)

    class Normalised(torch.nn.Module):
        def forward(self, sigma: Tensor) -> Tensor:
            return 0.5 * (sigma**2 + STD**2).log()

    x, _, noise = batch(5_000, is_complex)
    s = 0.7
    sigma = torch.full((5_000,), s, dtype=torch.float64)
    right = energies.Denoiser(exact_psi, (0.01, 10.0), offset=Normalised())
    wrong = exact()
    means = []
    for energy in (right, wrong):
        z = x + s * noise
        scales = sigma.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(energy(z, scales).sum(), scales)
        gap = s * slope - (entries - noise.abs().square().sum((1, 2, 3)))
        means.append(float(gap.mean()) / float(gap.std() / math.sqrt(5_000)))
        with_term, without = (ScoreMatching(energy, STD, consistency=c)(x, sigma, noise) for c in (2.0, 0.0))
        torch.testing.assert_close((with_term - without).detach(), 2.0 * gap.square() / (2 * entries))
    assert abs(means[0]) < 4, "in standard errors"
    assert abs(means[1]) > 50, "without the offset the energy's values cannot be compared across scales"
    with pytest.raises(ValueError, match="consistency is -1"):
        ScoreMatching(exact(), STD, consistency=-1.0)


@given(st.floats(0.001, 1.0), st.floats(1.1, 1e4), st.integers(1, 50), st.integers(0, 9))
def test_log_uniform_scales_are_stratified(low: float, ratio: float, images: int, seed: int) -> None:
    sigma = draw_scales(LogUniform(low, low * ratio), images, torch.Generator().manual_seed(seed)).double()
    share = ((sigma / low).log() / math.log(ratio)).sort().values
    places = torch.arange(images) / images
    assert bool((share > places - 1e-4).all())
    assert bool((share < places + 1 / images + 1e-4).all())


def test_log_normal_scales_have_their_mean_and_std() -> None:
    logs = draw_scales(LogNormal(-1.2, 1.2), 20_000, torch.Generator().manual_seed(0)).log()
    # stratified: far closer than 1.2 / sqrt(20,000)
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.01)
    narrow = draw_scales(LogNormal(-1.2, 1.2, 0.1, 0.5), 2000, torch.Generator().manual_seed(0))
    assert 0.1 <= float(narrow.min()) <= float(narrow.max()) <= 0.5


def test_noise_of_a_recipe() -> None:
    assert noise_from_spec("r", {"distribution": "log-uniform", "low": 1, "high": 2}) == LogUniform(1, 2)
    assert noise_from_spec("r", {"distribution": "log-normal"}) == LogNormal()
    with pytest.raises(ValueError, match="r: noise distribution is 'uniform', expected one of log-uniform, log-normal"):
        noise_from_spec("r", {"distribution": "uniform"})
    with pytest.raises(ValueError, match="does not fit log-uniform"):
        noise_from_spec("r", {"distribution": "log-uniform", "mean": 0})
    with pytest.raises(ValueError, match="high is 1, expected above low, 2"):
        LogUniform(2, 1)
    with pytest.raises(ValueError, match="high is 1, expected above low, 2"):
        LogNormal(low=2, high=1)


def test_psnr_of_known_errors() -> None:
    truth = torch.zeros(2, 1, 3, 3)
    assert psnr(truth + 0.2, truth, 2.0) == pytest.approx(20.0)
    assert psnr(truth + 0.1j, truth + 0j, 1.0) == pytest.approx(20 + 10 * math.log10(2)), "of the real entries"
    images = torch.zeros(50, 1, 8, 8)
    found = denoising_psnr(lambda x, s: x, images, (0.1, 1.0), 2.0)
    # 3,200 squares of unit variance: the mean is off by sqrt(2 / 3200) or 2.5 %, which is 0.11 dB
    assert found["0.1"] == pytest.approx(10 * math.log10(4 / 0.01), abs=0.5)
    assert found["1"] == pytest.approx(10 * math.log10(4 / 1.0), abs=0.5)


def test_relative_residual_of_known_errors() -> None:
    images = STD * torch.randn(64, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert max(relative_residual(exact(), shrink, images, (0.1, 1.0)).values()) < 1e-5
    tenth = relative_residual(exact(), lambda x, s: x - (x - shrink(x, s)) / 1.1, images, (0.1, 1.0))
    assert tenth["0.1"] == pytest.approx(0.1, rel=1e-3)


def test_asymmetry_tells_a_gradient_field_from_others() -> None:
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def linear(weight: Tensor) -> float:
        return asymmetry(lambda z: (z.flatten(1) @ weight).reshape(z.shape), x)

    assert linear(mix + mix.T) < 1e-14
    assert linear(mix) > 0.05
    torch.manual_seed(0)
    net = energies.EDM(energies.UNet(1, widths=(8, 8), embedding=8), 0.5)
    torch.nn.init.normal_(net.network.last.weight, std=0.2)  # type: ignore[arg-type]
    energy = energies.Denoiser(net, (0.01, 10.0))
    assert energy_asymmetry(energy, x.float(), 0.2) < 1e-10
    assert next(energy.parameters()).dtype == torch.float32, "the energy itself is left alone"
    sigma = torch.full((3,), 0.2, dtype=torch.float64)
    assert asymmetry(lambda z: net.double()(z, sigma), x) > 1e-4, "the network itself is no gradient field"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_roc_area_counts_pairs(low: list[int], high: list[int]) -> None:
    pairs = [(a < b) + 0.5 * (a == b) for a in low for b in high]
    got = roc_area(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))
    assert got == pytest.approx(sum(pairs) / len(pairs))


def test_ordering_of_a_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = 0.1 * STD * torch.randn(50, 1, 8, 8, generator=generator)
    strange = 5 * torch.randn(40, 1, 8, 8, generator=generator)
    found = ordering(exact(), clean, strange, (0.1,))["0.1"]
    assert found["ordered"] == 1.0
    assert found["auroc"] == 1.0
    assert found["clean"] < found["noisy"] < found["strange"]
    turned = ordering(exact(), strange, clean, (0.1,))["0.1"]
    assert turned["ordered"] == 0.0
    assert turned["auroc"] == 0.0, "simpler images have lower energies"
    assert turned["typicality"] > 0.9, "but are not typical"


def test_images_of_another_kind_are_made_alike() -> None:
    faces = torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    digits = torch.linspace(-1, 1, 5 * 36).reshape(5, 1, 6, 6)
    made = alike(faces, digits)
    assert made.shape == digits.shape
    assert float(made.min()) == pytest.approx(-1)
    assert float(made.max()) == pytest.approx(1)
    assert torch.equal(made[0], made[3])
    brains = torch.polar(digits + 1, digits)
    assert alike(digits, brains).dtype == torch.complex64
    assert float(alike(digits, brains).abs().max()) == pytest.approx(float(brains.abs().max()))
    assert alike(digits, faces).shape == (3, 3, 10, 10)
