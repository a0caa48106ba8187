"""The catalogue of identities, and the page that lists it.

``python tests/identities/identities_catalogue.py`` writes the tables of the page anew.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "testing")]  # where pytest finds them by itself

import identities_annealers  # noqa: E402
import identities_kernels  # noqa: E402
import identities_likelihoods  # noqa: E402
import identities_operators  # noqa: E402
import identities_potentials  # noqa: E402
import identities_stores  # noqa: E402
from identities_base import Identity, page_rows  # noqa: E402

MODULES = (
    identities_potentials,
    identities_operators,
    identities_likelihoods,
    identities_annealers,
    identities_kernels,
    identities_stores,
)
CATALOGUE: list[Identity] = [one for module in MODULES for one in module.IDENTITIES]
PAGE = FOLDER.parents[1] / "docs" / "identities.md"
BEGIN, END = "<!-- the catalogue begins -->", "<!-- the catalogue ends -->"


def parts_of_page(text: str) -> tuple[str, str, str]:
    """What stands before, within and after the marks of the tables.

    Raises: ValueError if the marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    within, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name}: has no {BEGIN} and {END}")
    return before, within, after


def tables(identities: list[Identity] = CATALOGUE) -> str:
    return "\n".join(["", *page_rows(identities), ""])


if __name__ == "__main__":
    before, _, after = parts_of_page(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + BEGIN + tables() + END + after, encoding="utf-8")
