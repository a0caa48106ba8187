"""``potentia report``."""

from pathlib import Path

from potentia._cli._report import print_rows
from potentia.report import write_report
from potentia.report._write import LIMIT


def run_report(store: str, out: Path | None = None, force: bool = False, max_megabytes: float | None = None) -> Path:
    """Write the report of a store, and say where it is and how large."""
    limit = LIMIT if max_megabytes is None else int(max_megabytes * 1e6)
    written = write_report(store, out, overwrite=force, max_bytes=limit)
    print_rows("", [("report", f"{written} ({written.stat().st_size / 1e6:.1f} MB)")])
    return written
