"""Compressed sensing by structured random measurements: as random as a Gaussian matrix, as fast as a transform."""

import math
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from potentia._quadratic import Fourier, Structure
from potentia._validate import Shape, count, same_shape, shape_text
from potentia.likelihoods._operator import Operator, Weight
from potentia.likelihoods._woodbury import Woodbury


class StructuredRandom(Operator):
    """A x = a random subset of the cosine transform of x times random signs; A A^H = I.

    The signs spread every image, also a sparse or smooth one, evenly over all frequencies. Signs and subset are drawn
    when the operator is made, from the seed alone.

    Shapes: shape the images' (C, H, W), with num_measurements of at most C H W;
        (*batch, C, H, W) -> (*batch, num_measurements).
    Raises: ValueError for more measurements than the image has pixels.
    Source: Do, Gan, Nguyen and Tran 2012, Fast and efficient compressive sensing using structurally random matrices,
        with the orthonormal two-dimensional DCT-II of every channel, here without their factor sqrt(C H W / M).
    """

    output_dims: ClassVar[int] = 1
    signs: Tensor
    subset: Tensor

    def __init__(self, num_measurements: int, shape: Shape, *, seed: int = 0) -> None:
        super().__init__()
        self.image_shape = tuple(shape)
        if len(self.image_shape) != 3:
            raise ValueError(f"StructuredRandom: shape is {shape_text(self.image_shape)}, expected (C, H, W)")
        size = math.prod(self.image_shape)
        m = count("StructuredRandom", "num_measurements", num_measurements)
        if m > size:
            raise ValueError(f"StructuredRandom: num_measurements is {m}, expected at most the {size} of the image")
        generator = torch.Generator().manual_seed(seed)
        signs = 2.0 * torch.randint(2, self.image_shape, generator=generator) - 1
        self.register_buffer("signs", signs)
        self.register_buffer("subset", torch.randperm(size, generator=generator)[:m].sort().values)

    def _transforms(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return _cosines(self.image_shape[-2], like.dtype, like.device), _cosines(
            self.image_shape[-1], like.dtype, like.device
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.signs * x
        rows, columns = self._transforms(mixed)
        return (rows @ mixed @ columns.mT).flatten(-3)[..., self.subset]

    def adjoint(self, y: Tensor) -> Tensor:
        full = y.new_zeros(*y.shape[:-1], self.signs.numel())
        full[..., self.subset] = y
        rows, columns = self._transforms(y)
        return self.signs * (rows.mT @ full.reshape(*y.shape[:-1], *self.image_shape) @ columns)

    def output_shape(self, input_shape: Shape) -> Shape:
        same_shape("StructuredRandom", "the image", tuple(input_shape), self.image_shape)
        return (self.subset.numel(),)

    def input_shape(self, output_shape: Shape) -> Shape:
        same_shape("StructuredRandom", "the measurement", tuple(output_shape), (self.subset.numel(),))
        return self.image_shape

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Inverted in closed form for any weights; as a circulant matrix, it is nearly a multiple of I."""
        like = self.signs
        w = weight if isinstance(weight, Tensor) else torch.full((1,), float(weight), dtype=like.dtype).to(like.device)
        # The mean of the diagonal, to which random signs reduce the nearest circulant matrix in expectation.
        share = w.expand(self.subset.shape).sum() / like.numel()
        free = self._matrix_free(weight, input_shape, Fourier(share.reshape(1, 1, 1)))
        one = torch.ones(1, dtype=w.dtype, device=w.device)
        return Woodbury(free, self.forward, self.adjoint, w, one, in_fourier=False, dims=1)

    def extra_repr(self) -> str:
        return f"{self.subset.numel()} of {self.signs.numel()} coefficients, {shape_text(self.image_shape)}"


@lru_cache(maxsize=16)
def _cosines(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II, rounded from double precision: (n, n)."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi / n * (k[None, :] + 0.5) * k[:, None])
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)
