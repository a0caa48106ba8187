import copy
import dataclasses
import inspect
import itertools
import math
import operator
import pickle
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from potentia import annealers
from potentia.annealers import Annealer, Constant, Cosine, Geometric, Karras, Ladder, Level, Linear, _checks

SIGMAS = st.floats(1e-6, 1e6)
TEMPERATURES = st.floats(0, 10)
STEPS = st.none() | st.integers(1, 50)
STEP_SIZES = st.floats(1e-3, 10)

CONCRETE: dict[str, type[Annealer]] = {
    name: getattr(annealers, name)
    for name in annealers.__all__
    if inspect.isclass(getattr(annealers, name))
    and issubclass(getattr(annealers, name), Annealer)
    and not inspect.isabstract(getattr(annealers, name))
}


@st.composite
def ladders(draw: st.DrawFn, min_size: int = 0) -> Ladder:
    sigmas = sorted(draw(st.lists(SIGMAS, min_size=min_size, max_size=8)), reverse=True)
    return Ladder([Level(s, draw(TEMPERATURES), draw(STEPS), draw(STEP_SIZES)) for s in sigmas])


@st.composite
def rest(draw: st.DrawFn) -> dict[str, Any]:
    return {"temperature": draw(TEMPERATURES), "steps": draw(STEPS), "step_size": draw(STEP_SIZES)}


@st.composite
def arguments(draw: st.DrawFn, of: type[Annealer]) -> dict[str, Any]:
    """Keyword arguments of an annealer by the names of its fields: a field not known here fails, and is added."""
    if of is Ladder:
        return {"levels": draw(ladders(min_size=1)).levels}
    known: dict[str, st.SearchStrategy[Any]] = {
        "num_levels": st.integers(2, 40),
        "rho": st.floats(0.2, 20),
        "sigma": SIGMAS,
        "temperature": TEMPERATURES,
        "steps": STEPS,
        "step_size": STEP_SIZES,
    }
    names = [f.name for f in dataclasses.fields(of) if f.init]
    ends = st.lists(SIGMAS, min_size=2, max_size=2, unique=True).map(sorted)
    given_: dict[str, Any] = {}
    if {"sigma_min", "sigma_max"} <= set(names):
        given_["sigma_min"], given_["sigma_max"] = draw(ends)
    return given_ | {name: draw(known[name]) for name in names if name not in given_}


def concrete() -> st.SearchStrategy[Annealer]:
    return st.sampled_from(sorted(CONCRETE)).flatmap(
        lambda name: arguments(CONCRETE[name]).map(lambda kwargs: CONCRETE[name](**kwargs))
    )


every = pytest.mark.parametrize("cls", CONCRETE.values(), ids=CONCRETE)
descents = pytest.mark.parametrize(
    "cls", [c for c in CONCRETE.values() if "sigma_max" in inspect.signature(c).parameters], ids=lambda c: c.__name__
)


def test_exports_hold_every_annealer_of_the_package() -> None:
    assert {"Karras", "Geometric", "Linear", "Cosine", "Constant", "Ladder"} <= set(CONCRETE)

    def below(cls: type[Annealer]) -> set[type[Annealer]]:
        return {cls}.union(*(below(c) for c in cls.__subclasses__()))

    public = {c for c in below(Annealer) if c.__module__.startswith("potentia.") and not c.__name__.startswith("_")}
    assert {c.__name__ for c in public} <= set(annealers.__all__)


