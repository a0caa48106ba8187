"""Annealers: frozen sequences of levels whose scales never increase."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from identities_base import Check, Identity, planted

from potentia import annealers
from potentia.annealers import Annealer, Ladder, Level
from potentia.testing._report import require, subject

ANNEALERS = "Annealers"
Case = tuple[Annealer, int, int, float]  # an annealer, where to cut it, a temperature

SIGMAS = st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=2, unique=True).map(sorted)
DESCENTS = (annealers.Cosine, annealers.Geometric, annealers.Karras, annealers.Linear)


@st.composite
def cases(draw: st.DrawFn, make: Callable[[Sequence[Level]], Annealer] | None = None) -> Case:
    low, high = draw(SIGMAS)
    # Two levels at least, and room between neighbours: a few ulps may hold fewer numbers than levels.
    high, num = max(high, 1.01 * low), draw(st.integers(2, 20))
    temperature = draw(st.floats(0, 10))
    descent = draw(st.sampled_from(DESCENTS))(high, low, num, temperature=temperature, steps=draw(st.integers(1, 9)))
    annealer = descent if make is None else make(descent.levels)
    return annealer, draw(st.integers(0, num)), draw(st.integers(0, num)), draw(st.floats(0, 10))


def ordered(case: Case) -> None:
    """sigma_1 > sigma_2 > ... > 0, from sigma_max to sigma_min."""
    annealer = case[0]
    sigmas = [level.sigma for level in annealer]
    falls = all(a > b > 0 for a, b in pairwise(sigmas))
    require(falls, subject(annealer), "scales strictly decrease", sigmas, "a decreasing sequence of positive numbers")
    ends = (annealer.sigma_max, annealer.sigma_min)
    require(ends == (sigmas[0], sigmas[-1]), subject(annealer), "its ends are its scales'", ends, "the first and last")
    require(tuple(sigmas) == annealer.sigmas, subject(annealer), "lists its scales", annealer.sigmas, sigmas)


def cut_and_joined(case: Case) -> None:
    """Slices are those of the list of levels, and joining undoes cutting."""
    annealer, i, j, _ = case
    levels, where = list(annealer), subject(annealer)
    for cut in (slice(i), slice(i, None), slice(i, j), slice(i, j, 2)):
        same = list(annealer[cut]) == levels[cut]
        require(same, where, "slices are those of its levels", list(annealer[cut]), levels[cut])
    whole = annealer[:i] + annealer[i:]
    require(list(whole) == levels, where, "joining undoes cutting", list(whole), levels)
    equal = whole == annealer and hash(whole) == hash(annealer) and (not levels or annealer[:-1] != annealer)
    require(equal, where, "is equal to what has the same levels, and to nothing else", equal, True)


def tempered(case: Case) -> None:
    """A temperature of one's own leaves scales, steps and step sizes alone, and the annealer itself."""
    annealer, _, _, temperature = case
    levels, where = list(annealer), subject(annealer)
    want = [dataclasses.replace(level, temperature=temperature) for level in levels]
    for given in (temperature, [temperature] * len(levels), lambda sigma: temperature):
        got = list(annealer.with_temperature(given))
        require(got == want, where, "with_temperature changes the temperatures alone", got, want)
    require(list(annealer) == levels, where, "is left alone by with_temperature", list(annealer), levels)
    steps = sum(7 if level.steps is None else level.steps for level in levels)
    require(annealer.total_steps(7) == steps, where, "counts its steps", annealer.total_steps(7), steps)


def frozen(case: Case) -> None:
    """Nothing of it can be set."""
    annealer = case[0]
    for name in ("levels", "sigmas", "sigma_max"):
        before = getattr(annealer, name)
        with contextlib.suppress(dataclasses.FrozenInstanceError, AttributeError):
            setattr(annealer, name, None)
        same = getattr(annealer, name) == before
        require(same, subject(annealer), f"is frozen: {name} stays", getattr(annealer, name), before)


ORDER = Check("ordered", ordered, cases(), 50)
JOINS = Check("cut_and_joined", cut_and_joined, cases() | cases(Ladder), 50)
TEMPERED = Check("tempered", tempered, cases() | cases(Ladder), 50)
FROZEN = Check("frozen", frozen, cases() | cases(Ladder), 20)


@dataclass(frozen=True, eq=False, repr=False)
class Given(Annealer):
    """The levels that it is given, as a user might write it; the faults change it."""

    given: tuple[Level, ...]

    def _build(self) -> Sequence[Level]:
        return self.given


class Stalls(Given):
    """The second level repeats the first scale."""

    def _build(self) -> Sequence[Level]:
        return [self.given[0], *self.given]


class OtherEnd(Given):
    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return self.given[-1].sigma / 2


class LosesJoint(Given):
    def __getitem__(self, index: Any) -> Any:
        return _Forgetful(tuple(super().__getitem__(index))) if isinstance(index, slice) else super().__getitem__(index)


class _Forgetful(Given):
    def __add__(self, other: Annealer) -> Ladder:
        return Ladder((*self.levels, *other.levels[1:]))


class OffByOne(Given):
    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return part[1:] if isinstance(index, slice) and index.start else part


class LosesSteps(Given):
    def with_temperature(self, temperature: Any) -> Annealer:
        return Ladder.of(self.sigmas).with_temperature(temperature)


class Thawed(Given):
    def __setattr__(self, name: str, value: object) -> None:
        self.__dict__[name] = value


def broken(kind: Callable[[tuple[Level, ...]], Annealer]) -> st.SearchStrategy[Case]:
    return cases(lambda levels: kind(tuple(levels)))


IDENTITIES = [
    Identity(
        ANNEALERS,
        "descent",
        "σ₁ > σ₂ > … > σₙ > 0 with σ₁ = `sigma_max` and σₙ = `sigma_min`",
        ORDER,
        (
            planted("a scale twice", ORDER, broken(Stalls), "strictly decrease"),
            planted("ends beside the scales", ORDER, broken(OtherEnd), "its ends"),
        ),
    ),
    Identity(
        ANNEALERS,
        "slices and joins",
        "`a[i:j]` holds the levels i to j − 1; `a[:i] + a[i:]` = a; annealers are equal where their levels are",
        JOINS,
        (
            planted("a slice off by one", JOINS, broken(OffByOne), "slices are those"),
            planted("a join that drops a level", JOINS, broken(LosesJoint), "joining undoes"),
        ),
    ),
    Identity(
        ANNEALERS,
        "temperatures",
        "`with_temperature(T)` is the same scales, steps and step sizes at T, given as a number, a list or a function",
        TEMPERED,
        (planted("steps lost on the way", TEMPERED, broken(LosesSteps), "temperatures alone"),),
    ),
    Identity(
        ANNEALERS,
        "immutability",
        "levels and scales cannot be set",
        FROZEN,
        (planted("attributes that can be set", FROZEN, broken(Thawed), "is frozen"),),
    ),
]
TABLES: list[Any] = []
