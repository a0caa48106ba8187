"""What every annealer is: a frozen sequence of levels, and the ladder that lists them."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import Any, Self, final, overload

from potentia.annealers import _checks
from potentia.annealers._level import Level


@dataclass(frozen=True, eq=False, repr=False)
class Annealer(Sequence[Level]):
    """A frozen sequence of levels whose noise scales never increase.

    Annealers are equal where their levels are. A slice is a Ladder, and ``a + b`` joins two annealers into one.
    A subclass gives ``_build``, and is a dataclass with ``frozen=True, eq=False, repr=False``. It prints as the call
    that makes it, by which a store knows it again.

    Raises: TypeError if a level is no Level; ValueError where sigma increases from one level to the next.
    """

    levels: Sequence[Level] = field(init=False)

    @abstractmethod
    def _build(self) -> Sequence[Level]:
        """Return the levels, the first one visited first; called once, at construction."""

    def __post_init__(self) -> None:
        levels = tuple(self._build())
        where = type(self).__name__
        for i, level in enumerate(levels):
            if not isinstance(level, Level):
                raise TypeError(f"{where}: level {i} must be a Level, got {level!r}")
        for i, (above, below) in enumerate(pairwise(levels)):
            if below.sigma > above.sigma:
                raise ValueError(
                    f"{where}: sigma must never increase, got {above.sigma:g} at level {i} and {below.sigma:g} "
                    f"at level {i + 1}"
                )
        object.__setattr__(self, "levels", levels)

    def __len__(self) -> int:
        return len(self.levels)

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in sorted(fields(self), key=lambda f: f.kw_only is True)
            if f.init and not (f.kw_only and getattr(self, f.name) == f.default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @overload
    def __getitem__(self, index: int) -> Level: ...
    @overload
    def __getitem__(self, index: slice) -> "Ladder": ...
    def __getitem__(self, index: int | slice) -> "Level | Ladder":
        if isinstance(index, slice):
            return Ladder(self.levels[index])
        return self.levels[index]

    def __add__(self, other: "Annealer") -> "Ladder":
        if not isinstance(other, Annealer):
            return NotImplemented
        return Ladder((*self.levels, *other.levels))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Annealer):
            return NotImplemented
        return self.levels == other.levels

    def __hash__(self) -> int:
        return hash(self.levels)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """The noise scales, level by level, in the image's unit."""
        return tuple(level.sigma for level in self.levels)

    @cached_property
    def sigma_max(self) -> float:
        """The largest noise scale, that of the first level.

        Raises: ValueError if there are no levels.
        """
        return self._end(0)

    @cached_property
    def sigma_min(self) -> float:
        """The smallest noise scale, that of the last level.

        Raises: ValueError if there are no levels.
        """
        return self._end(-1)

    def _end(self, index: int) -> float:
        if not self.levels:
            raise ValueError(f"{type(self).__name__}: an annealer without levels has no largest or smallest sigma")
        return self.levels[index].sigma

    def total_steps(self, default: int) -> int:
        """Count the steps of all levels, taking ``default`` for a level that leaves them to the sampler.

        Raises: TypeError if default is no integer; ValueError if it is below one.
        """
        default = _checks.count("total_steps: default", default)
        return sum(default if level.steps is None else level.steps for level in self.levels)

    def with_temperature(self, temperature: float | Sequence[float] | Callable[[float], float]) -> "Annealer":
        """Return the same scales at other temperatures: one for all levels, one a level, or a function of sigma.

        Raises: ValueError if a temperature is below zero, or their number is not that of the levels.
        """
        return self._with("temperature", temperature)

    def with_steps(self, steps: int | Sequence[int | None] | Callable[[float], int | None] | None) -> "Annealer":
        """Return the same scales with other numbers of steps: one for all levels, one a level, or a function of sigma.

        Raises: ValueError if a number is below one, or there are more or fewer numbers than levels.
        """
        return self._with("steps", steps)

    def with_step_size(self, step_size: float | Sequence[float] | Callable[[float], float]) -> "Annealer":
        """Return the same scales with other step sizes: one for all levels, one a level, or a function of sigma.

        Raises: ValueError if a step size is not above zero, or their number is not that of the levels.
        """
        return self._with("step_size", step_size)

    def _with(self, name: str, value: Any) -> "Annealer":
        where = f"{type(self).__name__}.with_{name}"
        if value is None or isinstance(value, Real):
            return self._with_all(name, value)
        if callable(value):
            values = [value(level.sigma) for level in self.levels]
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            values = list(value)
        else:
            raise TypeError(f"{where}: {name} must be a number, a sequence or a function of sigma, got {value!r}")
        if len(values) != len(self):
            raise ValueError(f"{where}: got {len(values)} values for {len(self)} levels, expected one a level")
        return Ladder([_changed(level, name, v) for level, v in zip(self.levels, values, strict=True)])

    def _with_all(self, name: str, value: Any) -> "Annealer":
        """Give every level the same value; a family overrides this so as to stay itself."""
        return Ladder([_changed(level, name, value) for level in self.levels])


def _changed(level: Level, name: str, value: Any) -> Level:
    changes: dict[str, Any] = {name: value}
    return replace(level, **changes)


@final
@dataclass(frozen=True, eq=False)
class Ladder(Annealer):
    """The annealer that lists its levels.

    Raises: TypeError if a level is no Level; ValueError where sigma increases from one level to the next.
    """

    levels: Sequence[Level] = field()

    @classmethod
    def of(
        cls, sigmas: Sequence[float], *, temperature: float = 1.0, steps: int | None = None, step_size: float = 1.0
    ) -> Self:
        """Make a ladder of noise scales alone, the levels otherwise alike.

        Units:  sigmas are in the image's unit.
        Raises: ValueError if a sigma is not above zero, or larger than the one before it.
        """
        return cls([Level(s, temperature=temperature, steps=steps, step_size=step_size) for s in sigmas])

    def _build(self) -> Sequence[Level]:
        return self.levels
