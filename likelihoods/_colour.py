"""Colour: what a sensor behind a colour filter array sees, and linear mixes of channels."""

import torch
from torch import Tensor

from potentia._quadratic import Diagonal, Fourier, Structure
from potentia._validate import Shape, same_shape, shape_text, tensor
from potentia.likelihoods._basic import as_precision
from potentia.likelihoods._operator import Operator, Weight

_CHANNELS = "RGB"


class Bayer(Operator):
    """A x = the one colour that the filter in front of each pixel lets pass: demosaicing.

    The pattern names the filters of the top left two by two pixels, row by row, and is repeated.

    Shapes: shape the images' (H, W) or (3, H, W), any sides; (*batch, 3, H, W), red, green, blue -> (*batch, 1, H, W).
    Raises: ValueError for a pattern that is not four of R, G and B with each of them among it.
    Source: Bayer 1976.
    """

    filters: Tensor

    def __init__(self, pattern: str, shape: Shape) -> None:
        super().__init__()
        if not (isinstance(pattern, str) and len(pattern) == 4 and set(pattern) == set(_CHANNELS)):
            raise ValueError(f"Bayer: pattern is {pattern!r}, expected four of R, G and B, such as 'RGGB'")
        if len(shape) not in (2, 3):
            raise ValueError(f"Bayer: shape is {shape_text(tuple(shape))}, expected (H, W) or (3, H, W)")
        self.pattern = pattern
        height, width = shape[-2:]
        filters = torch.zeros(3, height, width)
        for k, colour in enumerate(pattern):
            filters[_CHANNELS.index(colour), k // 2 :: 2, k % 2 :: 2] = 1
        self.register_buffer("filters", filters)

    def forward(self, x: Tensor) -> Tensor:
        return (self.filters * x).sum(-3, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.filters * y

    def output_shape(self, input_shape: Shape) -> Shape:
        same_shape("Bayer", "the image", tuple(input_shape), tuple(self.filters.shape))
        return (1, *self.filters.shape[1:])

    def input_shape(self, output_shape: Shape) -> Shape:
        same_shape("Bayer", "the measurement", tuple(output_shape), (1, *self.filters.shape[1:]))
        return tuple(self.filters.shape)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """diag(filters * weight): each pixel passes one colour, so that none couple."""
        return Diagonal(self.filters * weight)

    def extra_repr(self) -> str:
        return f"{self.pattern}, {shape_text(tuple(self.filters.shape[1:]))}"


class ChannelMix(Operator):
    """A x = a matrix times the channels of every pixel: colour spaces, spectral responses, unmixing.

    Shapes: matrix (M, C), real; (*batch, C, H, W) -> (*batch, M, H, W).
    Raises: ValueError for a matrix that is complex, zero or not finite.
    """

    matrix: Tensor

    def __init__(self, matrix: object) -> None:
        super().__init__()
        m = tensor("ChannelMix", "matrix", matrix)
        if m.dim() != 2 or m.is_complex():
            raise ValueError(
                f"ChannelMix: matrix has shape {shape_text(tuple(m.shape))} and dtype {m.dtype}, expected real (M, C)"
            )
        if not bool((m != 0).any()):
            raise ValueError("ChannelMix: matrix is zero: nothing is measured")
        self.register_buffer("matrix", m)

    def forward(self, x: Tensor) -> Tensor:
        return _mix(self.matrix, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return _mix(self.matrix.mT, y)

    def output_shape(self, input_shape: Shape) -> Shape:
        return self._swap("the image", input_shape, *self.matrix.shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return self._swap("the measurement", output_shape, *reversed(self.matrix.shape))

    def _swap(self, what: str, shape: Shape, gives: int, takes: int) -> Shape:
        if len(shape) != 3 or shape[0] != takes:
            raise ValueError(f"ChannelMix: {what} has shape {shape_text(tuple(shape))}, expected ({takes}, H, W)")
        return (gives, *shape[1:])

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free, with its diagonal, averaged over the plane, as the circulant approximation."""
        w = as_precision(weight, self.matrix).mean(dim=(-2, -1), keepdim=True)
        diagonal = (self.matrix.square()[..., None, None] * w[:, None]).sum(0)
        return self._matrix_free(weight, input_shape, Fourier(diagonal))

    def extra_repr(self) -> str:
        return f"{self.matrix.shape[1]} to {self.matrix.shape[0]} channels"


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    m = matrix.to(torch.promote_types(matrix.dtype, x.dtype))
    return torch.einsum("mc,...chw->...mhw", m, x.to(m.dtype))
