"""What sums and multiples of potentials promise."""

from collections.abc import Mapping

from torch import Tensor

from potentia._algebra import Sum
from potentia._potential import Potential, Sigma
from potentia.testing._energy import evaluate
from potentia.testing._support import PER_CALL, in_double, require, require_close, to_double


def check_sum(
    a: Potential, b: Potential, c: Potential, x: Tensor, sigma: Sigma = None, *, rounding: float = PER_CALL
) -> None:
    """Check that three potentials add, subtract and scale as functions do, values and gradients alike.

    ``+`` is associative, names included, and commutative; numbers distribute over it; ``sum()`` works; a - a vanishes;
    the quadratic form of a sum is the sum of the forms; the prior and the likelihood part the terms between them.

    Shapes: x (*batch, C, H, W), an image that all three take.
    Raises: AssertionError naming the classes, the identity, what was got and expected.
    """
    where = " + ".join(type(p).__name__ for p in (a, b, c))
    p, q, r = (in_double(t) for t in (a, b, c))
    z = to_double(x)
    s = sigma.to(z.real.dtype) if isinstance(sigma, Tensor) else sigma
    alike = _Comparison(where, z, s, rounding)
    values = [dict(evaluate(t, z, s)) for t in (p, q)]
    alike.values("a + b adds up", p + q, {k: v + values[1][k] for k, v in values[0].items() if k in values[1]})
    alike.same("+ is commutative", p + q, q + p, ordered=False)
    alike.same("+ is associative", (p + q) + r, p + (q + r))
    alike.same("sum() is +", sum([p, q, r]), p + q + r)
    alike.same("a number distributes over +", 2.5 * (p + q), 2.5 * p + 2.5 * q)
    alike.same("numbers multiply", 2.0 * (1.5 * p), 3.0 * p)
    alike.same("division is multiplication by the reciprocal", (p + q) / 4, 0.25 * (p + q))
    alike.values("a number scales", 2.5 * p, {k: 2.5 * v for k, v in values[0].items()})
    alike.values("numbers add up", 2.0 * p + 0.5 * p, {k: 2.5 * v for k, v in values[0].items()})
    alike.values("a - a is nothing", p - p, {k: 0 * v for k, v in values[0].items()})
    alike.same("a - b is a + (-b)", p - q, p + (-q))
    _check_names(where, (p, q, r))
    _check_forms(where, (p, q, r), z, s, rounding)
    _check_parts(alike, (p, q, r))


class _Comparison:
    def __init__(self, where: str, x: Tensor, sigma: Sigma, rounding: float) -> None:
        self.where, self.x, self.sigma, self.rounding = where, x, sigma, rounding

    def values(self, identity: str, got: Potential, want: Mapping[str, Tensor]) -> None:
        # Whatever cancels has lost the rounding of what went into it.
        out = dict(evaluate(got, self.x, self.sigma))
        require(out.keys() == want.keys(), f"{self.where}: {identity}: got {[*out]}, expected {[*want]}")
        terms = [dict(evaluate(t, self.x, self.sigma)) for t in terms_of(got).values()]
        for key, value in want.items():
            largest = max(float(t[key].abs().max()) for t in terms)
            require_close(self.where, f"{identity}, {key}", out[key], value, atol=self.rounding * largest)

    def same(self, identity: str, got: object, want: Potential, *, ordered: bool = True) -> None:
        require(isinstance(got, Potential), f"{self.where}: {identity}: got {type(got).__name__}, expected a potential")
        assert isinstance(got, Potential)  # noqa: S101 - for the type checker
        names = [*terms_of(got)], [*terms_of(want)]
        named = names[0] == names[1] if ordered else sorted(names[0]) == sorted(names[1])
        require(named, f"{self.where}: {identity}, names: got {names[0]}, expected {names[1]}")
        self.values(identity, got, dict(evaluate(want, self.x, self.sigma)))


def terms_of(potential: Potential) -> Mapping[str, Potential]:
    """The terms of a sum by name; a potential that is no sum is its own single term."""
    return potential.terms if isinstance(potential, Sum) else {potential.name: potential}


def _check_names(where: str, terms: tuple[Potential, Potential, Potential]) -> None:
    p, q, r = terms
    names = [*terms_of(p + q + r + p)]
    count = sum(len(terms_of(t)) for t in (p, q, r, p))
    require(len(names) == len(set(names)) == count, f"{where}: names are unique: got {names}, expected {count} of them")


def _check_forms(
    where: str, terms: tuple[Potential, Potential, Potential], x: Tensor, sigma: Sigma, rounding: float
) -> None:
    p, q, _ = terms
    forms = p.quadratic(sigma), q.quadratic(sigma)
    whole = (p + q).quadratic(sigma)
    expected = forms[0] is not None and forms[1] is not None
    found = "none" if whole is None else "one"
    require(
        (whole is not None) == expected,
        f"{where}: quadratic of a sum: got {found}, expected {'one' if expected else 'none'}, as its terms have",
    )
    if whole is None or forms[0] is None or forms[1] is None:
        return
    for label, got, each in (
        ("value", whole.value(x), [f.value(x) for f in forms if f is not None]),
        ("gradient", whole.grad(x), [f.grad(x) for f in forms if f is not None]),
    ):
        largest = max(float(t.abs().max()) for t in each)
        identity = f"quadratic of a sum is the sum of quadratics, {label}"
        require_close(where, identity, got, each[0] + each[1], atol=rounding * largest)
    scaled = (2.5 * p).quadratic(sigma)
    require(scaled is not None, f"{where}: quadratic of a multiple: got none, expected the multiple of the form")
    if scaled is not None:
        require_close(where, "quadratic of a multiple", scaled.value(x), 2.5 * forms[0].value(x), rtol=rounding)


def _check_parts(alike: _Comparison, terms: tuple[Potential, Potential, Potential]) -> None:
    whole = terms[0] + terms[1] + terms[2]
    parts = [t for t in (whole.prior, whole.likelihood) if t is not None]
    names = [n for t in parts for n in _names_within(t, whole)]
    require(
        sorted(names) == sorted(whole.terms),
        f"{alike.where}: prior and likelihood part the terms: got {names}, expected {[*whole.terms]}",
    )
    total = [dict(evaluate(t, alike.x, alike.sigma)) for t in parts]
    keys = set.intersection(*(set(t) for t in total)) & {k for k, _ in evaluate(whole, alike.x, alike.sigma)}
    for key in keys:
        want = total[0][key] if len(total) == 1 else total[0][key] + total[1][key]
        got = dict(evaluate(whole, alike.x, alike.sigma))[key]
        atol = alike.rounding * max(float(t[key].abs().max()) for t in total)
        require_close(alike.where, f"prior and likelihood add up to the whole, {key}", got, want, atol=atol)


def _names_within(part: Potential, whole: Sum) -> list[str]:
    """The names by which a sum knows the terms of one of its parts."""
    if isinstance(part, Sum):
        return [*part.terms]
    return [n for n, t in whole.terms.items() if t is part]
