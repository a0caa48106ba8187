"""The names that docs/stability.md promises: ``python tests/release/promised_names.py`` writes them anew."""

import importlib
from pathlib import Path

MODULES = (
    "potentia",
    *(f"potentia.{m}" for m in ("annealers", "energies", "inference", "io", "likelihoods", "testing")),
)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "stability.md"
BEGIN, END = "<!-- the names begin -->", "<!-- the names end -->"


def names() -> str:
    """A table: the modules and what each lists in ``__all__``."""
    rows = [f"| `{m}` | {' '.join(f'`{name}`' for name in importlib.import_module(m).__all__)} |" for m in MODULES]
    return "\n".join(["", "", "| module | names |", "|---|---|", *rows, "", ""])


def parts(text: str) -> tuple[str, str, str]:
    """Before, between and after the marks."""
    before, _, rest = text.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + BEGIN + names() + END + after, encoding="utf-8")
