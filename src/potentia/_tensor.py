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


def squared_norm(t: Tensor, event_dims: int = EVENT_DIMS) -> Tensor:
    """Sum of squared magnitudes over the event dimensions, in float64.

    Shapes: t (*batch, *event) -> (*batch,).
    """
    return sum_event((t.real.square() + t.imag.square()) if t.is_complex() else t.square(), event_dims)


def inner(a: Tensor, b: Tensor, event_dims: int = EVENT_DIMS) -> Tensor:
    """Real part of the inner product ``<a, b>`` over the event dimensions, in float64.

    Shapes: a and b (*batch, *event), broadcast -> (*batch,).
    """
    product = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return sum_event(product, event_dims)


def to_event(per_item: Tensor | float, event_dims: int = EVENT_DIMS) -> Tensor | float:
    """Append singleton event dimensions to a number per batch entry, so that it broadcasts against images.

    Shapes: (*batch,) -> (*batch, 1, 1, 1); floats and 0-d tensors pass.
    """
    if isinstance(per_item, Tensor) and per_item.dim() > 0:
        return per_item.reshape(*per_item.shape, *(1,) * event_dims)
    return per_item
