"""The contract of forward models, linear or not."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potentia._random import standard_normal
from potentia._tensor import EVENT_DIMS, inner
from potentia._validate import Shape, shape_text
from potentia.testing._differences import derivative
from potentia.testing._operator import takes
from potentia.testing._probe import generator_of, identical, in_precision, norms, untouched
from potentia.testing._report import require, require_close, subject

if TYPE_CHECKING:
    from potentia.likelihoods import ForwardModel


def check_forward_model(
    model: "ForwardModel",
    shape: Shape,
    dtype: torch.dtype | None = None,
    *,
    at: Tensor | None = None,
    seed: int | torch.Generator = 0,
    step: float = 0.05,
    tolerance: float | None = None,
) -> None:
    """Check a forward model: shapes, fields, purity, batches; ``jvp``, ``vjp`` and ``linearise`` as derivatives.

    ``jvp`` is compared with differences of the model, number by number; ``vjp`` is its adjoint in the real inner
    product, Re <J t, v> = Re <t, J^H v>; ``linearise`` gives the two as an operator, at one image for all or at one a
    batch entry. Without ``dtype``, every field that the model takes is checked in double precision. ``tolerance`` is
    relative to the norms involved, 1e3 roundings by default; differences have their own estimate of their error on
    top, from steps of at most ``step`` standard normal images.

    Shapes: ``shape`` (C, H, W) of an image; ``at`` (C, H, W), where to look, if not around zero: standard normal images
        are added to it.
    Raises: AssertionError that names the class, the identity, got and expected.
    """
    generator = generator_of(seed)
    where = subject(model)
    kinds = [dtype] if dtype is not None else [d for d in (torch.float64, torch.complex128) if takes(model, d)]
    require(bool(kinds), where, "takes images of some field", "complex_input and complex_output that clash", "one")
    for kind in kinds:
        within = 1e3 * torch.finfo(kind).eps if tolerance is None else tolerance
        _Check(in_precision(model, kind), tuple(shape), kind, at, generator, within).run(step)


class _Check:
    """One field and precision of one forward model."""

    def __init__(
        self,
        model: "ForwardModel",
        shape: Shape,
        dtype: torch.dtype,
        at: Tensor | None,
        generator: torch.Generator,
        tolerance: float,
    ) -> None:
        self.where = f"{subject(model)} on {str(dtype).removeprefix('torch.')} images"
        self.model, self.shape, self.dtype, self.tolerance = model, shape, dtype, tolerance
        self.generator = generator
        self.device = next((t.device for t in model.buffers()), torch.device("cpu"))
        self.measurement = tuple(model.output_shape(shape))
        self.dims = len(self.measurement)
        self.field = dtype.to_complex() if model.complex_output(dtype.is_complex) else dtype.to_real()
        self.x, self.t = self._draw(shape, dtype), self._draw(shape, dtype)
        if at is not None:
            self.x = self.x + at.to(self.x)
        self.v = self._draw(self.measurement, self.field)

    def _draw(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return standard_normal((3, *shape), self.generator, dtype=dtype, device=self.generator.device).to(self.device)

    def run(self, step: float) -> None:
        self._check_shapes()
        self._check_purity()
        self._check_batches()
        self._check_differences(step)
        self._check_adjoint()
        self._check_linearise()

    def _close(self, identity: str, got: Tensor, want: Tensor, dims: int) -> None:
        bound = self.tolerance * (norms(want, dims) + norms(got, dims))
        require_close(self.where, identity, got, want, bound.reshape(*bound.shape, *(1,) * dims))

    def _check_shapes(self) -> None:
        m = self.model
        require(m.output_dims == self.dims, self.where, "output_dims counts output_shape", m.output_dims, self.dims)
        back = tuple(m.input_shape(self.measurement))
        identity = "input_shape undoes output_shape"
        require(back == self.shape, self.where, identity, shape_text(back), shape_text(self.shape))
        measured = (3, *self.measurement)
        for name, got, want, dtype in (
            ("forward has the shape of output_shape", m(self.x), measured, self.field),
            ("jvp has the shape of output_shape", m.jvp(self.x, self.t), measured, self.field),
            ("vjp has the shape of images", m.vjp(self.x, self.v), (3, *self.shape), self.dtype),
        ):
            require(tuple(got.shape) == want, self.where, name, shape_text(tuple(got.shape)), shape_text(want))
            identity = name.replace("shape of output_shape", "field of complex_output").replace("shape", "field")
            require(got.dtype == dtype, self.where, identity, got.dtype, dtype)

    @property
    def _calls(self) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], int]]:
        """What the model computes, with arguments and the dimensions of what comes out."""
        m = self.model
        return {
            "forward": (m.forward, (self.x,), self.dims),
            "jvp": (m.jvp, (self.x, self.t), self.dims),
            "vjp": (m.vjp, (self.x, self.v), EVENT_DIMS),
        }

    def _check_purity(self) -> None:
        for name, (call, arguments, _) in self._calls.items():
            where = f"{self.where}.{name}"
            with untouched(where, self.model, *arguments):
                once, twice = call(*arguments), call(*arguments)
            require(identical(once, twice), where, "gives the same for the same input", "two results", "one")
            if name != "forward":
                require(not once.requires_grad, where, "is detached", "a graph", "none")

    def _check_batches(self) -> None:
        for name, (call, arguments, dims) in self._calls.items():
            alone = torch.stack([call(*entry) for entry in zip(*arguments, strict=True)])
            self._close(f"{name} of a batch is that of each entry alone", call(*arguments), alone, dims)
            nested = call(*(torch.stack([a, a], dim=1) for a in arguments))
            self._close(f"{name} takes batches of two dimensions", nested, torch.stack([alone, alone], 1), dims)
            other = [torch.cat([10 * a[:1] + 1, a[1:]]) for a in arguments]
            identity = f"{name}: another entry in the batch leaves the others alone"
            self._close(identity, call(*other)[1:], alone[1:], dims)

    def _check_differences(self, step: float) -> None:
        # Differences need double precision, whatever is checked.
        double = torch.complex128 if self.dtype.is_complex else torch.float64
        model, x, t = in_precision(self.model, double), self.x.to(double), self.t.to(double)
        want, error = derivative(lambda h: _numbers(model(x + h * t).detach()), step)
        got = _numbers(self.model.jvp(self.x, self.t)).double()
        room = self.tolerance * norms(self.model.jvp(self.x, self.t), self.dims).max() + 10 * error
        require_close(self.where, "jvp is the derivative of forward", got, want, room)

    def _check_adjoint(self) -> None:
        jt, jhv = self.model.jvp(self.x, self.t), self.model.vjp(self.x, self.v)
        bound = self.tolerance * (norms(jt, self.dims) * norms(self.v, self.dims) + norms(self.t) * norms(jhv))
        left, right = inner(jt, self.v, self.dims), inner(self.t, jhv)
        require_close(self.where, "Re <J t, v> = Re <t, J^H v>", left, right, bound)

    def _check_linearise(self) -> None:
        each, one = self.model.linearise(self.x), self.model.linearise(self.x[0])
        shared = self.x[:1].expand_as(self.x)
        for name, operator, x in (("a batch", each, self.x), ("one image", one, shared)):
            at = f"linearised at {name}"
            self._close(f"{at}, forward is jvp", operator.forward(self.t), self.model.jvp(x, self.t), self.dims)
            self._close(f"{at}, adjoint is vjp", operator.adjoint(self.v), self.model.vjp(x, self.v), EVENT_DIMS)
            require(
                tuple(operator.output_shape(self.shape)) == self.measurement,
                self.where,
                f"{at}, it has the model's output_shape",
                shape_text(tuple(operator.output_shape(self.shape))),
                shape_text(self.measurement),
            )


def _numbers(y: Tensor) -> Tensor:
    """Measurements as a batch of real numbers: (numbers,)."""
    return (torch.view_as_real(y.resolve_conj()) if y.is_complex() else y).flatten()
