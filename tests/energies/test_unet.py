"""The U-Net: any size, each image by itself, and derivatives of every order that training needs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from potentia.energies import EDM, UNet, _unet

SIZES = [(5, 7), (28, 28), (31, 45), (1, 1), (2, 9)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unet(channels_in: int = 1, channels_out: int | None = None, *, seed: int | None = 0, **options: Any) -> UNet:
    """A small net in double precision: as it starts, or with random parameters, none of them zero."""
    net = UNet(channels_in, channels_out, **{"widths": (8, 16), "embedding": 8, **options}).double()
    if seed is not None:
        for k, p in enumerate(net.parameters()):
            p.data = randn(*p.shape, seed=1000 * seed + k) * (0.5 if p.dim() == 1 else p[0].numel() ** -0.5)
    return net


@pytest.mark.parametrize("attention", [0, 2])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_of_any_size(size: tuple[int, int], patch: int, attention: int) -> None:
    for channels in ((1, 1), (2, 3)):
        net = unet(*channels, patch=patch, attention=attention)
        out = net(randn(2, channels[0], *size), randn(2))
        assert out.shape == (2, channels[1], *size)
        assert bool(torch.isfinite(out).all())
        assert float(out.detach().abs().max()) > 0


def test_sizes_that_levels_do_not_divide_are_continued_by_their_borders() -> None:
    net, x, c = unet(patch=2), randn(2, 1, 5, 7), randn(2)
    padded = F.pad(x, (0, 1, 0, 3), mode="replicate")
    assert padded.shape[-2:] == (8, 8)
    torch.testing.assert_close(net(x, c), net(padded, c)[..., :5, :7], rtol=0, atol=0)
    assert not torch.allclose(net(x, c), net(F.pad(x, (0, 1, 0, 3)), c)[..., :5, :7], rtol=1e-3, atol=1e-3)


def entries_apart(net: UNet, x: Tensor, c_noise: Tensor) -> bool:
    """Whether each image of a batch comes out as it does alone."""
    alone = torch.cat([net(x[i : i + 1], c_noise[i : i + 1]) for i in range(len(x))])
    # A hundred layers' worth of rounding, in double precision.
    return torch.allclose(net(x, c_noise), alone, rtol=1e-10, atol=1e-11)


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2]), st.sampled_from([0, 1, 4]), st.integers(0, 100))
def test_images_do_not_influence_one_another(height: int, width: int, patch: int, attention: int, seed: int) -> None:
    net = unet(2, patch=patch, attention=attention, blocks=2, seed=seed)
    assert entries_apart(net, randn(3, 2, height, width, seed=seed), randn(3, seed=seed))


def test_statistics_of_a_batch_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: images normalised together."""
    monkeypatch.setattr(_unet, "_norm", nn.BatchNorm2d)
    assert not entries_apart(unet(), randn(3, 1, 6, 6), randn(3))


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_a_pixel_depends_on_its_own_image_alone(heads: int) -> None:
    x = randn(2, 1, 1, 40).requires_grad_(True)
    (g,) = torch.autograd.grad(unet(widths=(8,), attention=heads)(x, randn(2))[0, 0, 0, 0], x)
    assert bool((g[0] != 0).all())
    assert torch.equal(g[1], torch.zeros_like(g[1]))


def attended(x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What the attention layer gives, and the same head by head and pixel by pixel."""
    layer = _unet._Attention(8, heads).double()
    for k, p in enumerate(layer.parameters()):
        p.data = randn(*p.shape, seed=k)
    n, c, height, width = x.shape
    projected = layer.qkv(layer.norm(x)).reshape(n, heads, 3, c // heads, height * width)
    mixed = torch.zeros(n, heads, c // heads, height * width, dtype=x.dtype)
    for i in range(n):
        for h in range(heads):
            q, k, v = projected[i, h]
            for pixel in range(height * width):
                weights = torch.softmax((q[:, pixel, None] * k).sum(0) / (c // heads) ** 0.5, dim=0)
                mixed[i, h, :, pixel] = (weights * v).sum(-1)
    return layer(x), x + layer.out(mixed.reshape(x.shape))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_softmax_attention(heads: int) -> None:
    got, want = attended(randn(2, 8, 3, 2), heads)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def function_of(net: UNet, c_noise: Tensor) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The net as a function of images and parameters, and its parameters."""
    names, held = zip(*net.named_parameters(), strict=True)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x, c_noise))

    return call, [p.detach().requires_grad_(True) for p in held]


