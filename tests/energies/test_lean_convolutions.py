"""Convolutions without saved inputs: the same gradients, from less memory."""

import pytest
import torch
from torch import Tensor, nn

from potentia import energies
from potentia.energies._lean import LeanConvolutions


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, stride=2),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 2, 4, stride=2, padding=1),
    ).double()


def test_gradients_are_those_of_autograd() -> None:
    net = network()
    energy = energies.Denoiser(lambda x, s: net(x), scales=(0.1, 1.0))
    x = torch.randn(3, 2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(energy(z, 0.5).sum(), z)
    assert torch.allclose(energy.grad(x, 0.5), expected, rtol=1e-12, atol=1e-12)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def saved(net: nn.Module, x: Tensor, mode: bool) -> int:
    """Bytes kept for the backward pass, parameters left out."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            alive.append(t)
        return t

    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    alive: list[Tensor] = []
    z = x.clone().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        if mode:
            with LeanConvolutions():
                net(z)
        else:
            net(z)
    return sum(kept.values())


@pytest.mark.parametrize("width", [4, 16])
def test_inputs_of_convolutions_are_not_kept(width: int) -> None:
    layers = [nn.Conv2d(1, width, 3, padding=1)]
    for _ in range(4):
        layers += [nn.GroupNorm(2, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]  # type: ignore[list-item]
    net = nn.Sequential(*layers)
    x = torch.randn(2, 1, 16, 16)
    # Kept a layer: the inputs of the norm and of the activation, and not that of the convolution.
    assert saved(net, x, True) < 0.72 * saved(net, x, False)
