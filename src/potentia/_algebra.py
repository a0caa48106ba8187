"""Sums and multiples of potentials, and the tree that prints them."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from potentia._potential import Likelihood, Potential, Scales, Sigma
from potentia._quadratic import Quadratic
from potentia._validate import shape_text


def is_scalar(weight: object) -> bool:
    """Whether an operand of ``*`` or ``/`` is a real number (a 0-d tensor or NumPy scalar counts, a bool does not)."""
    if isinstance(weight, bool | complex | Potential):
        return False
    return isinstance(weight, int | float) or (getattr(weight, "shape", None) == () and hasattr(weight, "__float__"))


def reciprocal(name: str, divisor: Any) -> float:
    """One over a number.

    Raises: ZeroDivisionError that names the potential.
    """
    if float(divisor) == 0:
        raise ZeroDivisionError(f"{name}: a potential cannot be divided by zero")
    return 1.0 / float(divisor)


def scale(term: Potential, weight: Any) -> "Scaled | Sum":
    """Multiply a potential by a number; a multiple of a sum is the sum of the multiples.

    Raises: ValueError if the number is not finite.
    """
    w = float(weight)
    if not math.isfinite(w):
        raise ValueError(f"{term.name}: the weight must be finite, got {w}")
    if isinstance(term, Sum):
        return Sum(*(_Named(n, scale(t, w)) for n, t in term.terms.items()))
    if isinstance(term, Scaled):
        product = Scaled(term.term, w * term.weight)
        product.name = term.name
        return product
    return Scaled(term, w)


class Scaled(Potential):
    """weight * U: a tempered or re-weighted term.

    A power of a density is no longer a smoothed prior, so that a scaled energy has no denoiser.
    """

    def __init__(self, term: Potential, weight: float) -> None:
        super().__init__()
        self.term = term
        self.weight = weight
        self.name = term.name

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return self.weight * cast(Tensor, self.term(x, sigma))

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        value, grad = self.term.value_and_grad(x, sigma)
        return self.weight * value, self.weight * grad

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return self.weight * self.term.grad(x, sigma)

    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:
        """The scaled form; None for a negative weight, whose form is not positive semi-definite."""
        form = self.term.quadratic(sigma) if self.weight >= 0 else None
        return None if form is None else form * self.weight

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        return self.term.event_shape

    @property
    def is_complex(self) -> bool | None:
        return self.term.is_complex

    @property
    def scales(self) -> Scales | None:
        return self.term.scales

    @property
    def multiscale_weight(self) -> float:
        return self.weight * self.term.multiscale_weight

    @property
    def has_value(self) -> bool:
        return self.term.has_value

    def check(self, x: Tensor) -> None:
        self.term.check(x)

    def describe(self) -> str:
        return f"{self.weight:g} * {self.term.describe()}"

    def parts(self) -> list[tuple[str, Any]]:
        return self.term.parts()


class _Named:
    """A term under the name that its sum is to know it by, so that a part of a sum keeps the names of the whole."""

    def __init__(self, name: str, term: Potential) -> None:
        self.name = name
        self.term = term


class Sum(Potential):
    """U(x) = sum of terms, flattened, in order, each under a name of its own.

    Shapes: as the terms'. Names: a term's own; a second "tv" becomes "tv_2".
    Raises: TypeError for an operand that is no potential; ValueError if two terms take different images.
    """

    default_name: ClassVar[str] = "sum"

    def __init__(self, *terms: "Potential | _Named") -> None:
        super().__init__()
        flat = list(_flatten(terms))
        if not flat:
            raise ValueError("a sum needs at least one term, got none")
        names: list[str] = []
        for item in flat:
            names.append(_free_name(item.name, names))
        self._names = tuple(names)
        self._terms = nn.ModuleList(item.term for item in flat)
        _check_compatible(self.terms)

    @property
    def terms(self) -> Mapping[str, Potential]:
        """The terms by name, in order."""
        return MappingProxyType(dict(zip(self._names, cast(list[Potential], list(self._terms)), strict=True)))

    @property
    def prior(self) -> Potential | None:
        """What is no likelihood: the one term, their sum, or None."""
        return self._part(False)

    @property
    def likelihood(self) -> Potential | None:
        """The likelihoods: the one term, their sum, or None."""
        return self._part(True)

    def _part(self, wanted: bool) -> Potential | None:
        found = {n: t for n, t in self.terms.items() if isinstance(unscaled(t), Likelihood) == wanted}
        if len(found) <= 1:
            return next(iter(found.values()), None)
        return Sum(*(_Named(n, t) for n, t in found.items()))

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        first, *rest = self.terms.values()
        total = cast(Tensor, first(x, sigma))
        for term in rest:
            total = total + term(x, sigma)
        return total

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        first, *rest = self._weighted()
        value, total = _times(first[1], *first[0].value_and_grad(x, sigma))
        own = first[1] != 1
        for term, weight in rest:
            v, grad = term.value_and_grad(x, sigma)
            value, total, own = value.add(v, alpha=weight), _added(total, grad, weight, own), True
        return value, total

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        first, *rest = self._weighted()
        (total,) = _times(first[1], first[0].grad(x, sigma))
        own = first[1] != 1
        for term, weight in rest:
            total, own = _added(total, term.grad(x, sigma), weight, own), True
        return total

    def _weighted(self) -> list[tuple[Potential, float]]:
        """The terms without their weights, and the weights, which adding up takes along."""
        terms = cast(list[Potential], list(self._terms))
        return [(term.term, term.weight) if type(term) is Scaled else (term, 1.0) for term in terms]

    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:
        """The sum of the terms' forms; None unless every term has one."""
        forms = [term.quadratic(sigma) for term in self.terms.values()]
        total = forms[0]
        for form in forms[1:]:
            total = None if total is None or form is None else total + form
        return total

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        return next((t.event_shape for t in self.terms.values() if t.event_shape is not None), None)

    @property
    def is_complex(self) -> bool | None:
        return next((t.is_complex for t in self.terms.values() if t.is_complex is not None), None)

    @property
    def scales(self) -> Scales | None:
        """The scales that all multi-scale terms share, or None without such terms."""
        each = [t.scales for t in self.terms.values() if t.scales is not None]
        return (max(s[0] for s in each), min(s[1] for s in each)) if each else None

    @property
    def multiscale_weight(self) -> float:
        return sum(t.multiscale_weight for t in self.terms.values())

    @property
    def has_value(self) -> bool:
        return all(t.has_value for t in self.terms.values())

    def describe(self) -> str:
        return f"Sum of {len(self._names)} term{'s' if len(self._names) > 1 else ''}"

    def parts(self) -> list[tuple[str, Any]]:
        return list(self.terms.items())


