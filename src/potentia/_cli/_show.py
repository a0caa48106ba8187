"""``potentia show``."""

from pathlib import Path

from potentia._cli._report import print_rows
from potentia.io import open_ensemble


def run_show(store: str, plot: Path | None) -> None:
    """Print a summary of a store and write its picture."""
    ensemble = open_ensemble(store)
    summary = dict(ensemble.summary())
    tree = summary.pop("posterior", None)
    if tree is not None:
        print_rows(str(tree), [])
    print_rows("", [(name, _text(value)) for name, value in summary.items()])
    picture = Path(store.removeprefix("file://").rstrip("/") + ".png") if plot is None else plot
    ensemble.plot(picture)
    print_rows(f"picture: {picture}", [])


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
