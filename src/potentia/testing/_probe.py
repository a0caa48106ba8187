"""How a check looks at a potential: in double precision, image by image, and without leaving traces."""

import copy
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from potentia._module import Module
from potentia._potential import Potential, Sigma
from potentia._random import standard_normal
from potentia._tensor import EVENT_DIMS
from potentia.testing._report import require

M = TypeVar("M", bound=Module)


def in_precision(module: M, dtype: torch.dtype) -> M:
    """A deep copy in another precision; the original is left alone."""
    return copy.deepcopy(module).to(dtype.to_real())


def rounding_of(module: Module) -> float:
    """Relative error to expect between two formulas for one number, evaluated in double precision.

    1e-9, for sums of thousands of terms with condition numbers of 1e4; but 1e-5 where the module holds tensors of
    single precision: what it once derived from one another does not get better when converted.
    """
    held = [*module.parameters(), *module.buffers()]
    single = any(t.dtype.to_real() != torch.float64 for t in held if t.is_floating_point() or t.is_complex())
    return 1e-5 if single else 1e-9


def generator_of(seed: int | torch.Generator, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator made from a seed, or the generator given."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(seed)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape, dtype and place of x, drawn on the generator's device."""
    return standard_normal(x.shape, generator, dtype=x.dtype, device=generator.device).to(x.device)


def per_image(t: Tensor) -> Tensor:
    """Append singleton event dimensions: (N,) -> (N, 1, 1, 1)."""
    return t.reshape(*t.shape, *(1,) * EVENT_DIMS)


def norms(t: Tensor, event_dims: int = EVENT_DIMS) -> Tensor:
    """Euclidean norm of each batch entry, in double precision: (*batch, *event) -> (*batch,)."""
    squares: Tensor = t.detach().abs().double().square().sum(tuple(range(-event_dims, 0)))
    return squares.sqrt()


def scale_of(x: Tensor) -> float:
    """Root mean square of the entries, 1 for an image of zeros."""
    return float(x.detach().abs().double().square().mean().sqrt()) or 1.0


def images_of(x: Tensor, generator: torch.Generator, *, least: int = 3) -> Tensor:
    """The images of a batch in double precision, filled up with noisy copies of the first: (N, C, H, W), N >= least."""
    flat = x.detach().reshape(-1, *x.shape[-EVENT_DIMS:])
    flat = flat.to(torch.complex128 if x.is_complex() else torch.float64)
    missing = max(0, least - flat.shape[0])
    more = flat[:1].expand(missing, *flat.shape[1:])
    return torch.cat([flat, more + scale_of(x) * normal_like(more, generator)])


def one_scale(sigma: Sigma) -> float | None:
    """A scale as a number: the largest of a tensor's."""
    return float(sigma.max()) if isinstance(sigma, Tensor) else sigma


def gradient_size(potential: Potential, x: Tensor, sigma: Sigma, generator: torch.Generator) -> Tensor:
    """How large gradients are around x, where the one at x may vanish: (N, C, H, W) -> (N,)."""
    near = potential.grad(x + scale_of(x) * normal_like(x, generator), sigma)
    return torch.maximum(norms(potential.grad(x, sigma)), norms(near))


def value_size(potential: Potential, x: Tensor, sigma: Sigma, generator: torch.Generator) -> Tensor:
    """How large values are around x, for bounds on rounding: (N, C, H, W) -> (N,)."""
    near = potential(x + scale_of(x) * normal_like(x, generator), sigma)
    here = potential(x, sigma)
    size: Tensor = 1 + here.detach().abs() + near.detach().abs()
    return size


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, entry by entry, NaN included."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


@contextmanager
def untouched(where: str, module: Module, *tensors: Tensor) -> Iterator[None]:
    """Fail if what happens inside changes the module's state, a tensor, or a global random generator.

    Raises: AssertionError that names what changed.
    """
    held = _state(module)
    before = {key: t.detach().clone() for key, t in held.items()}
    inputs = [(t, t.detach().clone(), t._version, t.requires_grad) for t in tensors]
    streams = _streams()
    yield
    for t, copied, version, requires_grad in inputs:
        require(
            t.requires_grad == requires_grad,
            where,
            "leaves requires_grad of its input alone",
            t.requires_grad,
            requires_grad,
        )
        require(t.grad is None, where, "leaves .grad of its input alone", "a gradient", None)
        same = torch.equal(t, copied) and t._version == version
        require(same, where, "leaves its input alone", "an input written to", "the same one")
    after = _state(module)
    changed = sorted(after.keys() ^ before.keys())
    changed += [k for k in before.keys() & after.keys() if not torch.equal(before[k], after[k].detach())]
    require(
        not changed, where, "leaves its buffers, parameters and training flags alone", f"changes in {changed}", "none"
    )
    graded = [k for k, t in after.items() if t.is_leaf and t.grad is not None and held[k].grad is None]
    require(not graded, where, "leaves gradients of parameters alone", f"gradients in {graded}", "none")
    for stream, state in _streams().items():
        same = repr(state) == repr(streams[stream]) if stream != "torch" else torch.equal(state, streams[stream])
        require(same, where, f"draws nothing from the global generator of {stream}", "another state", "the same state")


def _state(module: Module) -> dict[str, Tensor]:
    """Parameters, buffers and training flags."""
    flags = {f"{name}.training": torch.tensor(m.training) for name, m in module.named_modules()}
    return dict(module.named_parameters()) | dict(module.named_buffers()) | flags


def _streams() -> dict[str, Any]:
    legacy = np.random.get_state(legacy=False)
    return {"torch": torch.get_rng_state(), "numpy": pickle.dumps(legacy), "random": random.getstate()}