@pytest.mark.parametrize("options", [{}, {"patch": 2}, {"attention": 2}], ids=str)
def test_first_and_second_derivatives(options: dict[str, Any]) -> None:
    net, x = unet(widths=(8, 8), embedding=2, **options), randn(2, 1, 3, 5).requires_grad_(True)
    call, parameters = function_of(net, randn(2))
    assert torch.autograd.gradcheck(lambda z: call(z, *parameters), (x,))
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *parameters), fast_mode=True)


def test_every_parameter_has_a_second_derivative() -> None:
    """A loss on the gradient trains every layer, but for what drops out of it: the last bias adds a constant."""
    net, x = unet(attention=2), randn(2, 1, 4, 6).requires_grad_(True)
    (g,) = torch.autograd.grad(net(x, randn(2)).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().max()) > 0, name


class _Blunt(torch.autograd.Function):
    """SiLU whose backward pass forgets that it depends on its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        s = ctx.saved_tensors[0].detach().sigmoid()
        return grad * (s + ctx.saved_tensors[0].detach() * s * (1 - s))


def test_a_missing_second_derivative_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: right gradients, and second derivatives that are not theirs."""
    net, x = unet(widths=(8, 8), embedding=2), randn(2, 1, 3, 5).requires_grad_(True)
    call, parameters = function_of(net, randn(2))
    monkeypatch.setattr(F, "silu", _Blunt.apply)
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    with pytest.raises(GradcheckError):
        torch.autograd.gradgradcheck(lambda z: call(z, *parameters), (x,))


@pytest.mark.parametrize("options", [{}, {"attention": 4, "patch": 2, "blocks": 2}], ids=str)
def test_it_starts_at_zero(options: dict[str, Any]) -> None:
    net, x = unet(2, seed=None, **options), randn(2, 2, 6, 5)
    assert torch.equal(net(x, randn(2)), torch.zeros_like(x))
    sigma = torch.tensor([0.1, 2.0], dtype=torch.float64)
    skip = (0.25 / (sigma**2 + 0.25))[:, None, None, None]
    torch.testing.assert_close(EDM(net, 0.5)(x, sigma), skip * x, rtol=1e-12, atol=0)
    # And can leave it: the last layer has a gradient.
    net(x, randn(2)).sum().backward()
    assert float(net.last.weight.grad.abs().max()) > 0


def test_the_scale_matters_once_it_is_let_in() -> None:
    net, x = unet(), randn(1, 1, 6, 5).expand(3, -1, -1, -1)
    c = torch.tensor([-1.0, 0.3, 0.3], dtype=torch.float64)
    out = net(x, c)
    assert float((out[0] - out[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(out[1], out[2], rtol=1e-10, atol=1e-12)
    for block in (m for m in net.modules() if isinstance(m, _unet._Block)):
        nn.init.zeros_(block.film.weight)
        nn.init.zeros_(block.film.bias)
    out = net(x, c)
    torch.testing.assert_close(out[0], out[1], rtol=1e-10, atol=1e-12)


def test_its_settings_rebuild_it() -> None:
    net = unet(2, 3, attention=2, patch=2, blocks=2)
    again = UNet(**net.settings).double()
    again.load_state_dict(net.state_dict())
    x, c = randn(2, 2, 5, 7), randn(2)
    assert torch.equal(net(x, c), again(x, c))
    assert again.settings == net.settings


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels_in": 0}, ValueError, "channels_in must be at least 1, got 0"),
        ({"channels_out": 0}, ValueError, "channels_out must be at least 1, got 0"),
        ({"channels_in": 1.0}, TypeError, r"channels_in must be an integer, got 1\.0"),
        ({"blocks": 0}, ValueError, "blocks must be at least 1, got 0"),
        ({"patch": 0}, ValueError, "patch must be at least 1, got 0"),
        ({"embedding": 0}, ValueError, "embedding must be at least 1, got 0"),
        ({"attention": -1}, ValueError, "attention must be at least 0, got -1"),
        ({"attention": 3}, ValueError, "3 heads do not divide the coarsest width, 16"),
        ({"widths": ()}, ValueError, r"widths are \[\], expected multiples of 8, one a level"),
        ({"widths": (8, 12)}, ValueError, r"widths are \[8, 12\], expected multiples of 8"),
        ({"widths": (0, 8)}, ValueError, "a width must be at least 1, got 0"),
        ({"widths": (-8,)}, ValueError, "a width must be at least 1, got -8"),
        ({"widths": (8.0,)}, TypeError, r"a width must be an integer, got 8\.0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^UNet: {message}"):
        UNet(**{"channels_in": 1, "widths": (8, 16), **options})
