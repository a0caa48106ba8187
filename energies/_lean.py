"""Convolutions that keep nothing but their weights for the backward pass.

torch's convolution saves its input for the gradient of its weights, wanted or not. Where only the gradient of the
image is asked for, that input is dead weight: about a third of the activations of a U-Net.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode


class _Convolution(torch.autograd.Function):
    """conv2d, differentiable in its input alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = (x.shape, stride, padding, dilation, groups)
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        shape, stride, padding, dilation, groups = ctx.geometry
        pulled: Tensor = conv2d_input(shape, weight, grads[0], stride, padding, dilation, groups)
        return pulled, None, None, None, None, None, None


class LeanConvolutions(TorchFunctionMode):
    """Within it, ``conv2d`` has a gradient with respect to its input only."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and not kwargs and len(args) == 7 and not isinstance(args[4], str):
            x, weight, bias, *geometry = args
            # Detached: a parameter that requires a gradient would have autograd expect one.
            return _Convolution.apply(x, weight.detach(), None if bias is None else bias.detach(), *geometry)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def lean(net: object) -> AbstractContextManager[Any]:
    """The mode for a network, or none for one that is compiled, whose graph is not to be broken."""
    compiled = getattr(net, "_compiled_call_impl", None) is not None or hasattr(net, "_orig_mod")
    return nullcontext() if compiled else LeanConvolutions()
