"""Blur beyond circular convolution: scenes larger than the frame, and kernels that change over the field of view."""

import torch
from torch import Tensor

from potentia._quadratic import Fourier, Structure
from potentia._tensor import filter_plane, mirrored
from potentia._validate import Shape, same_shape, shape_text, tensor
from potentia.likelihoods._basic import as_precision
from potentia.likelihoods._convolution import Convolution
from potentia.likelihoods._operator import Operator, Weight


class ValidConvolution(Operator):
    """A x = those pixels of the convolution of x with a real kernel that no pixel beyond the image's edge adds to.

    The image is larger than the data by what the kernel reaches: nothing is assumed about the world around the frame.

    Shapes: kernel (h, w) or (C, h, w); shape the images' (H, W) or (C, H, W);
        (*batch, C, H, W) -> (*batch, C, H - h + 1, W - w + 1).
    Raises: ValueError for a kernel that is complex, zero, not finite, or larger than the image.
    """

    def __init__(self, kernel: object, shape: Shape) -> None:
        super().__init__()
        k = tensor("ValidConvolution", "kernel", kernel)
        self.full = Convolution(k, shape)
        self.size = (k.shape[-2], k.shape[-1])
        height, width = self.full.plane
        self.plane = (height - self.size[0] + 1, width - self.size[1] + 1)
        # How much of a circular convolution wraps around, before and after: the kernel's centre is at h // 2.
        first = (self.size[0] - 1 - self.size[0] // 2, self.size[1] - 1 - self.size[1] // 2)
        self.window = tuple(slice(f, f + n) for f, n in zip(first, self.plane, strict=True))

    def _crop(self, t: Tensor) -> Tensor:
        return t[..., self.window[0], self.window[1]]

    def _pad(self, y: Tensor) -> Tensor:
        full = y.new_zeros(*y.shape[:-2], *self.full.plane)
        full[..., self.window[0], self.window[1]] = y
        return full

    def forward(self, x: Tensor) -> Tensor:
        return self._crop(self.full(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.full.adjoint(self._pad(y))

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*self.full.output_shape(tuple(input_shape))[:-2], *self.plane)

    def input_shape(self, output_shape: Shape) -> Shape:
        same_shape("ValidConvolution", "the measurement's plane", tuple(output_shape)[-2:], self.plane)
        return self.full.input_shape((*tuple(output_shape)[:-2], *self.full.plane))

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free, with the nearest circulant matrix: the weights' mean over the image, zero beyond the frame."""
        w = as_precision(weight, self.full.response).expand(-1, *self.plane)
        mean = w.sum(dim=(-2, -1), keepdim=True) / (self.full.plane[0] * self.full.plane[1])
        return self._matrix_free(weight, input_shape, Fourier(self.full.power * mean))

    def extra_repr(self) -> str:
        return f"kernel {shape_text(self.size)}, {shape_text(self.full.plane)}"


class ProductConvolution(Operator):
    """A x = sum over k of kernel_k * (weight_k x), * the circular convolution: blur that changes over the image.

    weight_k(p) says how much of a point at p is spread by kernel k; weights that sum to one, such as bilinear hats
    around the places where the kernels were measured, interpolate between them.

    Shapes: kernels (K, h, w) and weights (K, H, W), real; (*batch, C, H, W) -> the same.
    Raises: ValueError if the two disagree in K, for weights that are zero everywhere, or for kernels that
        ``Convolution`` refuses.
    Source: Nagy and O'Leary 1998; Escande and Weiss 2017, who call it a product-convolution expansion.
    """

    weights: Tensor
    responses: Tensor

    def __init__(self, kernels: object, weights: object) -> None:
        super().__init__()
        k, w = tensor("ProductConvolution", "kernels", kernels), tensor("ProductConvolution", "weights", weights)
        if k.dim() != 3 or w.dim() != 3 or w.is_complex() or k.shape[0] != w.shape[0]:
            raise ValueError(
                f"ProductConvolution: kernels have shape {shape_text(tuple(k.shape))} and weights "
                f"{shape_text(tuple(w.shape))} and dtype {w.dtype}, expected real (K, h, w) and (K, H, W)"
            )
        if not bool((w != 0).any()):
            raise ValueError("ProductConvolution: weights are zero everywhere: nothing is measured")
        self.register_buffer("weights", w)
        self.register_buffer("responses", Convolution(k, tuple(w.shape)).response)

    def forward(self, x: Tensor) -> Tensor:
        # (*batch, C, 1, H, W) with the kernels in the dimension of ones.
        parts = self.weights * x.unsqueeze(-3)
        if x.is_complex():
            y: Tensor = torch.fft.ifft2((torch.fft.fft2(parts) * self.responses).sum(-3))
            return y
        half = self.responses[..., : x.shape[-1] // 2 + 1]
        y = torch.fft.irfft2((torch.fft.rfft2(parts) * half).sum(-3), s=x.shape[-2:])
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.weights * filter_plane(y.unsqueeze(-3), self.responses.conj())).sum(-3)

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = tuple(input_shape)
        same_shape("ProductConvolution", "the image", shape, (*shape[:1], *self.weights.shape[-2:]))
        return shape

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.output_shape(output_shape)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free, with the nearest circulant matrix to A^H A (T. Chan 1988), times the mean weight."""
        mean = as_precision(weight, self.weights).mean(dim=(-2, -1), keepdim=True)
        return self._matrix_free(weight, input_shape, Fourier(self._nearest() * mean))

    def _nearest(self) -> Tensor:
        """Rayleigh quotients of A^H A at the Fourier modes: (1, H, W).

        That of frequency f is the mean over q of |sum_k response_k(q) F weight_k(q - f)|^2, over the number of pixels:
        a sum over pairs (k, l) of correlations, of which a transform makes products.
        """
        pixels = self.weights.shape[-2] * self.weights.shape[-1]
        moved = torch.fft.fft2(self.weights)
        total = torch.zeros_like(self.weights[0])
        for response, spectrum in zip(self.responses, moved, strict=True):
            pairs = torch.fft.fft2(self.responses * response.conj())
            shifted = torch.fft.fft2(mirrored(moved * spectrum.conj()))
            total = total + torch.fft.ifft2((pairs * shifted).sum(0)).real
        return total.clamp_min(0.0)[None] / pixels**2

    def extra_repr(self) -> str:
        return f"{self.weights.shape[0]} kernels, {shape_text(tuple(self.weights.shape[-2:]))}"
