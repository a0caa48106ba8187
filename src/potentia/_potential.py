"""Potentials: what the whole toolkit composes."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from potentia._module import Module
from potentia._quadratic import Quadratic
from potentia._tensor import EVENT_DIMS, to_event
from potentia._validate import shape_text

if TYPE_CHECKING:
    from potentia._algebra import Scaled, Sum

Sigma = float | Tensor | None
Scales = tuple[float, float]
Pullback = Callable[[Tensor], Tensor]


class Potential(Module, ABC):
    """U(x) = -log p(x) + const, in nats, over images.

    Subclasses give ``forward``; ``grad`` and ``value_and_grad`` come from autograd unless a closed form is given.
    A potential is immutable: ``+``, ``-``, ``*`` and ``/`` make new ones.

    Shapes: x (*batch, C, H, W), real or complex; ``forward`` gives (*batch,), real, float64 for the terms that come
        with the package; ``grad`` the shape and dtype of x. Batch entries never influence one another.
    Scales: ``sigma`` is the noise scale of a multi-scale energy: a number, or one per batch entry, of shape (*batch,).
        None is the finest scale there is. Terms without scales ignore it.
    """

    default_name: ClassVar[str] = "potential"
    name: str

    def __init__(self) -> None:
        super().__init__()
        self.name = self.default_name

    @abstractmethod
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """U(x) in nats: (*batch, C, H, W) -> (*batch,)."""

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """U and its gradient in one evaluation, neither attached to a graph; x is left alone.

        Shapes: x (*batch, C, H, W) -> (*batch,) and the shape of x. Complex x: dU/dRe + i dU/dIm.
        """
        z = x.detach().requires_grad_(True)
        with torch.enable_grad():
            value = self(z, sigma)
            (grad,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), grad

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Gradient of U, in the shape and dtype of x."""
        return self.value_and_grad(x, sigma)[1]

    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:
        """The exact quadratic form of U at this scale, or None for a U that has none."""
        return None

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """The (C, H, W) that it takes, or None if it takes any."""
        return None

    @property
    def is_complex(self) -> bool | None:
        """Whether it takes complex images, real ones, or (None) both."""
        return None

    @property
    def scales(self) -> Scales | None:
        """Least and greatest noise scale, or None for a term without scales."""
        return None

    @property
    def multiscale_weight(self) -> float:
        """Total weight w of the multi-scale energies within; their curvature at sigma is about w / sigma^2 at most."""
        return 0.0

    @property
    def has_value(self) -> bool:
        """Whether ``forward`` gives a value; score-only priors have none."""
        return True

    def named(self, name: str) -> Self:
        """Give a copy under another name, which shares the tensors.

        Raises: ValueError if the name is not an identifier.
        """
        if not name.isidentifier():
            raise ValueError(f"{self.name}: a name must be an identifier, got {name!r}")
        new = self._shallow_copy()
        new.name = name
        return new

    def check(self, x: Tensor) -> None:
        """Refuse images of another shape or field than the potential takes.

        Raises: ValueError naming the potential, what it got and what it expected.
        """
        want = self.event_shape
        event = tuple(x.shape[-EVENT_DIMS:])
        if x.dim() < EVENT_DIMS or (want is not None and event != want):
            expected = "(*batch, C, H, W)" if want is None else f"(*batch, {shape_text(want)[1:]}"
            raise ValueError(f"{self.name}: x has shape {shape_text(tuple(x.shape))}, expected {expected}")
        if self.is_complex is not None and x.is_complex() != self.is_complex:
            kind = "complex" if self.is_complex else "real"
            raise ValueError(f"{self.name}: x has dtype {x.dtype}, expected a {kind} one")

    # The operators import their results late: a sum is a potential, so that the two modules need each other.

    def __add__(self, other: object) -> "Sum":
        from potentia._algebra import Sum

        if isinstance(other, int) and other == 0:
            return Sum(self)
        return Sum(self, other) if isinstance(other, Potential) else NotImplemented

    def __radd__(self, other: object) -> "Sum":
        # sum() starts from the integer 0.
        return self + other if isinstance(other, int) else NotImplemented

    def __sub__(self, other: object) -> "Sum":
        return self + (-1.0 * other) if isinstance(other, Potential) else NotImplemented

    def __neg__(self) -> "Potential":
        return -1.0 * self

    def __mul__(self, weight: object) -> "Scaled | Sum":
        from potentia._algebra import is_scalar, scale

        return scale(self, weight) if is_scalar(weight) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> "Scaled | Sum":
        from potentia._algebra import is_scalar, reciprocal, scale

        return scale(self, reciprocal(self.name, divisor)) if is_scalar(divisor) else NotImplemented

    def __repr__(self) -> str:
        from potentia._algebra import tree

        return tree(self)

    def describe(self) -> str:
        """One line for the tree that ``print`` shows: class, shapes, scales and parameters."""
        parts = [self.extra_repr()]
        if self.event_shape is not None:
            parts.append(shape_text(self.event_shape))
        if self.is_complex is not None:
            parts.append("complex" if self.is_complex else "real")
        if self.scales is not None:
            parts.append(f"scales {self.scales[0]:g} to {self.scales[1]:g}")
        return f"{type(self).__name__}({', '.join(p for p in parts if p)})"

    def parts(self) -> list[tuple[str, Any]]:
        """What the printed tree shows below this potential: pairs of label and printable object."""
        return []


