"""Every identity of the catalogue holds, every planted fault is caught for its reason, and the page says the same."""

import pytest
from identities_base import PUBLIC, Fault, Identity
from identities_catalogue import CATALOGUE, MODULES, PAGE, parts_of_page, tables

from potentia import testing

CHECKS = list({one.check.name: one.check for one in CATALOGUE}.values())
FAULTS = [(one, fault) for one in CATALOGUE for fault in one.faults]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_identities_hold(check) -> None:  # type: ignore[no-untyped-def]
    check.holds()


@pytest.mark.parametrize(("identity", "fault"), FAULTS, ids=[f"{one.name}: {fault.text}" for one, fault in FAULTS])
def test_a_planted_fault_is_caught_for_its_reason(identity: Identity, fault: Fault) -> None:
    with pytest.raises(AssertionError, match=fault.says) as error:
        fault.run()
    assert " got " in str(error.value)
    assert ", expected " in str(error.value)


def test_every_identity_has_a_fault_and_a_name_of_its_own() -> None:
    assert all(one.faults for one in CATALOGUE)
    names = [(one.of, one.name) for one in CATALOGUE]
    assert len(set(names)) == len(names)
    by_name = {check.name: check for check in CHECKS}
    assert all(one.check is by_name[one.check.name] for one in CATALOGUE)


def test_every_public_check_is_in_the_catalogue() -> None:
    public = {name for name in testing.__all__ if name.startswith(PUBLIC)}
    assert {check.name for check in CHECKS if check.name.startswith(PUBLIC)} == public


def test_every_fault_that_the_tests_of_the_checks_plant_is_in_the_catalogue() -> None:
    listed = {fault.text for _, fault in FAULTS}
    for module in MODULES:
        for table in module.TABLES:
            assert {row[0] for row in table} <= listed


def test_the_page_lists_the_catalogue() -> None:
    _, within, _ = parts_of_page(PAGE.read_text(encoding="utf-8"))
    assert within == tables(), f"write it anew: python tests/identities/identities_catalogue.py, for {PAGE.name}"


def test_a_page_that_leaves_one_out_is_seen() -> None:
    """The planted fault: an identity that the page does not list."""
    assert tables(CATALOGUE[:-1]) != tables()
