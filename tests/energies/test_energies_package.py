"""The package itself: cheap to import, and only under its own name."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from potentia import energies


def test_importing_loads_no_optional_library() -> None:
    heavy = ["sklearn", "scipy", "pywt", "matplotlib", "pyro", "arviz", "dask"]
    code = (
        "import sys, torch; before = set(sys.modules); import potentia.energies; "
        f"print([m for m in {heavy} if m in set(sys.modules) - before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_bare_folder_name_is_refused() -> None:
    with pytest.raises(ImportError, match=r"use potentia\.energies, not the bare folder name"):
        runpy.run_path(str(Path(energies.__file__)), run_name="energies")


def test_every_public_class_is_documented() -> None:
    for name in energies.__all__:
        public = getattr(energies, name)
        functions = not isinstance(public, type)
        assert ("Raises:" if functions else "Shapes:") in public.__doc__ or name in ("Card", "shipped"), name
