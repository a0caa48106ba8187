"""The warnings of one thread, collected: Python's own recorder takes those of all threads, and two of them clash."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

_heard: ContextVar[list[Warning] | None] = ContextVar("potentia_heard_warnings", default=None)
_lock = threading.Lock()
_listeners = 0
_installed = ExitStack()


@contextmanager
def heard_warnings() -> Iterator[list[Warning]]:
    """Collect the warnings of this thread instead of showing them; those of other threads are shown as ever.

    Each is collected, however often it has been shown before. Warnings for developers pass as they would have.
    """
    found: list[Warning] = []
    token = _heard.set(found)
    _install(1)
    try:
        yield found
    finally:
        _install(-1)
        _heard.reset(token)


def _install(change: int) -> None:
    """Listen while anybody wants to hear."""
    global _listeners
    with _lock:
        _listeners += change
        if change > 0 and _listeners == 1:
            _installed.enter_context(warnings.catch_warnings())
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("always", category)
            warnings.showwarning = _routed(warnings.showwarning)
        elif _listeners == 0:
            _installed.close()


def _routed(shown: Any) -> Any:
    def show(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
        mine = _heard.get()
        if mine is None:
            shown(message, category, *args, **options)
        else:
            mine.append(message if isinstance(message, Warning) else category(message))

    return show
