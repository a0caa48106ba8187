"""The checks of arguments that all layers share: what they let pass, and the one sentence by which they refuse."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from potentia import _validate as check

NO_NUMBERS = [True, "2", None, [1.0], 1j]


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)])
@pytest.mark.parametrize("passes", [check.positive, check.real_number])
def test_numbers_of_every_library_become_floats(passes: Any, value: Any) -> None:
    got = passes("here", "size", value)
    assert type(got) is float
    assert got == 2.0


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("refuses", [check.positive, check.real_number, check.open_unit])
def test_what_is_no_number_is_refused_by_its_type(refuses: Any, value: Any) -> None:
    name = type(value).__name__
    with pytest.raises(TypeError, match=f"^here: size must be a number, got {name}$"):
        refuses("here", "size", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("refuses", [check.positive, check.real_number])
def test_numbers_that_are_not_finite_are_refused(refuses: Any, value: float) -> None:
    with pytest.raises(ValueError, match=f"^here: size must be finite, got {value}$"):
        refuses("here", "size", value)


@pytest.mark.parametrize("value", [0, 0.0, -1e-30, -3])
def test_zero_and_below_are_not_positive(value: float) -> None:
    with pytest.raises(ValueError, match=f"^here: size must be positive, got {value:g}$"):
        check.positive("here", "size", value)
    assert check.real_number("here", "size", value) == value


def test_the_open_unit_interval_leaves_out_its_ends() -> None:
    for value in (1e-9, 0.5, 1 - 1e-9):
        assert check.open_unit("here", "share", value) == value
    for value in (0, 1, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"^here: share is {value}, expected a number between 0 and 1$"):
            check.open_unit("here", "share", value)


def test_counts_are_integers_of_at_least_one() -> None:
    assert check.count("here", "steps", 1) == 1
    assert check.count("here", "steps", 0, least=0) == 0
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"^here: steps must be at least 1, got {value}$"):
            check.count("here", "steps", value)
    with pytest.raises(ValueError, match=r"^here: steps must be at least 3, got 2$"):
        check.count("here", "steps", 2, least=3)
    no_integers: list[Any] = [True, 1.0, "1", None, torch.tensor(1)]
    for wrong in no_integers:
        with pytest.raises(TypeError, match=f"^here: steps must be an integer, got {re.escape(repr(wrong))}$"):
            check.count("here", "steps", wrong)


@pytest.mark.parametrize("value", [[1, 2], np.array([1, 2]), np.array([True, False]), torch.tensor([1, 2])])
def test_integers_and_booleans_become_float32(value: Any) -> None:
    got = check.tensor("here", "y", value)
    assert got.dtype == torch.float32
    assert got.tolist() == [float(v) for v in value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_floating_and_complex_data_keep_their_dtype(dtype: torch.dtype) -> None:
    got = check.tensor("here", "y", torch.ones(2, 3, dtype=dtype, requires_grad=True))
    assert got.dtype == dtype
    assert not got.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    want = f"^here: y has dtype {dtype}, expected float32, float64, complex64 or complex128$"
    with pytest.raises(ValueError, match=want):
        check.tensor("here", "y", torch.ones(2, dtype=dtype))


@pytest.mark.parametrize(("value", "name"), [("text", "str"), (object(), "object"), ([[1], [1, 2]], "list")])
def test_what_cannot_be_a_tensor_is_refused(value: object, name: str) -> None:
    with pytest.raises(TypeError, match=f"^here: y must be a tensor or an array, got {name}$"):
        check.tensor("here", "y", value)


def test_empty_data_and_entries_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^here: y is empty, shape \(2, 0\)$"):
        check.tensor("here", "y", torch.ones(2, 0))
    want = r"^here: y has 2 NaN or infinite of 3 entries, expected finite data$"
    with pytest.raises(ValueError, match=want):
        check.tensor("here", "y", [1.0, math.nan, -math.inf])
    with pytest.raises(ValueError, match=want):
        check.finite("here", "y", torch.tensor([1.0, complex(0, math.inf), math.nan]))
    check.finite("here", "y", torch.ones(3))


def test_shapes_are_compared_entry_by_entry() -> None:
    check.same_shape("here", "mask", (2, 3), (2, 3))
    check.same_shape("here", "mask", torch.Size([2]), (2,))
    with pytest.raises(ValueError, match=r"^here: mask has shape \(2, 3\), expected \(3,\)$"):
        check.same_shape("here", "mask", (2, 3), (3,))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (8, 96, 96)])
def test_shapes_print_as_tuples_do(shape: tuple[int, ...]) -> None:
    assert check.shape_text(shape) == repr(shape)