class Energy(Potential):
    """A prior. With ``scales`` it is multi-scale: U_sigma is about -log of the prior smoothed by N(0, sigma^2 I)."""

    default_name: ClassVar[str] = "energy"

    @property
    def multiscale_weight(self) -> float:
        return 0.0 if self.scales is None else 1.0

    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Posterior mean of a clean image given x = clean + sigma n, by Tweedie: D = x - sigma^2 grad U_sigma(x).

        Shapes: x (*batch, C, H, W) -> the same.
        Raises: ValueError for an energy without scales, and for a sigma outside of them.
        Source: Efron 2011; Chand and Jacob 2026.
        """
        s = self.sigma_of(x, sigma)
        return x.detach() - s**2 * self.grad(x, sigma)

    def denoise_with_vjp(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Pullback]:
        """The denoiser D and ``v -> J^T v``, J its Jacobian at x, for as many v as one likes.

        s^2 J is the covariance of the clean image given x (Tweedie of second order); for an energy it is symmetric,
        J = I - s^2 H with H the Hessian of U_s. An energy pays one gradient with its graph and, for every v, one
        backward pass through both; the graph is held until the function returned is let go of.

        Shapes: x (*batch, C, H, W); D and v and J^T v likewise.
        Raises: ValueError as ``denoise``.
        Source: Efron 2011; Rozet et al. 2024 (arXiv 2405.13712), eq. 14.
        """
        s = self.sigma_of(x, sigma)
        z = x.detach().requires_grad_(True)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(self(z, sigma).sum(), z, create_graph=True)

        def pull(v: Tensor) -> Tensor:
            if not grad.requires_grad:  # U is linear in x
                return v
            (product,) = torch.autograd.grad(grad, z, v.to(grad.dtype), retain_graph=True, allow_unused=True)
            return v if product is None else v - s**2 * product

        return (x.detach() - s**2 * grad.detach()), pull

    def sigma_of(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        """The scale to use for x: a float, or a tensor (*batch, 1, 1, 1); the finest scale for None.

        Raises: ValueError for an energy without scales, a sigma outside of them, or of a shape that does not fit x.
        """
        if self.scales is None:
            raise ValueError(f"{self.name}: has no noise scales, so that sigma and denoise have no meaning for it")
        low, high = self.scales
        if sigma is None:
            return low
        if not isinstance(sigma, Tensor):
            least = greatest = sigma = float(sigma)
        else:
            least, greatest = (float(v) for v in sigma.detach().aminmax())
        # A schedule computed in float32 may miss its own end by a rounding error.
        if not (least >= low * (1 - 1e-6) and greatest <= high * (1 + 1e-6)):
            got = f"{least:g}" if least == greatest else f"{least:g} to {greatest:g}"
            raise ValueError(f"{self.name}: sigma is {got}, expected {low:g} to {high:g}")
        if isinstance(sigma, Tensor):
            if sigma.dim() > 0 and sigma.shape != x.shape[:-EVENT_DIMS]:
                raise ValueError(
                    f"{self.name}: sigma has shape {shape_text(tuple(sigma.shape))}, expected a number or "
                    f"{shape_text(tuple(x.shape[:-EVENT_DIMS]))}, one per batch entry"
                )
            return to_event(sigma.to(dtype=x.real.dtype, device=x.device))
        return sigma


class ScoreOnly(Energy):
    """A multi-scale prior known by its denoiser alone: it has a gradient, but no value.

    It drives every sampler that needs scores; whatever needs a value (Metropolis tests, evidence, L-BFGS) refuses it.
    """

    default_name: ClassVar[str] = "score"

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Posterior mean of a clean image given x = clean + sigma n."""

    def denoise_with_vjp(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Pullback]:
        """The denoiser D and ``v -> J^T v``, from the graph of ``denoise``.

        Raises: TypeError if ``denoise`` detaches what it returns from x.
        """
        z = x.detach().requires_grad_(True)
        with torch.enable_grad():
            clean = self.denoise(z, sigma)
        return pulled_back(self.name, clean, z)

    @property
    def has_value(self) -> bool:
        return False

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Refuse: there is no value.

        Raises: TypeError, always.
        """
        raise TypeError(f"{self.name}: a score-only prior has no value; expected an energy where one is needed")

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """(x - D(x, sigma)) / sigma^2, in the shape of x."""
        s = self.sigma_of(x, sigma)
        return (x.detach() - self.denoise(x, sigma)) / s**2

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """Refuse: there is no value.

        Raises: TypeError, always.
        """
        return self.forward(x, sigma), x


def pulled_back(where: str, clean: Tensor, z: Tensor) -> tuple[Tensor, Pullback]:
    """Split a graph from z to its denoised image into that image and the vector-Jacobian product.

    Raises: TypeError if there is no graph.
    """
    if not clean.requires_grad:
        raise TypeError(f"{where}: denoise detaches its result from its input, expected a differentiable one")

    def pull(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(clean, z, v.to(clean.dtype), retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if product is None else product.to(v.dtype)

    return clean.detach(), pull


class Likelihood(Potential):
    """L(x) = -log p(y | x) + const: a noise model around a forward operator A, given the measurements y."""

    default_name: ClassVar[str] = "likelihood"
    y: Tensor

    @abstractmethod
    def simulate(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw measurements of x: (*batch, C, H, W) -> (*batch, *measurement)."""

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """A x - y: (*batch, C, H, W) -> (*batch, *measurement)."""

    def log_normaliser(self) -> Tensor:
        """Log of the integral of exp(-L) over all measurements, so that log p(y | x) = -L(x) - log_normaliser.

        It must not depend on x. Shapes: returns a number, float64.
        Raises: TypeError for a likelihood that does not say.
        """
        raise TypeError(f"{self.name}: does not say its normaliser, expected a method log_normaliser")
