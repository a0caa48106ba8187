"""Circular convolutions: blur."""

import math
from typing import Self

import torch
from torch import Tensor

from potentia._quadratic import Fourier as FourierStructure
from potentia._quadratic import Structure
from potentia._tensor import filter_plane
from potentia._validate import Shape, positive, real_number, same_shape, shape_text, tensor
from potentia.likelihoods._operator import Operator, Weight


def _plane(where: str, shape: Shape) -> tuple[int, int]:
    shape = tuple(shape)
    if len(shape) not in (2, 3) or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"{where}: shape is {shape_text(shape)}, expected (H, W) or (C, H, W)")
    return shape[-2], shape[-1]


class Convolution(Operator):
    """Circular convolution of every channel with a real kernel.

    The kernel's entry (h // 2, w // 2) is its centre; its sum is left as it is.

    Shapes: kernel (h, w) or (C, h, w); shape the images' (H, W) or (C, H, W); (*batch, C, H, W) -> the same.
    Raises: ValueError for a kernel that is complex, zero, not finite, or larger than the image.
    """

    response: Tensor

    def __init__(self, kernel: object, shape: Shape) -> None:
        name = type(self).__name__
        k = tensor(name, "kernel", kernel)
        height, width = _plane(name, shape)
        if k.is_complex() or k.dim() not in (2, 3):
            raise ValueError(
                f"{name}: kernel has shape {shape_text(tuple(k.shape))} and dtype {k.dtype}, expected real (h, w)"
            )
        if k.shape[-2] > height or k.shape[-1] > width:
            raise ValueError(
                f"{name}: kernel has shape {shape_text(tuple(k.shape))}, expected at most the image's {(height, width)}"
            )
        if not bool((k != 0).any()):
            raise ValueError(f"{name}: kernel is zero everywhere: nothing is measured")
        padded = torch.zeros(*k.shape[:-2], height, width, dtype=k.dtype, device=k.device)
        padded[..., : k.shape[-2], : k.shape[-1]] = k
        centred = torch.roll(padded, (-(k.shape[-2] // 2), -(k.shape[-1] // 2)), dims=(-2, -1))
        self._set_response(torch.fft.fft2(centred), (height, width))

    def _set_response(self, response: Tensor, plane: tuple[int, int]) -> None:
        super().__init__()
        self.plane = plane
        self.register_buffer("response", response if response.dim() == 3 else response[None])

    @classmethod
    def from_response(cls, response: Tensor) -> Self:
        """Build from the transfer function of a real kernel, zero frequency first.

        Shapes: response (H, W) or (C, H, W), complex, with ``response(-k) = conj(response(k))``.
        """
        new = cls.__new__(cls)
        new._set_response(response.to(response.dtype.to_complex()), (response.shape[-2], response.shape[-1]))
        return new

    def forward(self, x: Tensor) -> Tensor:
        return filter_plane(x, self.response)

    def adjoint(self, y: Tensor) -> Tensor:
        return filter_plane(y, self.response.conj())

    def normal(self, x: Tensor) -> Tensor:
        return filter_plane(x, self.power)

    @property
    def power(self) -> Tensor:
        """|transfer function|^2, (C or 1, H, W)."""
        return self.response.real.square() + self.response.imag.square()

    def output_shape(self, input_shape: Shape) -> Shape:
        channels = self.response.shape[0] if self.response.shape[0] > 1 else (input_shape[0] if input_shape else 1)
        same_shape(type(self).__name__, "the image", tuple(input_shape), (channels, *self.plane))
        return tuple(input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.output_shape(output_shape)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Fourier structure for one weight; matrix-free, with a circulant approximation, for weights that vary."""
        if not isinstance(weight, Tensor) or weight.numel() == 1:
            return FourierStructure(self.power * weight)
        mean = weight.mean(dim=(-2, -1), keepdim=True) if weight.dim() > 1 else weight.mean()
        return self._matrix_free(weight, input_shape, FourierStructure(self.power * mean))

    def extra_repr(self) -> str:
        return f"{shape_text(self.plane)}"


class GaussianBlur(Convolution):
    """Blur by a Gaussian of the given standard deviation, circular.

    The transfer function is the Gaussian's own, ``exp(-2 pi^2 std^2 |f|^2)`` with f in cycles a pixel.

    Shapes: shape the images' (H, W) or (C, H, W). Units: std in pixels.
    Raises: ValueError if std <= 0.
    """

    def __init__(self, std: float, shape: Shape) -> None:
        s = positive("GaussianBlur", "std", std)
        height, width = _plane("GaussianBlur", shape)
        fy = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
        fx = torch.fft.fftfreq(width, dtype=torch.float64)[None, :]
        response = torch.exp(-2 * math.pi**2 * s**2 * (fy.square() + fx.square()))
        self._set_response(response.to(torch.complex64), (height, width))
        self.std = s

    def extra_repr(self) -> str:
        return f"std {self.std:g}, {shape_text(self.plane)}"


class MotionBlur(Convolution):
    """Blur along a line of the given length and direction, circular, of unit sum.

    The line is sampled finely and shared out among the four pixels around each sample, so that any angle is smooth.

    Shapes: shape the images' (H, W) or (C, H, W). Units: length in pixels; angle in degrees, counter-clockwise from
        the x axis as the image is seen (y points down).
    Raises: ValueError if length <= 0 or the line is longer than the image.
    """

    def __init__(self, length: float, angle: float, shape: Shape) -> None:
        extent = positive("MotionBlur", "length", length)
        degrees = real_number("MotionBlur", "angle", angle)
        super().__init__(_line_kernel(extent, degrees), shape)
        self.length = extent
        self.angle = degrees

    def extra_repr(self) -> str:
        return f"length {self.length:g}, angle {self.angle:g}, {shape_text(self.plane)}"


def _line_kernel(length: float, degrees: float, samples_a_pixel: int = 64) -> Tensor:
    """A line through the centre of a square kernel, by bilinear splatting: (n, n), n odd, of unit sum."""
    reach = math.ceil(length / 2) + 1
    n = 2 * reach + 1
    m = max(2, math.ceil(length * samples_a_pixel))
    # Midpoints, so that the ends of the line are not counted twice over.
    along = (torch.arange(m, dtype=torch.float64) + 0.5) / m * length - length / 2
    theta = math.radians(degrees)
    x = along * math.cos(theta) + reach
    y = -along * math.sin(theta) + reach
    kernel = torch.zeros(n, n, dtype=torch.float64)
    x0, y0 = x.floor().long(), y.floor().long()
    fx, fy = x - x0, y - y0
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            kernel.index_put_((y0 + dy, x0 + dx), wy * wx, accumulate=True)
    kernel = kernel / kernel.sum()
    # Trim empty borders: a short kernel fits a small image.
    while n > 1 and not bool(
        (kernel[0] != 0).any() | (kernel[-1] != 0).any() | (kernel[:, 0] != 0).any() | (kernel[:, -1] != 0).any()
    ):
        kernel, n = kernel[1:-1, 1:-1], n - 2
    return kernel.to(torch.float32)
