"""Several measurements of one image by operators whose measurements have one shape."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor

from potentia._quadratic import Structure
from potentia._validate import Shape, shape_text
from potentia.likelihoods._operator import Operator, Weight


class Stack(Operator):
    """A x = (A_1 x, ..., A_K x): several looks at one image, such as shifts, frames or echoes.

    For looks of different shapes, or with noise models of their own, add likelihoods: ``prior + first + second`` is the
    posterior given both.

    Shapes: (*batch, C, H, W) -> (*batch, K, *measurement), with the measurement that all operators share.
    Raises: ValueError if there are none, or if, when used, they disagree about shapes or fields.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        super().__init__()
        if not operators:
            raise ValueError("Stack: operators is empty, expected at least one")
        dims = {operator.output_dims for operator in operators}
        if len(dims) > 1:
            raise ValueError(f"Stack: measurements have {sorted(dims)} dimensions, expected one number of them")
        self.operators = torch.nn.ModuleList(operators)
        self.output_dims = 1 + dims.pop()  # type: ignore[misc]

    @property
    def terms(self) -> list[Operator]:
        """The operators."""
        return cast("list[Operator]", list(self.operators))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([operator(x) for operator in self.terms], -self.output_dims)

    def adjoint(self, y: Tensor) -> Tensor:
        parts = y.unbind(-self.output_dims)
        return reduce(add, (o.adjoint(part) for o, part in zip(self.terms, parts, strict=True)))

    def _agreed(self, what: str, found: Sequence[Shape | bool]) -> Shape | bool:
        if any(f != found[0] for f in found):
            texts = [shape_text(f) if isinstance(f, tuple) else str(f) for f in found]
            raise ValueError(f"Stack: the operators give {what} {', '.join(texts)}, expected the same of all")
        return found[0]

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = self._agreed("measurements of shape", [o.output_shape(input_shape) for o in self.terms])
        return (len(self.terms), *shape)  # type: ignore[misc]

    def input_shape(self, output_shape: Shape) -> Shape:
        shape = tuple(output_shape)
        if len(shape) != self.output_dims or shape[0] != len(self.terms):
            raise ValueError(
                f"Stack: the measurement has shape {shape_text(shape)}, expected {len(self.terms)} measurements of "
                f"{self.output_dims - 1} dimensions"
            )
        return self._agreed("images of shape", [o.input_shape(shape[1:]) for o in self.terms])  # type: ignore[return-value]

    def complex_output(self, complex_input: bool) -> bool:
        return bool(self._agreed("complex measurements", [o.complex_output(complex_input) for o in self.terms]))

    def complex_input(self, complex_output: bool) -> bool:
        return bool(self._agreed("complex images", [o.complex_input(complex_output) for o in self.terms]))

    @property
    def sampled(self) -> Tensor | None:
        masks = [o.sampled for o in self.terms]
        if all(m is None for m in masks):
            return None
        like = next(m for m in masks if m is not None)
        lifted = [like.new_ones((1,) * (self.output_dims - 1)) if m is None else m for m in masks]
        return torch.stack(torch.broadcast_tensors(*(m.reshape(_lift(m, self.output_dims - 1)) for m in lifted)))

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """The sum of the operators' own, each with its share of the weights."""
        if isinstance(weight, Tensor) and weight.dim() == self.output_dims:
            each = list(weight.expand(len(self.terms), *weight.shape[1:]))
        else:
            each = [weight] * len(self.terms)
        return reduce(add, (o.gram(w, input_shape) for o, w in zip(self.terms, each, strict=True)))

    def describe(self) -> str:
        return f"Stack([{', '.join(o.describe() for o in self.terms)}])"


def _lift(mask: Tensor, dims: int) -> Shape:
    return (1,) * (dims - mask.dim()) + tuple(mask.shape)