def _times(weight: float, *factors: Tensor) -> tuple[Tensor, ...]:
    return factors if weight == 1 else tuple(weight * t for t in factors)


def _added(total: Tensor, grad: Tensor, weight: float, own: bool) -> Tensor:
    """Add a multiple to a total, in place if that is the sum's own: what a term returned may be held elsewhere."""
    alike = total.shape == grad.shape and total.dtype == grad.dtype
    if own and alike and not (total.requires_grad or grad.requires_grad):
        return total.add_(grad, alpha=weight)
    return total.add(grad, alpha=weight)


def unscaled(term: Potential) -> Potential:
    """The potential below a weight."""
    return term.term if isinstance(term, Scaled) else term


def _flatten(items: tuple[Any, ...]) -> Iterator[_Named]:
    for item in items:
        if isinstance(item, _Named):
            yield item
        elif isinstance(item, Sum):
            # A term's own name, not the one it had in that sum: so the names do not depend on the bracketing.
            for term in item.terms.values():
                yield _Named(term.name, term)
        elif isinstance(item, Potential):
            yield _Named(item.name, item)
        else:
            raise TypeError(f"a sum is made of potentials, got {type(item).__name__}")


def _free_name(name: str, taken: list[str]) -> str:
    if name not in taken:
        return name
    k = 2
    while f"{name}_{k}" in taken:
        k += 1
    return f"{name}_{k}"


def _check_compatible(terms: Mapping[str, Potential]) -> None:
    shaped = [(n, t.event_shape) for n, t in terms.items() if t.event_shape is not None]
    for name, shape in shaped[1:]:
        first, want = shaped[0]
        if shape != want:
            raise ValueError(
                f"{first} takes images of shape {shape_text(want or ())} and {name} images of shape "
                f"{shape_text(shape or ())}; the terms of a sum must agree"
            )
    fields = [(n, t.is_complex) for n, t in terms.items() if t.is_complex is not None]
    for name, kind in fields[1:]:
        if kind != fields[0][1]:
            words = {True: "complex", False: "real"}
            raise ValueError(
                f"{fields[0][0]} takes {words[bool(fields[0][1])]} images and {name} {words[bool(kind)]} ones; "
                "the terms of a sum must agree"
            )
    each = [(n, t.scales) for n, t in terms.items() if t.scales is not None]
    if each and max(s[0] for _, s in each) > min(s[1] for _, s in each):
        listed = ", ".join(f"{n} {s[0]:g} to {s[1]:g}" for n, s in each)
        raise ValueError(f"the scales of the terms do not overlap: {listed}")


def tree(node: Any) -> str:
    """Print a potential and what it is made of, a line each."""
    lines = [node.describe()]
    _branches(node, "", lines)
    return "\n".join(lines)


def _branches(node: Any, indent: str, lines: list[str]) -> None:
    children = node.parts() if hasattr(node, "parts") else []
    for k, (label, child) in enumerate(children):
        last = k == len(children) - 1
        text = child.describe() if hasattr(child, "describe") else repr(child)
        lines.append(
            f"{indent}{'└─' if last else '├─'} {label}: {text}" if label else f"{indent}{'└─' if last else '├─'} {text}"
        )
        _branches(child, indent + ("   " if last else "│  "), lines)
