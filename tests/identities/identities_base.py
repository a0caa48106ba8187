"""What an entry of the catalogue is: an identity, the check that looks for it, and the faults that it catches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

PUBLIC = "check_"  # how the names of the checks in potentia.testing begin


@dataclass(frozen=True)
class Check:
    """A function that raises AssertionError for a case that breaks an identity, and a strategy of sound cases.

    Its name is that of the function in ``potentia.testing`` where it starts with ``check_``, else one of this suite.
    """

    name: str
    run: Callable[[Any], None]
    sound: SearchStrategy[Any]
    max_examples: int = 10

    def holds(self) -> None:
        """Run over sound cases."""
        _over(self.sound, self.run, self.max_examples, tuple(Phase))


@dataclass(frozen=True)
class Fault:
    """A case that breaks an identity on purpose; ``says`` is a pattern of what the check has to say about it."""

    text: str
    run: Callable[[], None]
    says: str


@dataclass(frozen=True)
class Identity:
    """What holds, for what, which check looks, and what it is shown to catch."""

    of: str
    name: str
    statement: str
    check: Check
    faults: tuple[Fault, ...]


def planted(text: str, check: Check, faulty: SearchStrategy[Any], says: str, *, max_examples: int = 20) -> Fault:
    """A fault that the check is to find in cases of this kind."""
    # The first failure is enough: nothing is shrunk.
    return Fault(text, lambda: _over(faulty, check.run, max_examples, (Phase.generate,)), says)


def from_table(table: Iterable[tuple[Any, ...]], *names: str) -> tuple[Fault, ...]:
    """Faults of a table of name, check, faulty maker, sound maker and pattern, by their names."""
    rows = {row[0]: row for row in table}
    return tuple(Fault(name, lambda row=rows[name]: row[1](row[2]()), rows[name][-1]) for name in names)


def _over(cases: SearchStrategy[Any], run: Callable[[Any], None], examples: int, phases: tuple[Phase, ...]) -> None:
    @settings(
        max_examples=examples,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases)
    def every(case: Any) -> None:
        run(case)

    every()


# Faults whose names, in the tables that they come from, say too little by themselves.
LONGER = {
    "value_and_grad, value": "`value_and_grad` with another value",
    "value_and_grad, gradient": "`value_and_grad` with another gradient",
    "two batch dimensions": "two batch dimensions taken for one",
    "denoiser with sigma for sigma^2": "denoiser with σ in place of σ²",
    "oracle, mean": "mean off by 0.001",
    "oracle, denoiser": "denoiser off by a thousandth",
    "oracle, value": "value off by a thousandth",
    "mode": "mode of the other sign",
    "multiple of a form": "a multiple that leaves b alone",
    "quadratic of a sum": "a form that forgets the other terms",
    "affine": "an affine map",
    "gram of varying weights": "Gram structure of the mean weight",
    "output_shape": "`output_shape` off by one",
    "input_shape": "`input_shape` off by one",
    "complex_output": "`complex_output` of the other field",
    "output_dims": "`output_dims` off by one",
}


def page_rows(identities: Iterable[Identity]) -> list[str]:
    """The Markdown tables, one for each class of things: identity, statement, planted faults, check."""
    lines: list[str] = []
    heading = ""
    for one in identities:
        if one.of != heading:
            heading = one.of
            lines += ["", f"## {heading}", "", "| identity | statement | planted faults | caught by |"]
            lines += ["|---|---|---|---|"]
        cells = (
            one.name,
            one.statement,
            "; ".join(LONGER.get(f.text, f.text) for f in one.faults),
            f"`{one.check.name}`",
        )
        if any("|" in cell for cell in cells):
            raise ValueError(f"{one.name}: a cell holds a bar, expected none")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]
