"""Small tensor helpers shared by the layers."""

import torch
from torch import Tensor

EVENT_DIMS = 3  # an image is (C, H, W)


def sum_event(t: Tensor, event_dims: int = EVENT_DIMS) -> Tensor:
    """Sum over the trailing event dimensions in float64.

    float32 sums of a million terms err by several hundredths of a nat, enough to spoil a Metropolis test.

    Shapes: t (*batch, *event) -> (*batch,), real.
    """
    # Apple's GPUs have no float64.
    accumulate = torch.float32 if t.device.type == "mps" else torch.float64
    return t.sum(dim=tuple(range(-event_dims, 0)), dtype=accumulate)


def squared_magnitude(t: Tensor) -> Tensor:
    """|t|^2, entry by entry, real."""
    return t.real.square() + t.imag.square() if t.is_complex() else t.square()


def squared_norm(t: Tensor, event_dims: int = EVENT_DIMS) -> Tensor:
    """Sum of squared magnitudes over the event dimensions, in float64.

    Shapes: t (*batch, *event) -> (*batch,).
    """
    return sum_event(squared_magnitude(t), event_dims)


def inner(a: Tensor, b: Tensor, event_dims: int = EVENT_DIMS) -> Tensor:
    """Real part of the inner product ``<a, b>`` over the event dimensions, in float64.

    Shapes: a and b (*batch, *event), broadcast -> (*batch,).
    """
    product = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return sum_event(product, event_dims)


def filter_plane(x: Tensor, response: Tensor) -> Tensor:
    """Multiply the Fourier transform over the last two dimensions by a response, zero frequency first.

    Real images stay real: of the response, conjugate-symmetric for them, half is read.

    Shapes: x (*batch, C, H, W); response broadcasts against (C, H, W), real or complex.
    """
    size = x.shape[-2:]
    if x.is_complex():
        out: Tensor = torch.fft.ifft2(torch.fft.fft2(x) * response)
    else:
        out = torch.fft.irfft2(torch.fft.rfft2(x) * response[..., : size[-1] // 2 + 1], s=size)
    return out


def mirrored(spectrum: Tensor) -> Tensor:
    """spectrum(-k) over the last two dimensions, zero frequency first."""
    return torch.roll(spectrum.flip((-2, -1)), (1, 1), dims=(-2, -1))


def to_event(per_item: Tensor | float, event_dims: int = EVENT_DIMS) -> Tensor | float:
    """Append singleton event dimensions to a number per batch entry, so that it broadcasts against images.

    Shapes: (*batch,) -> (*batch, 1, 1, 1); floats and 0-d tensors pass.
    """
    if isinstance(per_item, Tensor) and per_item.dim() > 0:
        return per_item.reshape(*per_item.shape, *(1,) * event_dims)
    return per_item