@every
@given(st.data())
def test_an_annealer_is_a_frozen_sequence_of_levels(cls: type[Annealer], data: st.DataObject) -> None:
    kwargs = data.draw(arguments(cls))
    annealer = cls(**kwargs)
    assert isinstance(annealer, Sequence)
    assert all(isinstance(level, Level) for level in annealer)
    assert all(a >= b > 0 for a, b in itertools.pairwise(annealer.sigmas))
    assert annealer.sigmas == tuple(level.sigma for level in annealer)
    assert (annealer.sigma_max, annealer.sigma_min) == (annealer.sigmas[0], annealer.sigmas[-1])
    assert len(annealer) == len(list(annealer)) == kwargs.get("num_levels", len(annealer.levels))
    for name in ("temperature", "steps", "step_size"):
        assert {getattr(level, name) for level in annealer} == {kwargs[name]} if name in kwargs else True
    for name in [*kwargs, "levels", "anything"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(annealer, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(annealer, name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        annealer[0].sigma = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        annealer[0] = Level(1.0)  # type: ignore[index]


@every
@given(st.data())
def test_equality_hash_repr_and_copies_go_by_the_levels(cls: type[Annealer], data: st.DataObject) -> None:
    annealer = cls(**data.draw(arguments(cls)))
    ladder = Ladder(list(annealer))
    assert annealer == ladder
    assert ladder == annealer
    assert hash(annealer) == hash(ladder)
    assert annealer != ladder[1:]
    assert annealer != list(annealer)
    assert annealer != annealer.with_temperature(11.0)
    assert eval(repr(annealer), vars(annealers)) == annealer
    for twin in (copy.copy(annealer), copy.deepcopy(annealer), pickle.loads(pickle.dumps(annealer))):
        assert type(twin) is cls
        assert twin == annealer


@descents
@given(st.data())
def test_descents_meet_their_ends_exactly(cls: type[Annealer], data: st.DataObject) -> None:
    kwargs = data.draw(arguments(cls))
    annealer = cls(**kwargs)
    assert annealer.sigmas[0] == kwargs["sigma_max"]
    assert annealer.sigmas[-1] == kwargs["sigma_min"]


@descents
@given(bottom=SIGMAS, ulps=st.integers(1, 5), num_levels=st.integers(2, 20))
def test_descents_over_a_few_ulps_stay_between_their_ends(
    cls: Callable[..., Annealer], bottom: float, ulps: int, num_levels: int
) -> None:
    top = bottom
    for _ in range(ulps):
        top = math.nextafter(top, math.inf)
    sigmas = cls(sigma_max=top, sigma_min=bottom, num_levels=num_levels).sigmas
    assert all(top >= a >= b >= bottom for a, b in itertools.pairwise(sigmas))


@descents
def test_descents_over_the_whole_range_of_floats_neither_overflow_nor_reach_zero(cls: Callable[..., Annealer]) -> None:
    sigmas = cls(sigma_max=1.7e308, sigma_min=5e-324, num_levels=50).sigmas
    assert all(1.7e308 >= a >= b >= 5e-324 for a, b in itertools.pairwise(sigmas))


@descents
@given(sigma=SIGMAS)
def test_one_level_stands_at_one_sigma(cls: Callable[..., Annealer], sigma: float) -> None:
    assert cls(sigma_max=sigma, sigma_min=sigma, num_levels=1).sigmas == (sigma,)


@given(low=st.floats(1e-3, 1), ratio=st.floats(1.5, 1e4), n=st.integers(2, 40), rho=st.floats(1, 12))
def test_karras_follows_its_published_formula(low: float, ratio: float, n: int, rho: float) -> None:
    # As k-diffusion writes it, in numpy: agreement up to rounding, which the power rho multiplies.
    ramp = np.linspace(0, 1, n)
    high_root, low_root = (low * ratio) ** (1 / rho), low ** (1 / rho)
    expected = (high_root + ramp * (low_root - high_root)) ** rho
    np.testing.assert_allclose(Karras(low * ratio, low, n, rho).sigmas, expected, rtol=1e-12)


def test_karras_with_rho_one_is_linear() -> None:
    np.testing.assert_allclose(Karras(10, 0.1, 12, rho=1).sigmas, Linear(10, 0.1, 12).sigmas, rtol=1e-13)


def test_karras_at_a_large_rho_tends_to_geometric() -> None:
    # The exponent's next order is log(ratio)^2 u (1 - u) / (2 rho): 2.7e-6 for a ratio of 100 at most.
    np.testing.assert_allclose(Karras(10, 0.1, 12, rho=1e6).sigmas, Geometric(10, 0.1, 12).sigmas, rtol=3e-6)


@given(low=SIGMAS, ratio=st.floats(1.01, 1e6), n=st.integers(2, 40))
def test_geometric_keeps_its_ratio(low: float, ratio: float, n: int) -> None:
    sigmas = Geometric(low * ratio, low, n).sigmas
    ratios = [b / a for a, b in itertools.pairwise(sigmas)]
    np.testing.assert_allclose(ratios, (1 / ratio) ** (1 / (n - 1)), rtol=1e-13)


@given(low=SIGMAS, ratio=st.floats(1.01, 1e6), n=st.integers(2, 40))
def test_linear_keeps_its_gap(low: float, ratio: float, n: int) -> None:
    high = low * ratio
    exact = [Fraction(high) + Fraction(i, n - 1) * (Fraction(low) - Fraction(high)) for i in range(n)]
    np.testing.assert_allclose(Linear(high, low, n).sigmas, [float(e) for e in exact], rtol=1e-14)


@given(low=SIGMAS, ratio=st.floats(1.01, 1e6), n=st.integers(2, 40))
def test_cosine_is_half_a_wave(low: float, ratio: float, n: int) -> None:
    high = low * ratio
    half_angle = np.pi * np.arange(n) / (2 * (n - 1))
    expected = high * np.cos(half_angle) ** 2 + low * np.sin(half_angle) ** 2
    np.testing.assert_allclose(Cosine(high, low, n).sigmas, expected, rtol=0, atol=1e-15 * 4 * high)


@given(sigma=SIGMAS, n=st.integers(1, 20))
def test_constant_stays(sigma: float, n: int) -> None:
    assert Constant(sigma, n).sigmas == (sigma,) * n
    assert Constant(sigma) == Ladder([Level(sigma)])


@given(annealer=concrete(), data=st.data())
def test_slices_and_indices_are_those_of_the_list(annealer: Annealer, data: st.DataObject) -> None:
    levels = list(annealer)
    index = data.draw(st.slices(len(levels)).filter(lambda s: s.step is None or s.step > 0))
    part = annealer[index]
    assert isinstance(part, Ladder)
    assert list(part) == levels[index]
    i = data.draw(st.integers(-len(levels), len(levels) - 1))
    assert annealer[i] == levels[i]
    with pytest.raises(IndexError):
        annealer[len(levels)]
    assert levels[0] in annealer
    assert annealer.index(levels[0]) == 0


def test_a_slice_that_climbs_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma must never increase"):
        Karras(10, 1, 3)[::-1]


@given(ladders(), st.integers(0, 8), st.integers(0, 8))
def test_joining_is_associative_and_undoes_cutting(ladder: Ladder, i: int, j: int) -> None:
    a, b, c = ladder[: min(i, j)], ladder[min(i, j) : max(i, j)], ladder[max(i, j) :]
    assert (a + b) + c == a + (b + c) == ladder
    assert sum([b, c], start=a) == ladder
    assert isinstance(a + b, Ladder)
    assert Ladder(()) + ladder == ladder + Ladder(()) == ladder


@given(concrete(), concrete())
def test_joining_refuses_to_climb(a: Annealer, b: Annealer) -> None:
    assume(b.sigma_max > a.sigma_min)
    with pytest.raises(ValueError, match=r"Ladder: sigma must never increase, got .* at level \d+"):
        a + b


def test_only_annealers_are_joined() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        operator.add(Karras(10, 1, 3), [Level(0.5)])


@given(concrete(), TEMPERATURES, STEPS, STEP_SIZES)
def test_one_value_for_all_levels_keeps_the_family(
    annealer: Annealer, temperature: float, steps: int | None, step_size: float
) -> None:
    before = list(annealer)
    changed = annealer.with_temperature(temperature).with_steps(steps).with_step_size(step_size)
    assert type(changed) is type(annealer)
    assert list(changed) == [Level(s, temperature, steps, step_size) for s in annealer.sigmas]
    assert list(annealer) == before


@given(concrete(), st.data())
def test_a_value_for_each_level(annealer: Annealer, data: st.DataObject) -> None:
    n = len(annealer)

    def one_each(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=n, max_size=n))

    temperatures, steps, sizes = one_each(TEMPERATURES), one_each(STEPS), one_each(STEP_SIZES)
    changed = annealer.with_temperature(temperatures).with_steps(steps).with_step_size(sizes)
    columns = zip(annealer.sigmas, temperatures, steps, sizes, strict=True)
    assert list(changed) == [Level(*column) for column in columns]
    assert changed.total_steps(7) == sum(7 if s is None else s for s in steps)


@given(concrete())
def test_a_function_of_sigma(annealer: Annealer) -> None:
    changed = annealer.with_temperature(lambda sigma: sigma / 2).with_steps(lambda sigma: 3 if sigma > 1 else None)
    assert [level.temperature for level in changed] == [sigma / 2 for sigma in annealer.sigmas]
    assert [level.steps for level in changed] == [3 if sigma > 1 else None for sigma in annealer.sigmas]
    assert changed.sigmas == annealer.sigmas


def test_total_steps_takes_the_default_where_a_level_has_none() -> None:
    assert Karras(10, 1, 4).total_steps(5) == 20
    assert Karras(10, 1, 4, steps=3).total_steps(5) == 12
    assert Ladder(()).total_steps(5) == 0
    with pytest.raises(ValueError, match="total_steps: default must be one or more, got 0"):
        Karras(10, 1, 4).total_steps(0)


def test_ladder_of_sigmas() -> None:
    expected = [Level(3.0, 0.5, 4, 0.1), Level(2.0, 0.5, 4, 0.1)]
    assert list(Ladder.of([3, 2], temperature=0.5, steps=4, step_size=0.1)) == expected


def test_reprs_can_be_read() -> None:
    assert repr(Karras(10, 0.02, 30, rho=5)) == "Karras(sigma_max=10.0, sigma_min=0.02, num_levels=30, rho=5.0)"
    assert repr(Constant(1, steps=3, temperature=0)) == "Constant(sigma=1.0, num_levels=1, temperature=0.0, steps=3)"
    assert repr(Ladder.of([2])) == "Ladder(levels=(Level(sigma=2.0, temperature=1.0, steps=None, step_size=1.0),))"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Own(Annealer):
    """A user's annealer, as the docstring of ``Annealer`` asks for it."""

    sigma: float
    steps: int = dataclasses.field(default=3, kw_only=True)

    def _build(self) -> Sequence[Level]:
        return [Level(self.sigma, steps=self.steps), Level(self.sigma / 2)]


def test_an_annealer_of_ones_own_prints_as_the_call_that_makes_it() -> None:
    # A store holds the printed sampler, and resumes no other: an address in it would be another every time.
    assert repr(Own(2.0)) == "Own(sigma=2.0)"
    assert repr(Own(2.0, steps=4)) == "Own(sigma=2.0, steps=4)"
    assert eval(repr(Own(2.0, steps=4))) == Own(2.0, steps=4)


def test_numbers_of_numpy_are_taken_and_stored_as_pythons() -> None:
    level = Level(np.float64(2), np.float64(0), 3, np.float64(1))
    assert [type(v) for v in dataclasses.astuple(level)] == [float, float, int, float]
    assert type(_checks.number("sigma", np.float32(0.5))) is float
    assert type(_checks.count("steps", np.int64(3))) is int


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: Level(0.0), "Level: sigma must be above zero, got 0"),
    (lambda: Level(-1.0), "Level: sigma must be above zero, got -1"),
    (lambda: Level(math.inf), "Level: sigma must be finite, got inf"),
    (lambda: Level(math.nan), "Level: sigma must be finite, got nan"),
    (lambda: Level(1.0, temperature=-0.1), "Level: temperature must be zero or more, got -0.1"),
    (lambda: Level(1.0, temperature=math.nan), "Level: temperature must be finite, got nan"),
    (lambda: Level(1.0, steps=0), "Level: steps must be one or more, got 0"),
    (lambda: Level(1.0, step_size=0.0), "Level: step_size must be above zero, got 0"),
    (lambda: Karras(1, 2, 3), "Karras: sigma_min must be at most sigma_max, got 2 above 1"),
    (lambda: Geometric(1, 1, 4), "Geometric: sigma_min must be below sigma_max for 4 levels, got 1 for both"),
    (lambda: Linear(2, 1, 1), "Linear: num_levels must be two or more to go from 2 down to 1, got 1"),
    (lambda: Cosine(2, 1, 0), "Cosine: num_levels must be one or more, got 0"),
    (lambda: Cosine(math.inf, 1, 3), "Cosine: sigma_max must be finite, got inf"),
    (lambda: Karras(2, 0, 3), "Karras: sigma_min must be above zero, got 0"),
    (lambda: Karras(2, 1, 3, rho=0), "Karras: rho must be above zero, got 0"),
    (lambda: Karras(2, 1, 3, temperature=-1), "Karras: temperature must be zero or more, got -1"),
    (lambda: Constant(-1), "Constant: sigma must be above zero, got -1"),
    (lambda: Constant(1, -1), "Constant: num_levels must be one or more, got -1"),
    (lambda: Constant(1, steps=0), "Constant: steps must be one or more, got 0"),
    (lambda: Constant(1, step_size=math.inf), "Constant: step_size must be finite, got inf"),
    (lambda: Ladder.of([1, 2]), "Ladder: sigma must never increase"),
    (lambda: Ladder(()).sigma_max, "Ladder: an annealer without levels has no largest or smallest sigma"),
    (lambda: Karras(2, 1, 3).with_steps([1, 2]), "Karras.with_steps: got 2 values for 3 levels, expected one a level"),
    (lambda: Karras(2, 1, 3).with_temperature([0, 1, -1]), "Level: temperature must be zero or more, got -1"),
]


