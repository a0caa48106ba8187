"""Operators without a transform: identity, mask, block average, matrix."""

from typing import ClassVar

import torch
from einops import reduce, repeat
from torch import Tensor

from potentia._quadratic import Diagonal, Fourier, Structure
from potentia._validate import Shape, count, finite, same_shape, shape_text, tensor
from potentia.likelihoods._operator import Operator, Weight
from potentia.likelihoods._woodbury import Woodbury


def as_mask(where: str, mask: object) -> Tensor:
    """Return a mask as a real tensor of weights of zero or more.

    Raises: TypeError or ValueError for complex, negative, NaN or all-zero masks.
    """
    m = tensor(where, "mask", mask)
    if m.is_complex() or bool((m < 0).any()):
        raise ValueError(f"{where}: mask must be real and not negative, got dtype {m.dtype}")
    if not bool((m > 0).any()):
        raise ValueError(f"{where}: mask of shape {shape_text(tuple(m.shape))} is zero everywhere: nothing is measured")
    return m


def as_precision(weight: Weight, like: Tensor | None = None) -> Tensor:
    """Return a weight as a tensor of at least the three image dimensions, so that structures can tell it varies."""
    w = (
        weight
        if isinstance(weight, Tensor)
        else torch.tensor(float(weight), device=None if like is None else like.device)
    )
    return w.reshape((1,) * (3 - w.dim()) + tuple(w.shape)) if w.dim() < 3 else w


class Identity(Operator):
    """A x = x: denoising.

    Shapes: (*batch, C, H, W) -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def output_shape(self, input_shape: Shape) -> Shape:
        return _image_shape(self, input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return _image_shape(self, output_shape)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """diag(weight)."""
        return Diagonal(as_precision(weight))


def _image_shape(operator: Operator, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"{operator.describe()}: got an image of shape {shape_text(shape)}, expected (C, H, W)")
    return tuple(shape)


class Mask(Operator):
    """A x = mask * x: inpainting; unmeasured pixels are zero in y.

    Shapes: mask (H, W) or (C, H, W), real weights, usually 0 and 1; x (*batch, C, H, W) -> the same.
    Raises: ValueError for a negative, NaN or all-zero mask.
    """

    mask: Tensor

    def __init__(self, mask: object) -> None:
        super().__init__()
        m = as_mask("Mask", mask)
        if m.dim() not in (2, 3):
            raise ValueError(f"Mask: mask has shape {shape_text(tuple(m.shape))}, expected (H, W) or (C, H, W)")
        self.register_buffer("mask", m if m.dim() == 3 else m[None])

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask * y

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = _image_shape(self, input_shape)
        want = tuple(shape[-3:]) if self.mask.shape[0] == 1 else (self.mask.shape[0], *shape[1:])
        same_shape("Mask", "the image", shape, (want[0], *self.mask.shape[1:]))
        return shape

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.output_shape(output_shape)

    @property
    def sampled(self) -> Tensor:
        return self.mask > 0

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """diag(weight mask^2)."""
        return Diagonal(self.mask.square() * weight)

    def extra_repr(self) -> str:
        share = float((self.mask > 0).float().mean())
        return f"{shape_text(tuple(self.mask.shape))}, {share:.1%} measured"


class Downsample(Operator):
    """Mean over blocks of factor x factor pixels: what a coarser detector sees.

    Shapes: (*batch, C, H, W) -> (*batch, C, H / factor, W / factor).
    Raises: ValueError for images whose sides the factor does not divide.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = count("Downsample", "factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        # A sum and a division: einops takes no mean of complex images.
        return reduce(x, "... (h a) (w b) -> ... h w", "sum", a=self.factor, b=self.factor) / self.factor**2

    def adjoint(self, y: Tensor) -> Tensor:
        return repeat(y, "... h w -> ... (h a) (w b)", a=self.factor, b=self.factor) / self.factor**2

    def output_shape(self, input_shape: Shape) -> Shape:
        c, h, w = _image_shape(self, input_shape)
        if h % self.factor or w % self.factor:
            raise ValueError(
                f"Downsample: image has shape {shape_text(input_shape)}, expected sides divisible by {self.factor}"
            )
        return (c, h // self.factor, w // self.factor)

    def input_shape(self, output_shape: Shape) -> Shape:
        c, h, w = _image_shape(self, output_shape)
        return (c, h * self.factor, w * self.factor)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Inverted in closed form: A A^H is I / factor^2. The nearest circulant matrix has the box's power spectrum."""
        f, w = self.factor, as_precision(weight)
        down, across = (_box_power(f, n).to(w) for n in input_shape[-2:])
        near = Fourier(w.mean(dim=(-2, -1), keepdim=True) / f**2 * down[:, None] * across)
        free = self._matrix_free(weight, input_shape, near)
        return Woodbury(free, self.forward, self.adjoint, w, torch.full_like(w[:1, :1, :1], f**-2), in_fourier=False)

    def extra_repr(self) -> str:
        return f"factor {self.factor}"


def _box_power(factor: int, n: int) -> Tensor:
    """|transfer function|^2 of the mean of so many neighbours, on n pixels: (n,)."""
    box = torch.zeros(n, dtype=torch.float64)
    box[:factor] = 1 / factor
    power: Tensor = torch.fft.fft(box).abs().square()
    return power


class Matrix(Operator):
    """A x = M vec(x), for any dense matrix.

    Shapes: matrix (M, C H W), real or complex; input_shape (C, H, W); (*batch, C, H, W) -> (*batch, M).
    A complex matrix acts on complex images; a real one on either.
    Raises: ValueError if the matrix does not fit input_shape or is not finite.
    """

    output_dims: ClassVar[int] = 1
    matrix: Tensor

    def __init__(self, matrix: object, input_shape: Shape) -> None:
        super().__init__()
        m = tensor("Matrix", "matrix", matrix)
        self.image_shape = _image_shape(self, tuple(input_shape))
        size = self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        if m.dim() != 2 or m.shape[1] != size:
            raise ValueError(f"Matrix: matrix has shape {shape_text(tuple(m.shape))}, expected (M, {size})")
        finite("Matrix", "matrix", m)
        self.register_buffer("matrix", m)

    def forward(self, x: Tensor) -> Tensor:
        return self._match(x.flatten(-3), False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._match(y, True).reshape(*y.shape[:-1], *self.image_shape)

    def _match(self, v: Tensor, adjoint: bool) -> Tensor:
        dtype = torch.promote_types(self.matrix.dtype, v.dtype)
        m = self.matrix.to(dtype)
        return v.to(dtype) @ (m.conj() if adjoint else m.mT)

    def output_shape(self, input_shape: Shape) -> Shape:
        same_shape("Matrix", "the image", tuple(input_shape), self.image_shape)
        return (self.matrix.shape[0],)

    def input_shape(self, output_shape: Shape) -> Shape:
        same_shape("Matrix", "the measurement", tuple(output_shape), (self.matrix.shape[0],))
        return self.image_shape

    def complex_output(self, complex_input: bool) -> bool:
        return complex_input or self.matrix.is_complex()

    def complex_input(self, complex_output: bool) -> bool:
        if self.matrix.is_complex() and not complex_output:
            raise ValueError("Matrix: a complex matrix gives complex measurements, got real ones")
        return complex_output

    def extra_repr(self) -> str:
        return f"{shape_text(tuple(self.matrix.shape))} {str(self.matrix.dtype).removeprefix('torch.')}"
