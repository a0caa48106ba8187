"""What the tests of planted faults share."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def caught() -> Callable[[Callable[[Any], None], Any, str], None]:
    """Run a check on something faulty and see that it says so: which identity, what was got and expected."""

    def run(check: Callable[[Any], None], faulty: Any, says: str) -> None:
        with pytest.raises(AssertionError, match=says) as error:
            check(faulty)
        assert type(faulty).__name__ in str(error.value) or "Sum" in str(error.value)
        assert " got " in str(error.value)
        assert ", expected " in str(error.value)

    return run
