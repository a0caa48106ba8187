"""Ctrl-C and SIGTERM held back: noted once, a second one stops, and the handlers there were come back."""

import io
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from potentia._signals import held_back_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Handlers by which to tell that they come back; pytest's own return after the test."""
    before = {number: signal.signal(number, _own) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _own(*_: object) -> None:
    raise AssertionError("the signal was not held back")


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_noted_and_what_is_under_way_goes_on(number: signal.Signals) -> None:
    with held_back_signals() as caught:
        assert caught == []
        signal.raise_signal(number)
        assert caught == [number]
    assert [signal.getsignal(n) for n in BOTH] == [_own, _own]


@pytest.mark.parametrize("second", BOTH)
def test_a_second_one_stops_at_once(second: signal.Signals) -> None:
    with held_back_signals() as caught:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert caught == [signal.SIGINT]
    assert [signal.getsignal(n) for n in BOTH] == [_own, _own]


def test_the_handlers_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), held_back_signals():
        _ = 1 / 0
    assert [signal.getsignal(n) for n in BOTH] == [_own, _own]


@pytest.mark.parametrize(("terminal", "said"), [(True, "\nends soon\n"), (False, "")])
def test_the_message_is_for_terminals_and_said_once(monkeypatch: pytest.MonkeyPatch, terminal: bool, said: str) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with held_back_signals("ends soon"):
        signal.raise_signal(signal.SIGTERM)
        assert stream.getvalue() == said
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert stream.getvalue() == said


def test_other_threads_hold_nothing_back() -> None:
    seen: list[object] = []

    def work() -> None:
        with held_back_signals() as caught:
            seen.extend([list(caught), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[], _own]
