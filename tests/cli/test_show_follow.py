"""``potentia show``, on stores that are whole, that grow, and that are not there yet."""

import io
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import potentia as pt
from potentia._cli._follow import Pace, Progress, View, _duration, _rate, follow_store, read_progress
from potentia._cli._html import run_report
from potentia._cli._show import run_show, safe
from potentia.io import EnsembleWriter, StoreError

CHAINS, DRAWS, SHAPE = 3, 24, (1, 4, 5)


def begin(path: Path, **more: Any) -> EnsembleWriter:
    return EnsembleWriter.create(path, num_chains=CHAINS, num_draws=DRAWS, event_shape=SHAPE, **more)


def add(writer: EnsembleWriter, draws: int = 12) -> None:
    """Commit so many draws more, and see them written."""
    generator = torch.Generator().manual_seed(writer.num_committed)
    for _ in range(draws):
        writer.append(
            torch.randn(CHAINS, *SHAPE, generator=generator), {"lp": 0.0, "acceptance_rate": 0.75, "n_grad": 3}
        )
    writer.commit(b"")
    writer.flush()


class Clock:
    """Time that passes only while one sleeps; each sleep calls what comes next."""

    def __init__(self, *then: object) -> None:
        self.now = 100.0
        self.then = list(then)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        following = self.then.pop(0)
        if isinstance(following, type):
            raise following
        following()  # type: ignore[operator]


def plain_console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100, markup=False, highlight=False, soft_wrap=True), out


def test_a_store_is_followed_from_before_it_exists_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    made: list[EnsembleWriter] = []
    last = [lambda: add(made[0]), lambda: None, lambda: add(made[0])]
    clock = Clock(lambda: None, lambda: made.append(begin(path)), *last)
    console, out = plain_console()
    assert follow_store(str(path), interval=4.0, console=console, clock=clock, sleep=clock.sleep)
    lines = out.getvalue().splitlines()
    assert lines[0] == f"waiting for {path}"
    assert lines.count(lines[0]) == 2
    told = [line for line in lines if line.startswith("committed")]
    assert [line.split(",")[0] for line in told] == [
        "committed 0 of 24 draws of each chain (0%)",
        "committed 12 of 24 draws of each chain (50%)",
        "committed 24 of 24 draws of each chain (100%)",
    ]
    assert "rate not known yet" in told[0]
    assert "rate 3 draws/s, time left 4 s" in told[1]
    assert "rate 1.5 draws/s" in told[2]
    assert "acceptance 0.75" in told[2]
    assert "time left" not in told[2]
    whole = pt.summary(pt.open_ensemble(path), max_pixels=256)
    assert f"R-hat {whole.median['rhat']:.4g} in the median pixel, {whole.worst['rhat']:.4g} at worst" in told[2]
    assert clock.then == []


def test_ctrl_c_ends_the_view_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    writer = begin(path)
    add(writer)
    clock = Clock(KeyboardInterrupt)
    console, out = plain_console()
    assert not follow_store(str(path), console=console, clock=clock, sleep=clock.sleep)
    assert out.getvalue().splitlines()[-1] == "no longer followed"
    add(writer)
    assert writer.close().num_draws == DRAWS


