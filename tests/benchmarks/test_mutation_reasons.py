"""The reasons of benchmarks/mutation.py explain a change to one place of a line, and no other change to that line."""

import pytest
from benchmark_scripts import load

mutation = load("mutation")


@pytest.mark.parametrize(
    ("old", "new", "explained"),
    [
        ("z = f(shape, dtype=d, device=x.device)", "z = f(shape, dtype=d, device=None)", True),
        ("z = f(shape, dtype=d, device=x.device)", "z = f(shape, dtype=d, )", True),
        ("z = f(shape, device=where, out=o)", "z = f(shape, out=o)", True),
        ("z = f(shape, dtype=d, device=x.device)", "z = f(shape, dtype=None, device=x.device)", False),
        ("z = f(shape, dtype=d, device=x.device)", "z = f(None, dtype=d, device=x.device)", False),
        ("return w * cast(Tensor, f(x, s))", "return w * cast(None, f(x, s))", True),
        ("return w * cast(Tensor, f(x, s))", "return w / cast(Tensor, f(x, s))", False),
        ("return w * cast(Tensor, f(x, s))", "return w * cast(Tensor, f(x, None))", False),
    ],
)
def test_a_reason_is_for_one_change(old: str, new: str, explained: bool) -> None:
    assert bool(mutation.reason(f"function: {old} -> {new}")) is explained


def test_every_target_names_files_and_tests_that_are_there() -> None:
    for target in mutation.TARGETS.values():
        assert all((mutation.ROOT / "src" / "potentia" / f"{file}.py").is_file() for file in target.files)
        assert all((mutation.ROOT / test).exists() for test in target.tests)
