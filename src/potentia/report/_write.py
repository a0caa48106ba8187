"""``write_report``: gather, compose, and put the page into place."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from potentia._files import written_whole
from potentia._validate import count

if TYPE_CHECKING:
    from potentia.io import Ensemble

LIMIT = 17 * 10**6


def write_report(
    ensemble: "Ensemble | str | os.PathLike[str]",
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    max_bytes: int = LIMIT,
    max_pixels: int | None = None,
) -> Path:
    """Write one HTML page about an ensemble, which opens from disk and loads nothing from elsewhere.

    It shows the mean, the std, MAP and truth where the store keeps them, samples, and of a pixel that is clicked the
    marginal histogram, trace, R-hat and ESS; diagnostics, the posterior's terms, settings and timings. The page says
    which draws and pixels it had to leave out to stay small.

    Args:
        ensemble: An ensemble, or the path of a store.
        path: The file to write; by default beside a local store, STORE.html.
        overwrite: Replace an existing file.
        max_bytes: Bytes that the images and draws on the page may take; some 100 kB of text and code are added.
        max_pixels: Diagnose about so many pixels, evenly spread, and make no maps of R-hat and ESS; None is all.

    Returns:
        The file that was written.

    Raises:
        FileExistsError: If the file exists and ``overwrite`` is not set.
        StoreError: For a store that is missing or damaged.
        ValueError: For a max_bytes below 100,000, or no path for a store that is no local folder.
    """
    from potentia.inference import summary
    from potentia.io import Ensemble, open_ensemble
    from potentia.report._collect import collect
    from potentia.report._page import page_text

    limit = count("write_report", "max_bytes", max_bytes, least=100_000)
    opened = ensemble if isinstance(ensemble, Ensemble) else open_ensemble(ensemble)
    target = _target(opened, path)
    _refuse(target, overwrite)
    diagnostics = summary(opened, max_pixels=max_pixels)
    collected = collect(opened, diagnostics, limit)
    text = page_text(opened, diagnostics, collected, _name(opened))
    with written_whole(target, replace=overwrite) as page:
        page.write_text(text, encoding="utf-8", newline="\n")
    return target


def _name(ensemble: "Ensemble") -> str:
    return ensemble.path.rstrip("/").rsplit("/", 1)[-1].strip("<>")


def _target(ensemble: "Ensemble", path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        return Path(path).expanduser()
    store = Path(ensemble.path)
    if not store.exists():
        raise ValueError(f"write_report: {ensemble.path} lies in no local folder, expected a path for the page")
    return store.with_name(store.name + ".html")


def _refuse(target: Path, overwrite: bool) -> None:
    """Refuse, before anything is computed, a place that the page cannot go to."""
    if target.is_dir():
        raise FileExistsError(f"{target}: a folder is there, expected the name of a file for the report")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist, expected one to write into")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: a file exists there already, pass overwrite=True (--force) to replace it")
