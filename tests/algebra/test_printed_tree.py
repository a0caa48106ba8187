"""The tree that printing a potential shows, letter by letter."""

from typing import Any

import pytest
import torch
from torch import Tensor

from potentia import Potential, Sum
from potentia._potential import Energy, Sigma

SHAPE = (1, 4, 3)


class Part:
    """Something printable that is no potential: it says neither ``describe`` nor ``parts``."""

    def __repr__(self) -> str:
        return "Part()"


class Model(Potential):
    """A potential made of given parts."""

    default_name = "model"

    def __init__(
        self, parts: list[tuple[str, Any]], shape: tuple[int, ...] | None = None, is_complex: bool | None = None
    ) -> None:
        super().__init__()
        self._parts, self._shape, self._complex = parts, shape, is_complex

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        return self._shape

    @property
    def is_complex(self) -> bool | None:
        return self._complex

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return x.real.flatten(-3).sum(-1)

    def parts(self) -> list[tuple[str, Any]]:
        return self._parts


class Scaled(Energy):
    @property
    def scales(self) -> tuple[float, float]:
        return 0.01, 25.0

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return x.flatten(-3).sum(-1)

    def extra_repr(self) -> str:
        return "kind=flat"


def test_branches_nest_and_the_last_of_each_is_a_corner() -> None:
    inner = Model([("a", Part()), ("", Part())])
    assert repr(Model([("first", inner), ("", inner), ("last", inner)])) == "\n".join(
        [
            "Model()",
            "├─ first: Model()",
            "│  ├─ a: Part()",
            "│  └─ Part()",
            "├─ Model()",
            "│  ├─ a: Part()",
            "│  └─ Part()",
            "└─ last: Model()",
            "   ├─ a: Part()",
            "   └─ Part()",
        ]
    )


@pytest.mark.parametrize(
    ("potential", "line"),
    [
        (Model([]), "Model()"),
        (Model([], SHAPE), "Model((1, 4, 3))"),
        (Model([], SHAPE, True), "Model((1, 4, 3), complex)"),
        (Model([], None, False), "Model(real)"),
        (Scaled(), "Scaled(kind=flat, scales 0.01 to 25)"),
        (0.5 * Scaled(), "0.5 * Scaled(kind=flat, scales 0.01 to 25)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_one_line_names_parameters_shape_field_and_scales(potential: Potential, line: str) -> None:
    assert potential.describe() == line
    assert repr(potential) == line


def test_a_sum_counts_its_terms() -> None:
    one, two, three = Sum(Model([])), Model([]) + Scaled(), Model([]) + Scaled() + Model([])
    assert one.describe() == "Sum of 1 term"
    assert two.describe() == "Sum of 2 terms"
    assert repr(three) == (
        "Sum of 3 terms\n├─ model: Model()\n├─ energy: Scaled(kind=flat, scales 0.01 to 25)\n└─ model_2: Model()"
    )


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True)])
def test_the_refusal_of_a_sum_of_two_fields_names_both_terms(first: bool, second: bool) -> None:
    words = {True: "complex", False: "real"}
    want = f"model takes {words[first]} images and other {words[second]} ones; the terms of a sum must agree"
    with pytest.raises(ValueError, match=f"^{want}$"):
        Sum(Model([], None, first), Model([], None, None).named("any"), Model([], None, second).named("other"))


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a sum needs at least one term, got none$"):
        Sum()


class Ranged(Scaled):
    """Scales that are given."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self._range = low, high

    @property
    def scales(self) -> tuple[float, float]:
        return self._range


def test_scales_that_meet_in_one_point_overlap() -> None:
    assert (Ranged(0.1, 1.0) + Ranged(1.0, 10.0)).scales == (1.0, 1.0)
    want = r"^the scales of the terms do not overlap: energy 0\.1 to 1, energy_2 1\.1 to 10$"
    with pytest.raises(ValueError, match=want):
        Ranged(0.1, 1.0) + Ranged(1.1, 10.0)


def test_a_complex_potential_says_so_when_it_refuses_real_images() -> None:
    p = Model([], SHAPE, True)
    with pytest.raises(ValueError, match=r"^model: x has dtype torch.float32, expected a complex one$"):
        p.check(torch.zeros(SHAPE))
    p.check(torch.zeros(SHAPE, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"^model: x has shape \(1, 1, 4, 4\), expected \(\*batch, 1, 4, 3\)$"):
        (2 * p).check(torch.zeros(1, 1, 4, 4, dtype=torch.complex64))
    (2 * p).check(torch.zeros(5, *SHAPE, dtype=torch.complex64))
