"""Operators and forward models: adjoints, derivatives, and what composing them does."""

import math
from collections.abc import Callable
from typing import Any

import test_forward_model_checks_catch_faults as model_faults
import test_operator_checks_catch_faults as operator_faults
import torch
from hypothesis import strategies as st
from identities_base import Check, Identity, from_table, planted
from torch import Tensor

from potentia import likelihoods, testing
from potentia._random import standard_normal
from potentia._tensor import squared_norm
from potentia.likelihoods import Operator
from potentia.likelihoods._operator import Composition, OperatorSum
from potentia.testing import strategies
from potentia.testing._report import require_close, subject
from potentia.testing.examples import Example, example_forward_models

OPERATORS = "Operators"
MODELS = "Forward models"
ROUNDING = 1e-11


@st.composite
def operators(draw: st.DrawFn) -> Any:
    example: Example[Operator] = draw(strategies.operators(strategies.shapes(max_side=6)))
    return example.subject, example.shape, example.dtype


@st.composite
def forward_models(draw: st.DrawFn) -> Any:
    shape = draw(strategies.shapes(max_side=5, channels=(1, 2)))
    example = draw(st.sampled_from(example_forward_models(draw(st.integers(0, 2**16)), shape, torch.float64)))
    return example.subject, example.shape, example.dtype


OPERATOR = Check("check_operator", lambda case: testing.check_operator(*case), operators(), 30)
MODEL = Check("check_forward_model", lambda case: testing.check_forward_model(*case), forward_models(), 15)


# The algebra of operators.

Pair = tuple[Operator, Operator, Operator, Tensor, float]


def composition(case: Pair) -> None:
    """(A B) x = A (B x), (A B)^H y = B^H (A^H y), (A B) C = A (B C); sums and multiples, and their adjoints."""
    a, b, c, x, factor = case
    where, y = f"{subject(a)} and {subject(b)}", torch.view_as_complex(torch.view_as_real(x).roll(1, -1).contiguous())
    same: list[tuple[str, Tensor, Tensor]] = [
        ("(A B) x is A (B x)", (a @ b)(x), a(b(x))),
        ("(A B)^H y is B^H (A^H y)", (a @ b).adjoint(y), b.adjoint(a.adjoint(y))),
        ("(A B) C is A (B C)", ((a @ b) @ c)(x), (a @ (b @ c))(x)),
        ("(A + B) x is A x + B x", (a + b)(x), a(x) + b(x)),
        ("(A + B)^H y is A^H y + B^H y", (a + b).adjoint(y), a.adjoint(y) + b.adjoint(y)),
        ("(c A) x is c (A x)", (factor * a)(x), factor * a(x)),
        ("(c A)^H y is c (A^H y)", (factor * a).adjoint(y), factor * a.adjoint(y)),
    ]
    for identity, got, want in same:
        require_close(where, identity, got, want, ROUNDING * (1 + float(want.abs().max())))


@st.composite
def pairs(draw: st.DrawFn, first: Callable[[Tensor], Operator] | None = None) -> Pair:
    """Operators of complex images to as many measurements."""
    shape = draw(strategies.shapes(max_side=6, channels=(1, 2)))
    g = draw(strategies.generators())

    def normal(*size: int) -> Tensor:
        return standard_normal(size, g, dtype=torch.float64)

    pool: list[Operator] = [
        likelihoods.Mask(normal(*shape[-2:]).abs()),
        likelihoods.Convolution(normal(2, 2), shape[-2:]),
        likelihoods.Fourier((normal(*shape[-2:]) > 0).double()),
        likelihoods.Identity(),
    ]
    a, b, c = draw(st.lists(st.sampled_from(pool), min_size=3, max_size=3))
    x = standard_normal((2, *shape), g, dtype=torch.complex128)
    return a if first is None else first(normal(*shape[-2:]).abs()), b, c, x, draw(st.floats(0.1, 10.0))


COMPOSITION = Check("composition", composition, pairs(), 20)


class Unreversed(Composition):
    def adjoint(self, y: Tensor) -> Tensor:
        return self.outer.adjoint(self.inner.adjoint(y))


class ComposesUnreversed(likelihoods.Mask):
    def __matmul__(self, other: Any) -> Any:
        return Unreversed(self, other)


class OneAdjoint(OperatorSum):
    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(y)


class AddsOneAdjoint(likelihoods.Mask):
    def __add__(self, other: Any) -> Any:
        return OneAdjoint(self, other)


class SquaresFactor(likelihoods.Mask):
    def __rmul__(self, factor: Any) -> Any:
        return super().__mul__(factor * factor)


# Unitary operators.


def unitary(case: tuple[Operator, Tensor]) -> None:
    """A fully sampled Fourier transform: |F x| = |x| and F^H F x = x."""
    f, x = case
    size = float(squared_norm(x).max())
    require_close(subject(f), "|F x| is |x|", squared_norm(f(x)), squared_norm(x), ROUNDING * size)
    require_close(subject(f), "F^H F x is x", f.adjoint(f(x)), x, ROUNDING * math.sqrt(size))


def transforms(make: Callable[[], Operator]) -> st.SearchStrategy[tuple[Operator, Tensor]]:
    images = strategies.shapes().flatmap(lambda s: strategies.normal_images(s, torch.complex128, (2,)))
    return images.map(lambda x: (make(), x))


