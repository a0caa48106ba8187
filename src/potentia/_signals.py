"""Ctrl-C and SIGTERM held back until what is under way can be put away."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back_signals(message: str | None = None) -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of stopping in the middle of something; a second one stops at once.

    The list that it gives fills with the numbers of the signals. ``message`` is said on a terminal at the first.
    Threads other than the main one receive no signals: there the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        if message is not None and sys.stderr.isatty():
            sys.stderr.write(f"\n{message}\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
