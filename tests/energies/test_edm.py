"""Preconditioning: what the network gets and is asked for has the same size at every scale."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from potentia._random import standard_normal
from potentia.energies import EDM, Denoiser, EDMPotential, ScoreModel, UNet
from potentia.testing import strategies

D = 0.5
SCALES = (1e-3, 1e3)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def unet(channels: int = 1, *, seed: int = 0) -> UNet:
    """A small smooth net in double precision with random parameters."""
    net = UNet(channels, widths=(8, 8), embedding=8).double()
    for k, p in enumerate(net.parameters()):
        p.data = rand(*p.shape, seed=1000 * seed + k) * (0.5 if p.dim() == 1 else p[0].numel() ** -0.5)
    return net


class Watched(nn.Module):
    """A network that returns what it is told, and keeps what it got."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.seen.append((x.detach(), c_noise.detach()))
        return torch.full_like(x, self.answer)


class Field(nn.Module):
    """F = grad f, where f sums a network's output: the network that an EDM needs to be an EDMPotential."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().requires_grad_(True)
            (f,) = torch.autograd.grad(self.network(z, c_noise).sum(), z)
        return f


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(strategies.sigmas(SCALES), st.floats(0.01, 100.0), st.floats(-2.0, 2.0))
def test_the_coefficients_are_those_of_table_1(sigma: float, d: float, answer: float) -> None:
    net, x = Watched(answer), rand(1, 2, 3, 4)
    out = EDM(net, d)(x, numbers(sigma))
    seen, c_noise = net.seen[0]
    c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / math.hypot(sigma, d)
    torch.testing.assert_close(seen, x / math.hypot(sigma, d), rtol=1e-12, atol=0)
    torch.testing.assert_close(c_noise, numbers(0.25 * math.log(sigma)), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(out, c_skip * x + c_out * answer, rtol=1e-12, atol=1e-12)


def test_each_image_has_its_own_scale() -> None:
    d, x, s = EDM(unet(), D), rand(3, 1, 4, 4), numbers(0.1, 1.0, 7.0)
    u = EDMPotential(unet(), D)
    for i in range(3):
        torch.testing.assert_close(d(x, s)[i], d(x[i : i + 1], s[i : i + 1])[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(u(x, s)[i], u(x[i : i + 1], s[i : i + 1])[0], rtol=1e-10, atol=1e-12)


def test_without_noise_the_image_stays() -> None:
    x = rand(2, 1, 5, 4)
    for s in (1e-6, 1e-9):
        off = EDM(unet(), D)(x, torch.full((2,), s, dtype=torch.float64)) - x
        # c_out F is about s F; c_skip differs from one by (s / d)^2.
        bound = s * float(unet()(x / D, numbers(0.0, 0.0)).detach().abs().max()) * 10 + (s / D) ** 2 * 10
        assert float(off.detach().abs().max()) < bound


def test_in_noise_the_size_is_that_of_images() -> None:
    """As s grows D tends to d F, however large x is."""
    n = rand(2, 1, 5, 4)
    for s in (1e3, 1e5):
        scale = torch.full((2,), s, dtype=torch.float64)
        want = D * unet()(n, scale.log() / 4)
        # What is left of x is d^2 n / s; and c_in x differs from n by a part of (d / s)^2.
        torch.testing.assert_close(EDM(unet(), D)(s * n, scale), want, rtol=0, atol=10 * D**2 / s)


SAMPLES = 40_000


def unit_variance(net: Watched, sigma: float, d: float, sigma_data: float) -> tuple[float, float]:
    """Mean squares of input and target of a network: what it gets, and what it would have to give for D = y."""
    y = d * rand(SAMPLES, 1, 1, 1, seed=1)
    x = y + sigma * rand(SAMPLES, 1, 1, 1, seed=2)
    scale = torch.full((SAMPLES,), sigma, dtype=torch.float64)
    edm = EDM(net, sigma_data)
    net.answer = 0.0
    skipped = edm(x, scale)
    net.answer = 1.0
    target = (y - skipped) / (edm(x, scale) - skipped)
    return float(net.seen[0][0].square().mean()), float(target.square().mean())


# The mean square of N normal numbers of variance one errs by sqrt(2 / N); of five errors, one in a million is missed.
MONTE_CARLO = 5 * math.sqrt(2 / SAMPLES)


@pytest.mark.parametrize("sigma", [0.002, 0.1, D, 3.0, 80.0])
def test_input_and_target_have_unit_variance(sigma: float) -> None:
    for mean_square in unit_variance(Watched(), sigma, D, D):
        assert abs(mean_square - 1) < MONTE_CARLO


def test_another_sigma_data_is_seen() -> None:
    """The planted fault: images of another size than the preconditioner is told."""
    got = unit_variance(Watched(), 0.5, D, 1.1 * D)
    assert all(abs(mean_square - 1) > MONTE_CARLO for mean_square in got)


def test_complex_images_are_two_channels() -> None:
    net, x = unet(4), rand(3, 2, 5, 4, dtype=torch.complex128)
    s = numbers(0.1, 1.0, 7.0)
    parts = torch.cat([x.real, x.imag], dim=1)
    got, want = EDM(net, D)(x, s), EDM(net, D)(parts, s)
    assert got.dtype == torch.complex128
    torch.testing.assert_close(got, torch.complex(want[:, :2], want[:, 2:]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(EDMPotential(net, D)(x, s), EDMPotential(net, D)(parts, s), rtol=1e-12, atol=1e-12)


def energies(net: nn.Module) -> dict[str, Denoiser]:
    return {
        "residual": Denoiser(EDM(net, D), SCALES),
        "inner-product": Denoiser(EDM(net, D), SCALES, form="inner-product"),
        "scalar": Denoiser(EDMPotential(net, D), SCALES, form="scalar"),
    }


def slope(u: Denoiser, x: Tensor, direction: Tensor, sigma: float) -> Tensor:
    """Directional derivative by a five-point rule, whose error is of fourth order in the step."""
    h = 1e-3
    a, b, c, d = (u(x + k * h * direction, sigma).detach() for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * h)


def agrees(u: Denoiser, grad: Tensor, x: Tensor, sigma: float) -> bool:
    """Whether a gradient is dU/dRe + i dU/dIm, along random directions of real and of imaginary parts."""
    good = True
    for seed, unit in ((20, 1), (21, 1j)):
        v = rand(*x.shape, seed=seed).to(torch.complex128) * unit
        v = v / v.abs().square().sum((-3, -2, -1), keepdim=True).sqrt()
        along = (grad.conj() * v).real.sum((-3, -2, -1))
        good &= torch.allclose(along, slope(u, x, v, sigma), rtol=1e-6, atol=1e-6 * float(grad.abs().max()))
    return good


@pytest.mark.parametrize("form", ["residual", "inner-product", "scalar"])
def test_gradients_of_complex_images(form: str) -> None:
    u, x = energies(unet(2))[form], rand(3, 1, 5, 4, dtype=torch.complex128)
    for sigma in (0.2, 2.0):
        grad = u.grad(x, sigma)
        assert agrees(u, grad, x, sigma)
        for wrong in (grad.conj(), grad / 2, 1.001 * grad, grad.real + 0j):
            assert not agrees(u, wrong, x, sigma)


@given(strategies.sigmas((1e-2, 1e2)), st.booleans(), st.integers(0, 100))
def test_a_potentials_denoiser_is_edm_with_its_gradient(sigma: float, is_complex: bool, seed: int) -> None:
    x = rand(2, 1, 4, 5, seed=seed, dtype=torch.complex128 if is_complex else torch.float64)
    net = unet(2 if is_complex else 1, seed=seed)
    u = Denoiser(EDMPotential(net, D), SCALES, form="scalar")
    want = ScoreModel(EDM(Field(net), D), SCALES).denoise(x, sigma)
    # x - s^2 grad cancels, so that it rounds at the size of its terms.
    room = 1e-12 * (float(x.abs().max()) + sigma**2 * float(u.grad(x, sigma).abs().max()))
    torch.testing.assert_close(u.denoise(x, sigma), want, rtol=1e-9, atol=room)
    # The planted fault: a potential whose second part lacks its factor d.
    off = Denoiser(lambda z, s: EDMPotential(net, 1.0)(z, s), SCALES, form="scalar").denoise(x, sigma)
    assert not torch.allclose(off, want, rtol=1e-4, atol=1e-4 * sigma)


def test_a_network_of_its_own_precision() -> None:
    """Images in single precision through a network in single precision, and in double through one in single."""
    net = UNet(1, widths=(8, 8), embedding=8)
    for dtype in (torch.float32, torch.float64):
        x = rand(2, 1, 4, 4, dtype=dtype)
        u = Denoiser(EDM(net, D), SCALES)
        assert u.grad(x, 0.3).dtype == dtype
        assert u(x, 0.3).dtype == torch.float64


@pytest.mark.parametrize("kind", [EDM, EDMPotential])
def test_other_channels_are_refused(kind: Any) -> None:
    s, one, two = numbers(0.3, 0.4), kind(unet(1), D), kind(unet(2), D)
    two(rand(2, 1, 4, 4, dtype=torch.complex128), s)
    two(rand(2, 2, 4, 4), s)
    name = kind.__name__
    with pytest.raises(
        ValueError,
        match=rf"^{name}: image of shape \(2, 1, 4, 4\) is complex and has 2 real channels, the network takes 1$",
    ):
        one(rand(2, 1, 4, 4, dtype=torch.complex128), s)
    with pytest.raises(ValueError, match=rf"^{name}: image of shape .* is real and has 3 real channels, .* takes 2$"):
        two(rand(2, 3, 4, 4), s)
    with pytest.raises(ValueError, match=rf"^{name}: image .* is real and has 1 real channels, the network takes 2$"):
        two(rand(2, 1, 4, 4), s)


@pytest.mark.parametrize("kind", [EDM, EDMPotential])
def test_bad_arguments_are_refused(kind: Any) -> None:
    for bad, message in ((0.0, "must be positive, got 0"), (-1.0, "must be positive"), (math.nan, "must be finite")):
        with pytest.raises(ValueError, match=f"^{kind.__name__}: sigma_data {message}"):
            kind(unet(), bad)
    with pytest.raises(TypeError, match=f"^{kind.__name__}: sigma_data must be a number"):
        kind(unet(), "1")
    assert repr(kind(Watched(), D)).startswith(f"{kind.__name__}(\n  sigma_data=0.5")