@pytest.mark.parametrize(("build", "sentence"), REFUSALS, ids=[sentence for _, sentence in REFUSALS])
def test_values_out_of_range_are_refused(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError) as err:  # noqa: PT011
        build()
    assert str(err.value).startswith(sentence)
    assert "\n" not in str(err.value)


WRONG_TYPES: list[Callable[[], object]] = [
    lambda: Level(True),
    lambda: Level("1"),  # type: ignore[arg-type]
    lambda: Level(1.0, steps=True),
    lambda: Level(1.0, steps=2.0),  # type: ignore[arg-type]
    lambda: Karras(2, 1, True),
    lambda: Karras(2, 1, 3.0),  # type: ignore[arg-type]
    lambda: Geometric(2, None, 3),  # type: ignore[arg-type]
    lambda: Constant(1j),  # type: ignore[arg-type]
    lambda: Ladder([3.0, 2.0]),  # type: ignore[list-item]
    lambda: Ladder(2.0),  # type: ignore[arg-type]
    lambda: Karras(2, 1, 3).with_temperature("111"),  # type: ignore[arg-type]
    lambda: Karras(2, 1, 3).with_steps(2.5),  # type: ignore[arg-type]
    lambda: Karras(2, 1, 3).total_steps(1.5),  # type: ignore[arg-type]
    lambda: Annealer(),  # type: ignore[abstract]
]


@pytest.mark.parametrize("build", WRONG_TYPES)
def test_wrong_types_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        build()


@pytest.mark.parametrize(
    ("check", "value", "sentence"),
    [
        (_checks.number, True, "it must be a real number, got True"),
        (_checks.number, "1", "it must be a real number, got '1'"),
        (_checks.positive, 10**400, "it must be finite, got inf"),
        (_checks.count, 2.0, "it must be an integer, got 2.0"),
        (_checks.count, False, "it must be an integer, got False"),
    ],
)
def test_the_checks_say_what_was_expected(check: Callable[[str, object], object], value: object, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as err:
        check("it", value)
    assert str(err.value) == sentence
