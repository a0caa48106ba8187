"""Super-resolution: what a coarser detector sees through a filter of its own."""

from typing import Literal, get_args

import torch
from torch import Tensor

from potentia._quadratic import Fourier, Structure
from potentia._validate import Shape, count, same_shape, shape_text
from potentia.likelihoods._basic import as_precision
from potentia.likelihoods._convolution import Convolution
from potentia.likelihoods._operator import Operator, Weight
from potentia.likelihoods._woodbury import Woodbury

Filter = Literal["box", "bilinear", "bicubic", "gaussian"]
_WIDTH = {"box": 1, "bilinear": 2, "bicubic": 4, "gaussian": 4}  # in pixels of the coarse image


class SuperResolution(Operator):
    """A x = every factor-th pixel of the circular convolution of x with a kernel.

    A coarse pixel lies in the middle of a block of factor x factor fine ones. The named kernels are of unit sum and
    symmetric about it: "box" is the block's mean, as ``Downsample`` is; "bilinear" and "bicubic" (Keys's, a = -1/2) are
    stretched by the factor against aliasing, as in MATLAB's ``imresize``; "gaussian" has a standard deviation of half a
    coarse pixel and is cut off at four of them. A kernel of yours is centred in the middle of the block if its sides
    and the factor are both odd or both even; if not, half a pixel before it.

    Shapes: kernel a name, or real (h, w) or (C, h, w); shape the fine images' (H, W) or (C, H, W);
        (*batch, C, H, W) -> (*batch, C, H / factor, W / factor).
    Raises: ValueError for sides that the factor does not divide, an unknown name, or a kernel that ``Convolution``
        refuses, such as one larger than the image.
    Source: Keys 1981; the exact solver is that of Zhao et al. 2016, Fast single image super-resolution.
    """

    def __init__(self, factor: int, kernel: Filter | object, shape: Shape) -> None:
        super().__init__()
        self.factor = count("SuperResolution", "factor", factor)
        self.kernel = kernel if isinstance(kernel, str) else "a given kernel"
        self.blur = Convolution(_named(kernel, self.factor) if isinstance(kernel, str) else kernel, shape)
        height, width = self.blur.plane
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"SuperResolution: shape is {shape_text(tuple(shape))}, expected sides divisible by {self.factor}"
            )

    def _at(self) -> tuple[slice, slice]:
        one = slice((self.factor - 1) // 2, None, self.factor)
        return one, one

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._at()
        blurred: Tensor = self.blur(x)
        return blurred[..., rows, columns]

    def adjoint(self, y: Tensor) -> Tensor:
        rows, columns = self._at()
        fine = y.new_zeros(*y.shape[:-2], *self.blur.plane)
        fine[..., rows, columns] = y
        return self.blur.adjoint(fine)

    def output_shape(self, input_shape: Shape) -> Shape:
        c, h, w = self.blur.output_shape(tuple(input_shape))
        return (c, h // self.factor, w // self.factor)

    def input_shape(self, output_shape: Shape) -> Shape:
        h, w = self.blur.plane
        same_shape(
            "SuperResolution",
            "the coarse image's plane",
            tuple(output_shape)[-2:],
            (h // self.factor, w // self.factor),
        )
        return self.blur.input_shape((*tuple(output_shape)[:-2], h, w))

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Fourier structure for factor 1, inverted in closed form for one weight a channel, else matrix-free.

        A A^H is a circular convolution of coarse images, whose spectrum is the mean of |transfer function|^2 over the
        frequencies that alias to one another.
        """
        f, w = self.factor, as_precision(weight, self.blur.response)
        if f == 1:
            return self.blur.gram(weight, input_shape)
        mean = w.mean(dim=(-2, -1), keepdim=True)
        # The nearest circulant matrix: of the pixels of K x, one in factor^2 is looked at.
        free = self._matrix_free(weight, input_shape, Fourier(self.blur.power * mean / f**2))
        if w.shape[-2:] != (1, 1):
            return free
        power = self.blur.power
        h, v = (n // f for n in self.blur.plane)
        outer = power.reshape(-1, f, h, f, v).sum(dim=(1, 3)) / f**2
        return Woodbury(free, self.forward, self.adjoint, w.to(power.dtype), outer, in_fourier=True)

    def extra_repr(self) -> str:
        return f"factor {self.factor}, {self.kernel}, {shape_text(self.blur.plane)}"


def _named(name: str, factor: int) -> Tensor:
    """The named kernel, separable, of unit sum: (n, n), n even if and only if the factor is."""
    if name not in get_args(Filter):
        raise ValueError(f"SuperResolution: kernel is {name!r}, expected a tensor or one of {get_args(Filter)}")
    reach = _WIDTH[name] * factor
    # The most samples of the factor's parity that lie within the kernel's width.
    n = reach - (reach - factor) % 2
    t = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / factor).abs()
    if name == "box":
        line = torch.ones_like(t)
    elif name == "bilinear":
        line = (1 - t).clamp_min(0)
    elif name == "gaussian":
        line = torch.exp(-2 * t.square())
    else:
        near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        line = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    line = line / line.sum()
    return torch.outer(line, line).to(torch.float32)