def test_a_terminal_sees_a_bar(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    writer = begin(path)
    clock = Clock(lambda: add(writer, DRAWS))
    console, out = plain_console(terminal=True)
    assert follow_store(str(path), console=console, clock=clock, sleep=clock.sleep)
    assert "━" in out.getvalue()
    assert "Ctrl-C ends this view" in out.getvalue()
    assert "24 of 24 draws" in out.getvalue()


def test_another_run_in_the_same_place_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    add(begin(path))
    view = View(str(path), Clock())
    view.look()
    assert view.progress == Progress(12, 12, DRAWS)
    assert dict(view.rows())["acceptance"] == "0.75"
    begin(path, overwrite=True)
    view.look()
    assert view.progress == Progress(0, 0, DRAWS)
    assert dict(view.rows())["acceptance"] == "not known yet"


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(StoreError, match="no ensemble store"):
        follow_store(str(tmp_path / "a.zarr"))
    with pytest.raises(ValueError, match="interval must be positive"):
        follow_store(str(tmp_path / "b.zarr"), interval=0)


def test_a_store_that_breaks_is_given_up_but_not_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    add(begin(path))
    saved = (path / "zarr.json").read_text()

    def broken() -> None:
        (path / "zarr.json").unlink()

    def whole() -> None:
        (path / "zarr.json").write_text(saved)

    clock = Clock(broken, whole, KeyboardInterrupt)
    console, _ = plain_console()
    assert not follow_store(str(path), console=console, clock=clock, sleep=clock.sleep)
    clock = Clock(broken, lambda: None, lambda: None)
    with pytest.raises(StoreError):
        follow_store(str(path), console=console, clock=clock, sleep=clock.sleep)
    assert clock.then == []


def test_a_real_run_is_followed(tmp_path: Path) -> None:
    from potentia import energies, inference

    path = tmp_path / "a.zarr"
    field = energies.Gaussian(torch.zeros(1, 4, 4), 1.0)
    sampler = inference.Langevin(0.5)
    run = threading.Thread(
        target=lambda: pt.sample(field, sampler, num_chains=2, num_draws=60, store=path, progress=False)
    )
    console, out = plain_console()
    with inference.without_diagnostics():
        run.start()
        assert follow_store(str(path), interval=0.02, console=console)
        run.join()
    assert "60 of 60 draws" in out.getvalue()


def test_the_rate_is_taken_between_changes() -> None:
    pace = Pace()
    assert math.isnan(pace.rate)
    for now, count in ((0, 0), (1, 0), (2, 10), (3, 10)):
        pace.look(now, count)
    assert pace.rate == 5.0
    pace.look(4, 20)
    pace.look(9, 20)
    assert pace.rate == 5.0
    pace.look(12, 40)
    assert pace.rate == 3.0
    assert pace.still_for(14) == 2.0


def test_counts_of_ranks_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    add(begin(path))
    assert read_progress(str(path)) == Progress(12, 12, DRAWS)
    view = View(str(path), Clock())
    monkeypatch.setattr("potentia._cli._follow.read_progress", lambda _: Progress(12, 20, 24))
    view.look()
    assert dict(view.rows())["committed"] == "12 of 24 draws of each chain (50%), the fastest rank at 20"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (61, "1 min 01 s"), (7384, "2 h 03 min")])
def test_durations(seconds: float, words: str) -> None:
    assert _duration(seconds) == words


def test_rates() -> None:
    assert _rate(2.0) == "2 draws/s"
    assert _rate(0.25) == "4 s a draw"


def test_show_tells_the_diagnostics_and_no_escape_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.zarr"
    attrs = {"posterior": "Sum\n\x1b[31m evil", "sampler": "\x1b]0;x\x07"}
    writer = EnsembleWriter.create(path, num_chains=2, num_draws=8, event_shape=(1, 3, 4), attrs=attrs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        writer.append(torch.randn(2, 1, 3, 4, generator=generator), {"lp": 1.0})
    ensemble = writer.close()
    run_show(str(path), None)
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "evil" in told
    assert repr(pt.summary(ensemble)).splitlines()[2] in told
    assert (tmp_path / "a.zarr.png").exists()
    run_show(str(path), tmp_path / "b.png", follow=True)
    again = capsys.readouterr().out
    assert again.startswith("committed 8 of 8 draws")
    assert told.splitlines()[0] in again


def test_safe_text_keeps_lines_and_letters() -> None:
    assert safe("├─ α\nb") == "├─ α\nb"
    assert safe("a\x1b[0m\u202eb\r") == "a�[0m�b�"


def test_the_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.zarr"
    writer = EnsembleWriter.create(path, num_chains=2, num_draws=4, event_shape=(1, 3, 4))
    for _ in range(4):
        writer.append(torch.zeros(2, 1, 3, 4), {"lp": 1.0})
    writer.close()
    assert run_report(str(path)) == tmp_path / "a.zarr.html"
    assert "a.zarr.html (0." in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--force"):
        run_report(str(path))
    run_report(str(path), None, force=True)
    assert run_report(str(path), tmp_path / "b.html", max_megabytes=0.2).name == "b.html"
