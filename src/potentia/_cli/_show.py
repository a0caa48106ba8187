"""``potentia show``: what a store holds, and what a running one has come to."""

from pathlib import Path

from potentia._cli._report import print_rows
from potentia.inference import summary
from potentia.io import open_ensemble

PIXELS = 4096  # that diagnostics look at


def run_show(store: str, plot: Path | None = None, follow: bool = False, interval: float = 2.0) -> None:
    """Print a summary of a store and its diagnostics, and write its picture.

    ``follow`` first watches a store that is being written, every ``interval`` seconds, until it is complete or the
    user presses Ctrl-C.
    """
    if follow:
        from potentia._cli._follow import follow_store

        if not follow_store(store, interval=interval):
            return
    ensemble = open_ensemble(store)
    told = dict(ensemble.summary())
    tree = told.pop("posterior", None)
    if tree is not None:
        print_rows(safe(str(tree)), [])
    print_rows("", [(name, safe(_text(value))) for name, value in told.items()])
    print_rows(safe(repr(summary(ensemble, max_pixels=PIXELS))), [])
    picture = Path(store.removeprefix("file://").rstrip("/") + ".png") if plot is None else plot
    ensemble.plot(picture)
    print_rows(f"picture: {picture}", [])


def run_verify(store: str) -> None:
    """Read every file of a store and say that it is whole.

    Raises: StoreError for the first that is damaged or missing.
    """
    print_rows(f"{store}: {open_ensemble(store).verify()} files have the checksums that were recorded", [])


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def safe(text: str) -> str:
    """Text of a store without what a terminal would obey: control characters other than new lines."""
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
