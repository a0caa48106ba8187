"""Warnings are collected thread by thread, and what there was is put back whatever the order of the ends."""

import threading
import warnings

import pytest

from potentia.inference._heard import heard_warnings


def messages(found: list[Warning]) -> list[str]:
    return [str(warning) for warning in found]


def test_warnings_are_collected_however_often_they_come() -> None:
    before = (warnings.showwarning, list(warnings.filters))
    with heard_warnings() as found:
        for _ in range(2):
            warnings.warn("short", stacklevel=1)
        warnings.warn(RuntimeWarning("overflow"), stacklevel=1)
    assert messages(found) == ["short", "short", "overflow"]
    assert [type(warning) for warning in found] == [UserWarning, UserWarning, RuntimeWarning]
    assert (warnings.showwarning, list(warnings.filters)) == before
    with pytest.raises(UserWarning, match="loud"):  # as the settings of the tests have it
        warnings.warn("loud", stacklevel=1)


def test_an_error_puts_back_what_there_was() -> None:
    before = (warnings.showwarning, list(warnings.filters))
    with pytest.raises(LookupError), heard_warnings():
        raise LookupError
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_the_inner_of_two_hears() -> None:
    with heard_warnings() as outer:
        warnings.warn("one", stacklevel=1)
        with heard_warnings() as inner:
            warnings.warn("two", stacklevel=1)
        warnings.warn("three", stacklevel=1)
    assert (messages(outer), messages(inner)) == (["one", "three"], ["two"])


def test_each_thread_hears_its_own_and_the_first_to_begin_may_end_first() -> None:
    before = (warnings.showwarning, list(warnings.filters))
    heard: dict[str, list[str]] = {}
    both, first_ended = threading.Barrier(3), threading.Event()

    def item(name: str) -> None:
        with heard_warnings() as found:
            both.wait()
            warnings.warn(f"by {name}", stacklevel=1)
            both.wait()
            if name == "second":
                first_ended.wait()
                warnings.warn("late", stacklevel=1)
        heard[name] = messages(found)

    threads = [threading.Thread(target=item, args=(name,)) for name in ("first", "second")]
    with warnings.catch_warnings(record=True) as shown:
        for thread in threads:
            thread.start()
        both.wait()
        warnings.warn("of nobody", stacklevel=1)
        both.wait()
        threads[0].join()
        first_ended.set()
        threads[1].join()
    assert heard == {"first": ["by first"], "second": ["by second", "late"]}
    assert messages([w.message for w in shown]) == ["of nobody"]  # type: ignore[misc]
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_pythons_own_recorder_would_not_do() -> None:
    """The planted fault: of two that overlap, the recorder that ends last leaves the other's in place."""
    with warnings.catch_warnings():
        before = warnings.showwarning
        first, second = warnings.catch_warnings(record=True), warnings.catch_warnings(record=True)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        left = (warnings.showwarning, warnings._showwarnmsg_impl)  # type: ignore[attr-defined]
    assert left != (before, warnings._showwarnmsg_impl)  # type: ignore[attr-defined]
