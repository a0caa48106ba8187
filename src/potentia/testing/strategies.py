"""Hypothesis strategies: shapes, dtypes, images, scales, generators, and instances of every public class."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from potentia._module import Module
from potentia._potential import Energy, Likelihood, Scales
from potentia._random import standard_normal
from potentia._validate import Shape
from potentia.likelihoods import Operator
from potentia.testing import examples
from potentia.testing.examples import Example

T = TypeVar("T", bound=Module)


def shapes(min_side: int = 2, max_side: int = 8, channels: tuple[int, int] = (1, 3)) -> st.SearchStrategy[Shape]:
    """Image shapes (C, H, W), sides odd and even, seldom square.

    Raises: ValueError if a range is empty.
    """
    if not (1 <= min_side <= max_side and 1 <= channels[0] <= channels[1]):
        raise ValueError(f"shapes: sides {min_side} to {max_side} and channels {channels}, expected 1 <= least <= most")
    side = st.integers(min_side, max_side)
    return st.tuples(st.integers(*channels), side, side)


def real_dtypes() -> st.SearchStrategy[torch.dtype]:
    """Single and double precision."""
    return st.sampled_from([torch.float64, torch.float32])


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """Single and double precision, real and complex."""
    return st.sampled_from([torch.float64, torch.float32, torch.complex128, torch.complex64])


def generators() -> st.SearchStrategy[torch.Generator]:
    """Generators with a seed each."""
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


def sigmas(scales: Scales, *, most: float = 1e2) -> st.SearchStrategy[float]:
    """Noise scales, log-uniform within an energy's scales; ``most`` stands for infinity, and most / 1e5 for zero.

    Raises: ValueError if the scales are out of order.
    """
    low, high = scales
    if not 0 <= low <= high:
        raise ValueError(f"sigmas: scales are ({low:g}, {high:g}), expected 0 <= low <= high")
    top = high if math.isfinite(high) else max(most, low)
    bottom = low if low > 0 else 1e-5 * top
    fractions = st.floats(0.0, 1.0, allow_subnormal=False)
    # The power may round past an end.
    return fractions.map(lambda f: min(max(bottom * (top / bottom) ** f, low), top))


def images(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    batch: Shape = (),
    *,
    min_value: float = -1.0,
    max_value: float = 1.0,
) -> st.SearchStrategy[Tensor]:
    """Finite images with entries (of complex ones: both parts) in a range: flat, a single pixel, a checkerboard, noise.

    Shapes: (*batch, *shape). Every batch entry is of a kind of its own. Shrinks towards flat images.
    Raises: ValueError if the range is empty or not finite.
    """
    if not (math.isfinite(min_value) and math.isfinite(max_value) and min_value <= max_value):
        raise ValueError(f"images: values from {min_value} to {max_value}, expected a finite range")
    return _images(tuple(shape), dtype, tuple(batch), min_value, max_value)


@st.composite
def _images(
    draw: st.DrawFn, shape: Shape, dtype: torch.dtype, batch: Shape, min_value: float, max_value: float
) -> Tensor:
    size = (math.prod(batch), *shape, *((2,) if dtype.is_complex else ()))
    out = torch.empty(size, dtype=torch.float64)
    for image in out:
        kind = draw(st.sampled_from(list(_KINDS)))
        unit = _KINDS[kind](image.shape, torch.Generator().manual_seed(draw(st.integers(0, 2**16))))
        contrast = draw(st.sampled_from([1.0, 0.0, 1e-3]))
        base = draw(st.floats(0.0, 1.0, width=32))
        image.copy_(base + contrast * (unit - base))
    out = (min_value + (max_value - min_value) * out).clamp(min_value, max_value)
    final = torch.view_as_complex(out) if dtype.is_complex else out
    return final.reshape(*batch, *shape).to(dtype)


def _pixel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    flat = torch.zeros(shape.numel(), dtype=torch.float64)
    flat[int(torch.randint(shape.numel(), (), generator=generator))] = 1.0
    return flat.reshape(shape)


def _checkerboard(shape: torch.Size, generator: torch.Generator) -> Tensor:
    rows, columns = torch.arange(shape[1])[:, None], torch.arange(shape[2])[None, :]
    board = ((rows + columns) % 2).double()[None]
    return (board[..., None] if len(shape) > 3 else board).expand(shape).clone()


_KINDS: dict[str, Callable[[torch.Size, torch.Generator], Tensor]] = {
    "flat": lambda shape, generator: torch.zeros(shape, dtype=torch.float64),
    "noise": lambda shape, generator: torch.rand(shape, generator=generator, dtype=torch.float64),
    "pixel": _pixel,
    "checkerboard": _checkerboard,
}


def normal_images(shape: Shape, dtype: torch.dtype = torch.float32, batch: Shape = ()) -> st.SearchStrategy[Tensor]:
    """Standard normal images: (*batch, *shape)."""
    return generators().map(lambda g: standard_normal((*batch, *shape), g, dtype=dtype))


def energies(of: st.SearchStrategy[Shape] | None = None) -> st.SearchStrategy[Example[Energy]]:
    """Instances of every public energy, with the shape and dtype of their images; ``of`` draws the shapes."""
    return _instances(examples.example_energies, of)


def operators(of: st.SearchStrategy[Shape] | None = None) -> st.SearchStrategy[Example[Operator]]:
    """Instances of every public operator, sums, multiples and compositions included; ``of`` draws shapes of images."""
    return _instances(examples.example_operators, of)


def likelihoods(of: st.SearchStrategy[Shape] | None = None) -> st.SearchStrategy[Example[Likelihood]]:
    """Instances of every public likelihood on various operators; ``of`` draws shapes of images."""
    return _instances(examples.example_likelihoods, of)


@st.composite
def _instances(
    draw: st.DrawFn, make: Callable[[int, Shape, torch.dtype], list[Example[T]]], of: st.SearchStrategy[Shape] | None
) -> Example[T]:
    shape = draw(shapes() if of is None else of)
    made = make(draw(st.integers(0, 2**16)), shape, draw(real_dtypes()))
    assume(made)
    return draw(st.sampled_from(made))
