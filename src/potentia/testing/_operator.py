"""What every forward operator promises: it is linear, and its adjoint, normal and Gram operators are its own."""

import copy

import torch
from torch import Tensor

from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape
from potentia.likelihoods import Operator
from potentia.testing._support import (
    PER_CALL,
    in_double,
    inner_product,
    random_image,
    require,
    require_close,
    untouched,
)


def check_operator(
    operator: Operator, shape: Shape, *, is_complex: bool | None = None, seed: int = 0, rounding: float = PER_CALL
) -> None:
    """Check a forward operator, a user's own included, on random images.

    The adjoint identity ``<A x, y> = <x, A^H y>`` (its real part where images are real), ``normal`` and ``gram``
    against forward and adjoint, linearity, batch independence, purity, shapes, fields and dtypes.

    ``is_complex`` says whether images are complex; None checks every kind of image that the operator takes.

    Shapes: shape (C, H, W) of the images.
    Raises: AssertionError naming the class, the identity, what was got and expected.
    """
    where = operator.describe()
    fields = domains(operator) if is_complex is None else (is_complex,)
    require(bool(fields), f"{where}: fields: got neither real nor complex images, expected at least one kind")
    for field in fields:
        a = in_double(operator)
        x = random_image(shape, batch=(2, 3), is_complex=field, seed=seed)
        output = _check_shapes(a, x, where)
        y = random_image(output, batch=(2, 3), is_complex=a.complex_output(field), seed=seed + 1)
        _check_adjoint(a, x, y, rounding, where)
        _check_linear(a, x, y, seed, rounding, where)
        _check_gram(a, x, y, seed, rounding, where)
        _check_batch(a, x, y, rounding, where)
        _check_purity(operator, x, y, where)


def domains(operator: Operator) -> tuple[bool, ...]:
    """The kinds of images that an operator takes: False for real ones, True for complex ones.

    Those for which ``complex_input`` gives back what ``complex_output`` was given.
    """
    found = []
    for field in (False, True):
        try:
            if operator.complex_input(operator.complex_output(field)) == field:
                found.append(field)
        except ValueError:
            continue
    return tuple(found)


def _check_shapes(a: Operator, x: Tensor, where: str) -> Shape:
    shape = tuple(x.shape[-EVENT_DIMS:])
    output = tuple(a.output_shape(shape))
    back = tuple(a.input_shape(output))
    require(back == shape, f"{where}: input_shape of output_shape: got {back}, expected {shape}")
    require(len(output) == a.output_dims, f"{where}: output_dims: got {a.output_dims}, expected {len(output)}")
    y = a(x)
    want = (*x.shape[:-EVENT_DIMS], *output)
    require(tuple(y.shape) == want, f"{where}: shape of forward: got {tuple(y.shape)}, expected {want}")
    field = a.complex_output(x.is_complex())
    require(y.is_complex() == field, f"{where}: complex_output: got {field}, expected that of forward, {y.is_complex()}")
    again = a.complex_input(field)
    require(again == x.is_complex(), f"{where}: complex_input of complex_output: got {again}, expected {x.is_complex()}")
    z = a.adjoint(y)
    require(z.shape == x.shape, f"{where}: shape of adjoint: got {tuple(z.shape)}, expected {tuple(x.shape)}")
    require(z.dtype == x.dtype, f"{where}: dtype of adjoint: got {z.dtype}, expected that of images, {x.dtype}")
    return output


def _check_adjoint(a: Operator, x: Tensor, y: Tensor, rounding: float, where: str) -> None:
    forward, adjoint = a(x), a.adjoint(y)
    left, right = inner_product(forward, y, a.output_dims), inner_product(x, adjoint, EVENT_DIMS)
    if not x.is_complex():
        left, right = left.real, right.real
    # Rounding is relative to what is added up, which may cancel.
    sizes = [inner_product(t, t, n).abs().sqrt() for t, n in ((forward, a.output_dims), (y, a.output_dims))]
    require_close(where, "<A x, y> = <x, A^H y>", left, right, rtol=0.0, atol=rounding * sizes[0] * sizes[1])
    require_close(where, "normal is the adjoint of forward", a.normal(x), a.adjoint(forward), rtol=rounding)


def _check_linear(a: Operator, x: Tensor, y: Tensor, seed: int, rounding: float, where: str) -> None:
    other_x = random_image(x.shape, is_complex=x.is_complex(), seed=seed + 2)
    other_y = random_image(y.shape, is_complex=y.is_complex(), seed=seed + 3)
    # An operator of real images is linear over the real numbers alone.
    k: complex = 0.7 - 1.3j if x.is_complex() else -1.3
    for label, map_, u, v in (("forward", a.forward, x, other_x), ("adjoint", a.adjoint, y, other_y)):
        parts = map_(u), map_(v)
        got, want = map_(k * u + v), k * parts[0] + parts[1]
        require_close(where, f"{label} is linear", got, want, rtol=10 * rounding)


def _check_gram(a: Operator, x: Tensor, y: Tensor, seed: int, rounding: float, where: str) -> None:
    shape = tuple(x.shape[-EVENT_DIMS:])
    output = tuple(y.shape[-a.output_dims :])
    varying = 0.2 + random_image(output, seed=seed + 4).square()
    for label, weight in (("a number", 0.7), ("weights that vary", varying)):
        got = a.gram(weight, shape).apply(x)
        want = a.adjoint(weight * a(x))
        require_close(where, f"gram of {label} is the adjoint of weighted forward", got, want, rtol=10 * rounding)


def _check_batch(a: Operator, x: Tensor, y: Tensor, rounding: float, where: str) -> None:
    for label, map_, images in (("forward", a.forward, x), ("adjoint", a.adjoint, y), ("normal", a.normal, x)):
        together = map_(images)
        for i, j in ((0, 0), (1, 2)):
            identity = f"batch independence, {label} of an entry in a batch and of it alone"
            require_close(where, identity, together[i, j], map_(images[i, j]), rtol=rounding)


def _check_purity(operator: Operator, x: Tensor, y: Tensor, where: str) -> None:
    a = copy.deepcopy(operator).to(torch.float32)
    u, v = (t.to(torch.complex64 if t.is_complex() else torch.float32) for t in (x, y))
    with untouched(where, a, u, v):
        first = a(u), a.adjoint(v), a.normal(u)
        second = a(u), a.adjoint(v), a.normal(u)
    for label, one, two, want in zip(("forward", "adjoint", "normal"), first, second, (v, u, u), strict=True):
        require(torch.equal(one, two), f"{where}: purity: got another {label} at the second call, expected the same")
        require(one.dtype == want.dtype, f"{where}: dtype of {label}: got {one.dtype}, expected {want.dtype}")