UNITARY = Check("unitary", unitary, transforms(likelihoods.Fourier), 15)


class Unscaled(likelihoods.Fourier):
    """The factor of the forward transform left out, and the adjoint in line with it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * math.sqrt(x.shape[-1] * x.shape[-2])

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y) * math.sqrt(y.shape[-1] * y.shape[-2])


# What intensities do not see.


def phase(case: tuple[likelihoods.ForwardModel, Tensor, float]) -> None:
    """Of phase retrieval: A(e^{i t} x) = A(x)."""
    model, x, angle = case
    want = model(x)
    got = model(x * complex(math.cos(angle), math.sin(angle)))
    require_close(subject(model), "a global phase changes nothing", got, want, 1e-10 * (1 + float(want.max())))


def turned(make: Callable[[], likelihoods.ForwardModel]) -> st.SearchStrategy[Any]:
    images = strategies.shapes().flatmap(lambda s: strategies.normal_images(s, torch.complex128, (2,)))
    return st.tuples(st.builds(make), images, st.floats(0.1, 6.0))


PHASE = Check(
    "phase",
    phase,
    turned(lambda: likelihoods.FourierPhaseRetrieval())
    | turned(lambda: likelihoods.FourierPhaseRetrieval(intensity=True)),
    15,
)


class ReferenceBeam(likelihoods.FourierPhaseRetrieval):
    """A weak beam beside the image's, as in holography: the phase is seen after all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.01)


MODEL_TABLE = [(name, model_faults.model, faulty, None, says) for name, faulty, says in model_faults.FAULTS]


def linear(name: str, statement: str, *faults: str) -> Identity:
    return Identity(OPERATORS, name, statement, OPERATOR, from_table(operator_faults.FAULTS, *faults))


def model(name: str, statement: str, *faults: str) -> Identity:
    return Identity(MODELS, name, statement, MODEL, from_table(MODEL_TABLE, *faults))


IDENTITIES = [
    linear(
        "adjoint",
        "⟨A x, y⟩ = ⟨x, Aᴴ y⟩; of real images with complex measurements, the real parts",
        "adjoint without conjugate",
        "adjoint the wrong way",
    ),
    linear("linearity", "A(a x + b z) = a A x + b A z, likewise Aᴴ", "affine", "linear over real numbers only"),
    linear("normal operator", "`normal(x)` = Aᴴ A x", "normal off by a factor"),
    linear(
        "Gram structure",
        "`gram(w)` = Aᴴ diag(w) A, with its structure kept",
        "gram off by a factor",
        "gram of varying weights",
    ),
    linear(
        "batch and purity",
        "A and Aᴴ of a batch are those of its entries; inputs and global generators are left alone",
        "operator couples the batch",
        "operator mutates x",
        "operator draws globally",
    ),
    linear(
        "shapes and fields",
        "`output_shape`, `input_shape`, `output_dims` and `complex_output` say what A gives",
        "output_shape",
        "input_shape",
        "complex_output",
        "output_dims",
    ),
    Identity(
        OPERATORS,
        "composition, sums, multiples",
        "(A B)ᴴ = Bᴴ Aᴴ, (A B) C = A (B C), (A + B)ᴴ = Aᴴ + Bᴴ, (c A)ᴴ = c Aᴴ",
        COMPOSITION,
        (
            planted("adjoints in the order of the operators", COMPOSITION, pairs(ComposesUnreversed), r"\(A B\)\^H"),
            planted("one adjoint of a sum", COMPOSITION, pairs(AddsOneAdjoint), r"\(A \+ B\)\^H"),
            planted("factor squared", COMPOSITION, pairs(SquaresFactor), r"\(c A\)"),
        ),
    ),
    Identity(
        OPERATORS,
        "unitary transform",
        "‖F x‖ = ‖x‖ and Fᴴ F = I, of a Fourier transform that is sampled fully",
        UNITARY,
        (planted("transform without its factor", UNITARY, transforms(Unscaled), r"\|F x\| is \|x\|"),),
    ),
    model(
        "Jacobian",
        "`jvp(x, t)` = d/ds A(x + s t) at s = 0",
        "jvp and vjp off by a factor",
        "derivatives elsewhere",
        "holomorphic derivative",
    ),
    model(
        "adjoint of the Jacobian",
        "Re ⟨J t, v⟩ = Re ⟨t, `vjp(x, v)`⟩",
        "vjp off by a factor",
        "vjp of the conjugate",
        "vjp in another field",
    ),
    model(
        "linearisation",
        "`linearise(x)` is J at x as an operator, one image for all or one an entry",
        "linearised elsewhere",
    ),
    model(
        "batch and purity of models",
        "A, J and Jᴴ of a batch are those of its entries; inputs, graphs and global generators are left alone",
        "couples the batch",
        "vjp writes to v",
        "jvp draws globally",
        "vjp with a graph",
    ),
    model(
        "shapes and fields of models",
        "`output_shape`, `input_shape`, `output_dims` and `complex_output` say what A gives",
        "output_shape",
        "input_shape",
        "complex_output",
        "output_dims",
    ),
    Identity(
        MODELS,
        "global phase",
        "A(eⁱᵗ x) = A(x), of phase retrieval",
        PHASE,
        (planted("a reference beam", PHASE, turned(ReferenceBeam), "global phase"),),
    ),
]
TABLES = [operator_faults.FAULTS, MODEL_TABLE]
