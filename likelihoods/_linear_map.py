"""Linear maps that autograd cannot see into, made differentiable by their adjoints."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def linear_map(x: Tensor, forward: Map, adjoint: Map) -> Tensor:
    """``forward(x)``, which autograd differentiates by ``adjoint``, and that by ``forward``, as often as one likes."""
    out: Tensor = _LinearMap.apply(x, forward, adjoint)  # type: ignore[no-untyped-call]
    return out


class _LinearMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Map, adjoint: Map) -> Tensor:
        ctx.forward_map, ctx.adjoint_map = forward, adjoint
        return forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return linear_map(grads[0], ctx.adjoint_map, ctx.forward_map), None, None
