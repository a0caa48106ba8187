"""Phase retrieval: detectors that see how strong a wave is, and not its phase."""

import torch
from torch import Tensor

from potentia._quadratic import Fourier as FourierStructure
from potentia._quadratic import Structure
from potentia._tensor import mirrored
from potentia._validate import Shape, count, shape_text
from potentia.likelihoods._basic import Identity, as_precision
from potentia.likelihoods._modulus import Modulus
from potentia.likelihoods._mri import Sense, centred_fft, centred_ifft
from potentia.likelihoods._operator import Operator, Weight


class PaddedFourier(Operator):
    """A x = F (x in the middle of a larger image of zeros), F the centred, unitary 2-D Fourier transform; A^H A = I.

    Twice as many samples a side see the autocorrelation of x in full.

    Shapes: x (*batch, C, H, W), complex (real if ``real``) -> complex (*batch, C, oversampling H, oversampling W).
    Raises: ValueError for an oversampling below 1.
    """

    def __init__(self, oversampling: int = 2, *, real: bool = False) -> None:
        super().__init__()
        self.oversampling = count("PaddedFourier", "oversampling", oversampling)
        self.real = real

    def _window(self, height: int, width: int) -> tuple[slice, slice]:
        """Where the image stands in the larger one, so that the two centres, at n // 2, fall together."""
        k = self.oversampling
        top, left = k * height // 2 - height // 2, k * width // 2 - width // 2
        return slice(top, top + height), slice(left, left + width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows, columns = self._window(height, width)
        large = x.new_zeros(*x.shape[:-2], self.oversampling * height, self.oversampling * width)
        large[..., rows, columns] = x
        return centred_fft(large)

    def adjoint(self, y: Tensor) -> Tensor:
        rows, columns = self._window(y.shape[-2] // self.oversampling, y.shape[-1] // self.oversampling)
        x = centred_ifft(y)[..., rows, columns]
        return x.real if self.real else x

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise ValueError(
                f"PaddedFourier: got an image of shape {shape_text(tuple(input_shape))}, expected (C, H, W)"
            )
        c, h, w = input_shape
        return (c, self.oversampling * h, self.oversampling * w)

    def input_shape(self, output_shape: Shape) -> Shape:
        k = self.oversampling
        if len(output_shape) != 3 or output_shape[1] % k or output_shape[2] % k:
            raise ValueError(
                f"PaddedFourier: the measurement has shape {shape_text(tuple(output_shape))}, expected (C, H, W) with "
                f"sides divisible by {k}"
            )
        c, h, w = output_shape
        return (c, h // k, w // k)

    def complex_output(self, complex_input: bool) -> bool:
        return True

    def complex_input(self, complex_output: bool) -> bool:
        if not complex_output:
            raise ValueError("PaddedFourier: measurements are complex, got real ones")
        return not self.real

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """A multiple of I for one weight, else matrix-free, with the nearest circulant matrix (T. Chan 1988).

        A^H W A is a window of the convolution with F^H w: an offset counts by the share of the image that has a
        neighbour there.
        """
        if not isinstance(weight, Tensor) or weight.numel() == 1:
            return Identity().gram(weight, input_shape)
        k, (height, width) = self.oversampling, input_shape[-2:]
        w = torch.fft.ifftshift(as_precision(weight).expand(-1, k * height, k * width), dim=(-2, -1))
        spectrum = w
        if k > 1:
            share = _share(height, k).to(w)[:, None] * _share(width, k).to(w)
            kernel = (torch.fft.ifft2(w) * share).reshape(-1, k, height, k, width).sum(dim=(1, 3))
            spectrum = torch.fft.fft2(kernel).real.clamp_min(0.0)
        near = FourierStructure((spectrum + mirrored(spectrum)) / 2 if self.real else spectrum)
        return near if k == 1 else self._matrix_free(weight, input_shape, near)

    def extra_repr(self) -> str:
        return f"oversampling {self.oversampling}" + (", real images" if self.real else "")


def _share(n: int, oversampling: int) -> Tensor:
    """Which part of n pixels has a neighbour at each offset, 0 first and negative ones last: (oversampling n,)."""
    offset = torch.fft.fftfreq(oversampling * n, dtype=torch.float64) * oversampling * n
    share: Tensor = 1 - offset.abs() / n
    return share.clamp_min(0.0)


class PhaseRetrieval(Modulus):
    """A(x) = |B x|, or |B x|^2 if ``intensity``, entry by entry, for a linear B with complex measurements.

    What the phase of x hides, such as a global one, stays hidden: the posterior has as many modes. Where B x is zero,
    magnitudes have no derivative, and zero is given.

    Shapes: those of B, with real measurements; images in the field that B takes.
    Raises: TypeError if B is not linear; ValueError if it cannot give complex measurements.
    Source: Fienup 1982; Candes, Li and Soltanolkotabi 2015, Phase retrieval via Wirtinger flow.
    """

    def __init__(self, operator: Operator, *, intensity: bool = False) -> None:
        if not isinstance(operator, Operator):
            raise TypeError(f"{type(self).__name__}: expected a linear operator, got {type(operator).__name__}")
        super().__init__(operator, intensity=intensity)
        self._complex_images = operator.complex_input(True)

    def complex_input(self, complex_output: bool) -> bool:
        if complex_output:
            raise ValueError(f"{type(self).__name__}: measurements are real, got complex ones")
        return self._complex_images


class FourierPhaseRetrieval(PhaseRetrieval):
    """A(x) = |F (x padded with zeros)|, or its square if ``intensity``: far-field diffraction of an isolated object.

    Beside a global phase, shifts and the conjugate inversion of x within the frame are hidden.

    Shapes: x (*batch, C, H, W), complex (real if ``real``) -> real (*batch, C, oversampling H, oversampling W), zero
        frequency in the middle.
    Raises: ValueError for an oversampling below 1.
    Source: Fienup 1982; oversampling by 2 after Bates 1982.
    """

    def __init__(self, oversampling: int = 2, *, intensity: bool = False, real: bool = False) -> None:
        super().__init__(PaddedFourier(oversampling, real=real), intensity=intensity)


class CodedDiffraction(PhaseRetrieval):
    """A(x) = |F (mask_k x)|, or its square if ``intensity``, for every one of K known masks.

    A few masks of random phases leave only the global phase hidden.

    Shapes: masks (K, H, W), complex or real; x (*batch, 1, H, W), complex (real if ``real``) -> real (*batch, K, H, W),
        zero frequency in the middle.
    Raises: ValueError for masks that are zero, not finite, or of another number of dimensions.
    Source: Candes, Li and Soltanolkotabi 2015, Phase retrieval from coded diffraction patterns.
    """

    def __init__(self, masks: object, *, intensity: bool = False, real: bool = False) -> None:
        # Masks act as coil sensitivities do.
        super().__init__(Sense(masks, real=real), intensity=intensity)
