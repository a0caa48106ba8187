"""The algebra of sums and multiples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from potentia._algebra import Sum, unscaled
from potentia._potential import Likelihood, Potential, Sigma
from potentia.testing._probe import (
    generator_of,
    gradient_size,
    images_of,
    in_precision,
    one_scale,
    per_image,
    rounding_of,
    value_size,
)
from potentia.testing._report import fail, require, require_close, subject


def check_sum(
    a: Potential,
    b: Potential,
    c: Potential,
    x: Tensor,
    sigma: Sigma = None,
    *,
    seed: int | torch.Generator = 0,
    tolerance: float = 1e-12,
) -> None:
    """Check that potentials add up and scale as numbers do, in values, gradients, names and quadratic forms.

    Values and gradients may differ by ``tolerance`` relative to the sum of the terms' sizes: additions in another order
    round differently. Terms without values are compared by their gradients.

    Shapes: x (*batch, C, H, W), which all three take; sigma within the scales of all three.
    Raises: AssertionError that names the classes, the identity, got and expected.
    """
    where = f"{subject(a)} + {subject(b)} + {subject(c)}"
    generator = generator_of(seed)
    rounding = max(rounding_of(t) for t in (a, b, c))
    terms = [in_precision(t, torch.float64) for t in (a, b, c)]
    images, scale = images_of(x, generator), one_scale(sigma)
    compare = _Comparison(where, terms, images, scale, generator, tolerance, rounding)
    a, b, c = terms
    compare("adds up", lambda: a + b + c, [(1.0, a), (1.0, b), (1.0, c)])
    compare("is commutative", lambda: b + a, [(1.0, a), (1.0, b)])
    compare("is associative (brackets on the right)", lambda: a + (b + c), [(1.0, a), (1.0, b), (1.0, c)])
    compare("is what sum() gives", lambda: sum(terms), [(1.0, a), (1.0, b), (1.0, c)])
    compare("is distributive", lambda: 2.5 * (a + b), [(2.5, a), (2.5, b)])
    compare("is distributive (division)", lambda: (a + b) / 4, [(0.25, a), (0.25, b)])
    compare("subtracts", lambda: a + b - c, [(1.0, a), (1.0, b), (-1.0, c)])
    compare("negates", lambda: -(a + b), [(-1.0, a), (-1.0, b)])
    compare("multiplies weights", lambda: 0.5 * (3.0 * a), [(1.5, a)])
    compare("a - a is zero", lambda: a - a, [])
    _check_names(where, a, b, c)
    _check_parts(where, a + b + c, compare)
    _check_forms(where, terms, compare)


class _Comparison:
    """Compares a potential with a weighted sum of others, written out."""

    def __init__(
        self,
        where: str,
        terms: list[Potential],
        x: Tensor,
        sigma: float | None,
        generator: torch.Generator,
        tolerance: float,
        rounding: float,
    ) -> None:
        self.where, self.x, self.sigma = where, x, sigma
        self.tolerance = tolerance
        # A closed-form value_and_grad rounds its way apart from forward and grad.
        self.rounding = max(tolerance, rounding)
        self.zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        self.slope = sum((gradient_size(t, x, sigma, generator) for t in terms), start=self.zero)
        self.has_value = all(t.has_value for t in terms)
        self.height = self.zero
        if self.has_value:
            self.height = sum((value_size(t, x, sigma, generator) for t in terms), start=self.zero)

    def __call__(self, identity: str, make: Callable[[], object], expected: list[tuple[float, Potential]]) -> None:
        try:
            got = make()
        except Exception as err:
            # A check answers in one way only, whatever the class under test does.
            got = f"{type(err).__name__} ({err})"
            raise AssertionError(f"{self.where}: {identity}: got {got}, expected a potential") from err
        if not isinstance(got, Potential):
            fail(self.where, identity, f"a {type(got).__name__}", "a potential")
        x, s = self.x, self.sigma
        want = sum((w * t.grad(x, s) for w, t in expected), start=torch.zeros_like(x))
        room = 4 * self.tolerance
        require_close(self.where, f"{identity} (gradient)", got.grad(x, s), want, per_image(room * self.slope))
        if not self.has_value:
            return
        total = sum((w * t(x, s).detach() for w, t in expected), start=self.zero)
        require_close(self.where, f"{identity} (value)", got(x, s), total, room * self.height)
        value, grad = got.value_and_grad(x, s)
        require_close(self.where, f"{identity} (value_and_grad)", value, total, self.rounding * self.height)
        require_close(self.where, f"{identity} (value_and_grad)", grad, want, per_image(self.rounding * self.slope))


def _check_names(where: str, a: Potential, b: Potential, c: Potential) -> None:
    left, right = (a + b) + c, a + (b + c)
    names = list(left.terms)
    count = sum(len(t.terms) if isinstance(t, Sum) else 1 for t in (a, b, c))
    require(len(names) == count, where, "is flat, a term each", f"{len(names)} terms", f"{count} terms")
    require(list(right.terms) == names, where, "has names whatever its brackets", list(right.terms), names)
    added: Any = sum([a, b, c])
    require(list(added.terms) == names, where, "has the same names when made by sum()", list(added.terms), names)
    doubled: Any = 2.0 * left
    scaled = list(doubled.terms)
    require(scaled == names, where, "keeps its names when scaled", scaled, names)
    twice = list((a + a).terms)
    require(len(set(twice)) == len(twice), where, "gives equal terms names of their own", twice, "unique names")


def _check_parts(where: str, total: Sum, compare: _Comparison) -> None:
    """Prior and likelihood partition the terms."""
    wanted = {
        kind: [n for n, t in total.terms.items() if isinstance(unscaled(t), Likelihood) == (kind == "likelihood")]
        for kind in ("prior", "likelihood")
    }
    parts = {"prior": total.prior, "likelihood": total.likelihood}
    for kind, part in parts.items():
        names = [] if part is None else list(part.terms) if isinstance(part, Sum) else [_name_in(total, part)]
        require(names == wanted[kind], where, f"its {kind} has the right terms", names, wanted[kind])
    present = [part for part in parts.values() if part is not None]
    compare("is its prior plus its likelihood", lambda: total, [(1.0, part) for part in present])


def _name_in(total: Sum, part: Potential) -> str:
    return next((n for n, t in total.terms.items() if t is part), part.name)


def _check_forms(where: str, terms: list[Potential], compare: _Comparison) -> None:
    """The quadratic form of the sum is the sum of the forms, and None if one is missing."""
    x, sigma = compare.x, compare.sigma
    forms = [t.quadratic(sigma) for t in terms]
    form = (terms[0] + terms[1] + terms[2]).quadratic(sigma)
    present = [f for f in forms if f is not None]
    complete = len(present) == len(forms)
    got = "no form" if form is None else "a form"
    require(
        (form is not None) == complete,
        where,
        "has a quadratic form if all its terms do",
        got,
        f"{len(present)} of {len(forms)}",
    )
    if form is None:
        return
    want = sum((f.grad(x) for f in present), start=torch.zeros_like(x))
    within = per_image(1e3 * compare.tolerance * compare.slope)
    require_close(where, "its quadratic form is the sum of the terms' (gradient)", form.grad(x), want, within)
    values = torch.stack([f.value(x) for f in present])
    value, within = values.sum(0), 1e3 * compare.tolerance * (1 + values.abs().sum(0))
    require_close(where, "its quadratic form is the sum of the terms' (value)", form.value(x), value, within)
