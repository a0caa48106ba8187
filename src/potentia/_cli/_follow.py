"""``potentia show --follow``: a store while it is being written."""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from potentia._validate import positive
from potentia.inference import summary
from potentia.io import StoreError, open_ensemble
from potentia.io._integrity import committed_counts
from potentia.io._location import Location
from potentia.io._schema import read_layout

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIXELS = 256  # that R-hat and ESS are looked at while a run goes on
_SHARE = 0.1  # of the time, at most, that goes into reading draws for R-hat
_FAILURES = 3  # in succession, after which a store is given up
_PATIENCE = 30.0  # seconds without a new draw, after which the view says so


@dataclass(frozen=True)
class Progress:
    """How far a run has come: committed draws of the slowest and the fastest chain, out of ``total``."""

    least: int
    most: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether every chain has all its draws."""
        return self.least >= self.total


class Pace:
    """Draws a second, by the times at which the count was seen to change."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None
        self._seen: tuple[float, int] | None = None  # the first look of all, in the middle of a block

    def look(self, now: float, count: int) -> None:
        """Note the count at a time, in seconds."""
        if self._seen is None:
            self._seen = self._last = now, count
        elif self._last is not None and count != self._last[1]:
            self._last = now, count
            self._first = self._first or self._last

    @property
    def rate(self) -> float:
        """Draws a second; NaN until the count has changed."""
        begun = self._first if self._first != self._last else self._seen
        if begun is None or self._last is None or self._last[0] <= begun[0]:
            return math.nan
        return (self._last[1] - begun[1]) / (self._last[0] - begun[0])

    def still_for(self, now: float) -> float:
        """Seconds since the count last changed."""
        return 0.0 if self._last is None else now - self._last[0]


class View:
    """What is told of a running store, looked at again and again."""

    def __init__(self, store: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self.progress: Progress | None = None
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self.pace = Pace()
        self._acceptance = math.nan
        self._diagnosed = 0  # draws that the diagnostics are of
        self._rhat = self._ess = (math.nan, math.nan)  # median, worst
        self._not_before = -math.inf

    def look(self) -> None:
        """Read how far the run has come, and its diagnostics if draws were added and time allows.

        Raises: StoreError for what is there but is no ensemble store.
        """
        now = self._clock()
        found, before = read_progress(self.store), self.progress
        if found is None or (before is not None and found.least < before.least):
            self._begin()  # another run has taken the place of this one
        self.progress = found
        if found is None:
            return
        self.pace.look(now, found.least)
        if found.least > self._diagnosed and (now >= self._not_before or found.complete):
            self._diagnose()
            self._not_before = self._clock() + (self._clock() - now) / _SHARE

    def _diagnose(self) -> None:
        ensemble = open_ensemble(self.store)
        found = summary(ensemble, max_pixels=PIXELS)
        self._acceptance = found.acceptance_rate
        self._rhat = found.median["rhat"], found.worst["rhat"]
        self._ess = found.median["ess_bulk"], found.worst["ess_bulk"]
        self._diagnosed = ensemble.num_draws

    def rows(self) -> list[tuple[str, str]]:
        """What is known, as names and words."""
        found = self.progress
        if found is None:
            return [("waiting for", self.store)]
        count = f"{found.least} of {found.total} draws of each chain ({found.least / found.total:.0%})"
        if found.most > found.least:
            count += f", the fastest rank at {found.most}"
        rate, still = self.pace.rate, self.pace.still_for(self._clock())
        rows = [("committed", count)]
        rows.append(("rate", "not known yet" if math.isnan(rate) else _rate(rate)))
        if not found.complete:
            left = (found.total - found.least) / rate if rate > 0 else math.nan
            rows.append(("time left", "not known yet" if math.isnan(left) else _duration(left)))
            if still > _PATIENCE:
                rows.append(("last new draw", f"{_duration(still)} ago"))
        rows.append(("acceptance", _number(self._acceptance)))
        rows.append(("R-hat", _pair(self._rhat)))
        rows.append(("bulk ESS", _pair(self._ess)))
        if self._diagnosed and self._diagnosed < found.least:
            rows.append(("of the first", f"{self._diagnosed} draws"))
        return rows

    def line(self) -> str:
        """The same in one line."""
        return ", ".join(f"{name} {words}" for name, words in self.rows())

    def panel(self) -> "RenderableType":
        """The same for a terminal, with a bar."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for name, words in self.rows():
            grid.add_row(Text(name), Text(words))
        if self.progress is None:
            return grid
        bar = ProgressBar(total=self.progress.total, completed=self.progress.least, width=50)
        return Group(bar, grid, Text("Ctrl-C ends this view, not the run.", style="dim"))


def read_progress(store: str) -> Progress | None:
    """How far the run of a store has come; None if there is no store yet.

    Raises: StoreError for what is there but is no ensemble store.
    """
    location = Location.of(store)
    if location.folder is not None and not os.path.lexists(location.folder):
        return None
    try:
        root = location.open()
        layout, _ = read_layout(root, location)
        counts = committed_counts(root, layout, location)
    except StoreError:
        if location.folder is None:  # behind a URL, nothing tells a store that is not there from one that is broken
            return None
        raise
    return Progress(int(counts.min()), int(counts.max()), layout.num_draws)


def follow_store(
    store: str,
    *,
    interval: float = 2.0,
    console: "Console | None" = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Watch a store until it is complete, which is True, or until Ctrl-C.

    On a terminal the view stays in place; elsewhere every change is a line of its own.

    Raises: ValueError for an interval that is not positive; StoreError for what is no ensemble store.
    """
    from rich.console import Console
    from rich.live import Live

    pause = positive("show", "interval", interval)
    out = console or Console(markup=False, highlight=False, soft_wrap=True)
    view = View(store, clock)
    try:
        if out.is_terminal:
            with Live(view.panel(), console=out, auto_refresh=False) as live:
                for _ in _looks(view, pause, sleep):
                    live.update(view.panel(), refresh=True)
        else:
            told = None
            for _ in _looks(view, pause, sleep):
                if view.progress != told or told is None:
                    out.print(view.line())
                told = view.progress
    except KeyboardInterrupt:
        out.print("no longer followed")
        return False
    return True


def _looks(view: View, pause: float, sleep: Callable[[float], None]) -> Iterator[None]:
    """Look again and again; a store that cannot be read for a moment, between two files of one block, is no fault."""
    failures = 0
    while True:
        try:
            view.look()
            failures = 0
        except StoreError:
            failures += 1
            if view.progress is None or failures == _FAILURES:
                raise
        yield
        if view.progress is not None and view.progress.complete and not failures:
            return
        sleep(pause)


def _number(value: float) -> str:
    return "not known yet" if math.isnan(value) else f"{value:.4g}"


def _pair(values: tuple[float, float]) -> str:
    median, worst = values
    return "not known yet" if math.isnan(median) else f"{median:.4g} in the median pixel, {worst:.4g} at worst"


def _rate(rate: float) -> str:
    return f"{rate:.3g} draws/s" if rate >= 1 else f"{1 / rate:.3g} s a draw"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
