"""What the checks share: requirements, copies in double precision, seeded tensors, traces left on a caller's things."""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from potentia._module import Module
from potentia._random import standard_normal
from potentia._tensor import EVENT_DIMS

M = TypeVar("M", bound=Module)
PER_CALL = 1e-10  # relative rounding that two ways of computing the same in double precision are allowed


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with a message unless the condition holds; unlike ``assert``, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def require_close(
    where: str, identity: str, got: Tensor, want: Tensor, *, rtol: float = PER_CALL, atol: float | Tensor = 0.0
) -> None:
    """Require ``|got - want| <= atol + rtol max|want|`` in every entry, and equal shapes; NaN never passes.

    Shapes: got and want alike; atol a number or broadcasting against them.
    Raises: AssertionError naming the class, the identity, the worst pair and the bound.
    """
    shapes = tuple(got.shape), tuple(want.shape)
    require(shapes[0] == shapes[1], f"{where}: {identity}: got shape {shapes[0]}, expected {shapes[1]}")
    if want.numel() == 0:
        return
    bound = torch.as_tensor(atol + rtol * want.detach().abs().max(), dtype=torch.float64).expand(want.shape)
    error = (got.detach() - want.detach()).abs().to(torch.float64)
    excess = torch.where(error <= bound, 0.0, torch.where(torch.isfinite(error), error - bound, torch.inf))
    worst = int(excess.argmax())
    pair = got.detach().flatten()[worst].item(), want.detach().flatten()[worst].item()
    off, limit = float(error.flatten()[worst]), float(bound.flatten()[worst])
    message = f"{where}: {identity}: got {pair[0]:.8g}, expected {pair[1]:.8g} within {limit:.2g}, off by {off:.2g}"
    require(float(excess.max()) == 0.0, message)


def require_raises(where: str, identity: str, error: type[Exception], call: "Call") -> None:
    """Require that a call raises an error of this kind and no other."""
    try:
        call()
    except error:
        return
    except Exception as other:
        raise AssertionError(
            f"{where}: {identity}: got {type(other).__name__} ({other}), expected {error.__name__}"
        ) from other
    raise AssertionError(f"{where}: {identity}: got a result, expected {error.__name__}")


class Call:
    """A call to be made later, ``Call(fn, *args)()``."""

    def __init__(self, fn: object, *args: object) -> None:
        self.fn, self.args = fn, args

    def __call__(self) -> object:
        """Make the call."""
        return self.fn(*self.args)  # type: ignore[operator]


def in_double(module: M) -> M:
    """Give a copy of a potential or an operator with all it holds in double precision."""
    return copy.deepcopy(module).to(torch.float64)


def random_image(
    shape: Sequence[int],
    *,
    batch: Sequence[int] = (),
    is_complex: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Standard normal numbers from a seed; complex ones have variance 1 in each part.

    Shapes: shape, usually (C, H, W) -> (*batch, *shape).
    """
    field = dtype.to_complex() if is_complex else dtype.to_real()
    return standard_normal((*batch, *shape), torch.Generator().manual_seed(seed), dtype=field)


def random_like(x: Tensor, seed: int) -> Tensor:
    """Standard normal numbers in the shape, dtype and on the device of x."""
    return standard_normal(tuple(x.shape), torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)


def to_double(x: Tensor) -> Tensor:
    """Convert to double precision, detached."""
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)


def event_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image: (*batch, C, H, W) -> (*batch,)."""
    return x.abs().square().sum(dim=tuple(range(-EVENT_DIMS, 0))).sqrt()


def inner_product(a: Tensor, b: Tensor, dims: int) -> Tensor:
    """Inner product ``<a, b> = sum conj(a) b`` over the trailing dimensions, complex where a or b is."""
    return (a.conj() * b).sum(dim=tuple(range(-dims, 0)))


@contextmanager
def untouched(where: str, module: nn.Module | None, *tensors: Tensor) -> Iterator[None]:
    """Require that what happens inside changes neither tensors nor module nor any global random state.

    Raises: AssertionError that says what was changed.
    """
    copies = [(t.detach().clone(), t.requires_grad) for t in tensors]
    held = {} if module is None else {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {key: (t.detach().clone(), t.requires_grad) for key, t in held.items()}
    training = None if module is None else module.training
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    for t, (values, flag) in zip(tensors, copies, strict=True):
        require(torch.equal(t.detach(), values), f"{where}: purity: got an argument changed, expected it left alone")
        require(
            t.requires_grad == flag and (not t.is_leaf or t.grad is None),
            f"{where}: purity: got an argument with requires_grad or grad changed, expected it left alone",
        )
    if module is not None:
        now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        require(now.keys() == state.keys(), f"{where}: purity: got buffers {[*now]}, expected {[*state]}")
        for key, (values, flag) in state.items():
            same = torch.equal(now[key].detach(), values) and now[key].requires_grad == flag and now[key].grad is None
            require(same, f"{where}: purity: got {key} changed by an evaluation, expected it left alone")
        require(module.training == training, f"{where}: purity: got the training mode changed, expected it left alone")
    same = torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    same = same and all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))
    require(same, f"{where}: purity: got a global random state changed, expected generators as arguments alone")
