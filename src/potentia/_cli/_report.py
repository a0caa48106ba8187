"""Plain printing for the commands."""

from collections.abc import Sequence


def print_rows(heading: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a heading, then rows with their columns aligned."""
    from rich.console import Console

    # markup off: a printed tree or a path may hold brackets.
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if heading:
        console.print(heading)
    if rows:
        widths = [max(len(r[k]) if k < len(r) else 0 for r in rows) for k in range(max(map(len, rows)))]
        for row in rows:
            console.print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)).rstrip())
    console.print()
