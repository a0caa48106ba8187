"""All operators of MRI on odd sizes, few coils and lines, in both precisions: adjoints, normal operators, inverses."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potentia import likelihoods
from potentia._random import standard_normal

SINGLE, DOUBLE = torch.complex64, torch.complex128


def normal(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


def mask_of(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    m = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5).to(dtype.to_real())
    m.flatten()[0] = 1
    return m


Make = Callable[[torch.dtype, int, int, int, int], tuple[likelihoods.Operator, tuple[int, ...]]]


def volume(dtype: torch.dtype, coils: int, depth: int, h: int, w: int) -> tuple[likelihoods.Operator, tuple[int, ...]]:
    maps = normal(dtype, coils, depth, h, w)
    return likelihoods.Sense(maps, mask_of(dtype, depth, h, w), axes=3), (depth, h, w)


def frames(dtype: torch.dtype, coils: int, depth: int, h: int, w: int) -> tuple[likelihoods.Operator, tuple[int, ...]]:
    return likelihoods.Sense(normal(dtype, coils, 1, h, w), mask_of(dtype, depth, h, w)), (depth, h, w)


def at_once(dtype: torch.dtype, coils: int, depth: int, h: int, w: int) -> tuple[likelihoods.Operator, tuple[int, ...]]:
    maps, phases = normal(dtype, coils, depth, h, w), likelihoods.caipi_phases(depth, (h, w))
    return likelihoods.SimultaneousSlices(maps, phases, mask_of(dtype, h, w)), (depth, h, w)


def lines(dtype: torch.dtype, coils: int, depth: int, h: int, w: int) -> tuple[likelihoods.Operator, tuple[int, ...]]:
    del depth
    return likelihoods.Sense(normal(dtype, coils, h, w), mask_of(dtype, h, 1).expand(h, w)), (1, h, w)


MAKERS: dict[str, Make] = {
    "fourier": lambda t, _c, d, h, w: (likelihoods.Fourier(mask_of(t, d, h, w)), (d, h, w)),
    "fourier volume": lambda t, _c, d, h, w: (likelihoods.Fourier(mask_of(t, d, h, w), axes=3), (d, h, w)),
    "sense": lambda t, c, _d, h, w: (likelihoods.Sense(normal(t, c, h, w), mask_of(t, h, w)), (1, h, w)),
    "sense lines": lines,
    "sense volume": volume,
    "sense frames": frames,
    "simultaneous slices": at_once,
}  # fmt: skip
SIZES = {"coils": st.integers(1, 3), "depth": st.integers(1, 3), "h": st.integers(1, 5), "w": st.integers(1, 5)}


def scattered(
    dtype: torch.dtype, coils: int, depth: int, h: int, w: int
) -> tuple[likelihoods.Operator, tuple[int, ...]]:
    del depth
    k = torch.rand(7, 2, generator=torch.Generator().manual_seed(1), dtype=dtype.to_real()) - 0.5
    return likelihoods.NonCartesian(k, (h, w), normal(dtype, coils, h, w)), (1, h, w)


def adjoint_error(operator: likelihoods.Operator, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """|<A x, y> - <x, A^H y>| over |A x| |y|, the inner products in double precision."""
    x = normal(dtype, *shape, seed=1)
    y = normal(dtype, *operator.output_shape(shape), seed=2)
    ax, ay = operator(x), operator.adjoint(y)
    assert ax.dtype == ay.dtype == dtype
    left, right = (ax.to(DOUBLE).conj() * y).sum(), (x.to(DOUBLE).conj() * ay).sum()
    size = float(ax.to(DOUBLE).abs().square().sum().sqrt() * y.to(DOUBLE).abs().square().sum().sqrt())
    return abs(complex(left - right)) / max(size, 1e-30)


@settings(max_examples=60)
@given(name=st.sampled_from(list(MAKERS)), dtype=st.sampled_from([SINGLE, DOUBLE]), **SIZES)
def test_adjoints(name: str, dtype: torch.dtype, coils: int, depth: int, h: int, w: int) -> None:
    operator, shape = MAKERS[name](dtype, coils, depth, h, w)
    assert adjoint_error(operator, shape, dtype) < 50 * torch.finfo(dtype).eps


@settings(max_examples=15)
@given(dtype=st.sampled_from([SINGLE, DOUBLE]), **SIZES)
def test_adjoints_off_the_grid(dtype: torch.dtype, coils: int, depth: int, h: int, w: int) -> None:
    pytest.importorskip("finufft")
    operator, shape = scattered(dtype, coils, depth, h, w)
    assert adjoint_error(operator, shape, dtype) < (1e-5 if dtype == SINGLE else 1e-11)  # of finufft's transforms


@settings(max_examples=40)
@given(name=st.sampled_from(list(MAKERS)), **SIZES)
def test_normal_operators_are_solved(name: str, coils: int, depth: int, h: int, w: int) -> None:
    """The structure acts as A^H W A, and its solution solves; one coil is silent where there are two."""
    operator, shape = MAKERS[name](DOUBLE, coils, depth, h, w)
    held = getattr(operator, "coil_maps", None)
    if held is not None and coils > 1:
        held[0] = 0
    structure = operator.gram(25.0, shape)
    x = normal(DOUBLE, 2, *shape, seed=3)
    direct = operator.adjoint(25.0 * operator(x))
    torch.testing.assert_close(structure.apply(x), direct, rtol=1e-10, atol=1e-10)
    z = structure.solve(x, 0.5)
    torch.testing.assert_close(structure.apply(z) + 0.5 * z, x, rtol=0, atol=1e-8 * math.sqrt(x.numel()))


@given(coils=st.integers(1, 3), h=st.integers(1, 6), w=st.integers(1, 6))
def test_full_sampling_is_inverted_pixel_by_pixel(coils: int, h: int, w: int) -> None:
    maps, y = normal(DOUBLE, coils, h, w), normal(DOUBLE, coils, h, w, seed=1)
    operator = likelihoods.Sense(maps, np.ones((h, w), bool))
    form = likelihoods.Gaussian(y, operator, 0.3).quadratic()
    assert form is not None
    want = operator.adjoint(y) / maps.abs().square().sum(0)
    torch.testing.assert_close(form.mode(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mask", [np.ones((4, 5)), np.ones((4, 5), bool), np.ones((4, 5), int), np.ones((4, 5), "u1")])
def test_masks_of_any_real_kind_keep_the_precision_of_the_maps(mask: np.ndarray) -> None:
    operator = likelihoods.Sense(normal(SINGLE, 2, 4, 5), mask)
    x = normal(SINGLE, 1, 4, 5, seed=1)
    assert operator(x).dtype == operator.adjoint(operator(x)).dtype == operator.normal(x).dtype == SINGLE


def test_masks_that_do_not_fit() -> None:
    maps = normal(SINGLE, 3, 7, 5)
    for mask, message in (
        (torch.ones(5), r"mask has shape \(5,\), expected \(H, W\) or \(coils, H, W\)"),
        (torch.ones(5, 7), r"mask's plane has shape \(5, 7\), expected \(7, 5\)"),
        (torch.ones(2, 7, 5), r"mask has shape \(2, 7, 5\), which does not broadcast against coil_maps \(3, 7, 5\)"),
        (torch.full((7, 5), math.nan), "mask has 35 NaN or infinite of 35 entries"),
        (torch.ones(7, 5, dtype=SINGLE), "mask must be real and not negative"),
        (torch.zeros(7, 5), "zero everywhere: nothing is measured"),
    ):
        with pytest.raises(ValueError, match=message):
            likelihoods.Sense(maps, mask)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_units_that_precision_cannot_hold_are_refused(columns: bool, unit: float) -> None:
    """Single precision squares neither: NaN would spread in silence, and rounding be mended for ever."""
    mask = torch.zeros(6, 5)
    mask[:, 1:3] = 1
    mask[3, 3] = 0 if columns else 1
    operator = likelihoods.Sense(unit * normal(SINGLE, 2, 6, 5), mask)
    with pytest.raises(ValueError, match=r"normal operator: its entries reach .*, expected coil maps and noise"):
        operator.gram(torch.full((1, 1, 1), unit) ** -2, (1, 6, 5))
