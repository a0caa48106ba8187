"""A term that is another one for each chain, such as a likelihood whose noise level every chain has its own idea of."""

from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from potentia._algebra import Scaled, unscaled
from potentia._potential import Potential, Sigma
from potentia._quadratic import Diagonal, Fourier, MatrixFree, Quadratic, Structure
from potentia._random import Generators
from potentia._tensor import EVENT_DIMS, to_event
from potentia._validate import shape_text


class PerChain(Potential):
    """U(x)[c] = U_c(x[c]): entry c of the batch meets the c-th potential, a multi-scale one at its finest scale.

    Multiples of one term, as unknown noise levels and weights make them, are evaluated together.

    Shapes: x (chains, C, H, W) -> (chains,).
    Raises: ValueError for no potentials, for x of another number of chains, or for a scale other than the finest.
    """

    _weights: Tensor

    def __init__(self, potentials: Sequence[Potential]) -> None:
        super().__init__()
        if not potentials:
            raise ValueError("PerChain: got no potentials, expected one a chain")
        self.each = nn.ModuleList(potentials)
        self.name = potentials[0].name
        bare = [unscaled(u) for u in potentials]
        self._shared = bare[0] if all(u is bare[0] for u in bare) else None
        weights = [u.weight if isinstance(u, Scaled) else 1.0 for u in potentials]
        self.register_buffer("_weights", torch.tensor(weights, dtype=torch.float64))
        self._form: Quadratic | None = None

    def check(self, x: Tensor) -> None:
        """Refuse other images than one a chain."""
        if x.dim() != EVENT_DIMS + 1 or len(x) != len(self.each):
            raise ValueError(
                f"{self.name}: x has shape {shape_text(tuple(x.shape))}, expected ({len(self.each)}, C, H, W), an "
                "image a chain"
            )
        self._first.check(x)

    def _split(self, x: Tensor) -> list[tuple[Potential, Tensor]]:
        return [(u, x[c : c + 1]) for c, u in enumerate(self.each)]  # type: ignore[misc]

    def _ready(self, x: Tensor, sigma: Sigma) -> None:
        self.check(x)
        scales = self._first.scales
        if scales is not None and sigma is not None and bool((torch.as_tensor(sigma) > scales[0] * (1 + 1e-6)).any()):
            raise ValueError(
                f"{self.name}: sigma is {float(torch.as_tensor(sigma).max()):g}, but with a weight of each chain's own "
                f"it counts at its finest scale, {scales[0]:g}; expected a sampler that does not anneal"
            )

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self._ready(x, sigma)
        if self._shared is not None:
            return self._weights.to(x.device) * cast(Tensor, self._shared(x))
        return torch.cat([u(one) for u, one in self._split(x)])

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        self._ready(x, sigma)
        if self._shared is not None:
            value, grad = self._shared.value_and_grad(x)
            return self._weights.to(x.device) * value, self._weighted(grad)
        values, grads = zip(*(u.value_and_grad(one) for u, one in self._split(x)), strict=True)
        return torch.cat(values), torch.cat(grads)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self._ready(x, sigma)
        if self._shared is not None:
            return self._weighted(self._shared.grad(x))
        return torch.cat([u.grad(one) for u, one in self._split(x)])

    def _weighted(self, grad: Tensor) -> Tensor:
        return to_event(self._weights.to(device=grad.device, dtype=grad.real.dtype)) * grad

    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:
        """The forms side by side; None unless every chain's potential has one."""
        if self._form is None:
            forms = [u.quadratic() for u in self.each]  # type: ignore[operator]
            if any(form is None for form in forms):
                return None
            shape = self.event_shape
            linear = torch.stack([f.linear if shape is None else f.linear.expand(shape) for f in forms])
            constant = torch.stack([torch.as_tensor(f.constant, dtype=torch.float64) for f in forms])
            self._form = Quadratic(side_by_side([f.structure for f in forms]), linear, constant)
        return self._form

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The form holds tensors of the old device and dtype.
        self._form = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        return self._first.event_shape

    @property
    def is_complex(self) -> bool | None:
        return self._first.is_complex

    @property
    def has_value(self) -> bool:
        return self._first.has_value

    @property
    def _first(self) -> Potential:
        return self.each[0]  # type: ignore[return-value]

    def describe(self) -> str:
        return f"{len(self.each)} chains, each with its own {self._first.describe()}"


def side_by_side(structures: Sequence[Structure]) -> Structure:
    """The block-diagonal structure of a batch of chains, diagonal or Fourier where all of them are.

    Shapes: images (chains, C, H, W).
    """
    if all(isinstance(s, Diagonal) for s in structures):
        return Diagonal(_stacked([s.precision for s in structures]))  # type: ignore[attr-defined]
    if all(isinstance(s, Fourier) for s in structures):
        return Fourier(_stacked([s.spectrum for s in structures]))  # type: ignore[attr-defined]

    def sample_noise(generator: Generators, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        one = (1, *tuple(shape)[1:])
        each: list[Generators] = [generator] * len(structures)
        if not isinstance(generator, torch.Generator):
            each = [[g] for g in generator]
        return torch.cat([s.noise(g, one, dtype=dtype) for s, g in zip(structures, each, strict=True)])

    near = [s.circulant() for s in structures]
    known = [n.spectrum for n in near if n is not None]
    limits = [s for s in structures if isinstance(s, MatrixFree)]
    return MatrixFree(
        _each([s.apply for s in structures]),
        sample_noise,
        Fourier(_stacked(known)) if len(known) == len(near) else None,
        tolerance=min((s.tolerance for s in limits if s.tolerance is not None), default=None),
        max_iterations=max(s.max_iterations for s in limits) if limits else 1000,
    )


def _each(actions: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([act(x[c : c + 1]) for c, act in enumerate(actions)])


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.reshape((1,) * (EVENT_DIMS - t.dim()) + tuple(t.shape)) for t in tensors])
