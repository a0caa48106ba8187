"""What is installed, under which names, and what importing it costs."""

import importlib
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("annealers", "energies", "inference", "io", "likelihoods")
# Every public name, so that adding or taking one is a decision.
PUBLIC = {
    "potentia": [
        "ConvergenceWarning", "Energy", "Ensemble", "Likelihood", "Potential", "Quadratic", "ScoreOnly", "Sum",
        "annealers", "energies", "inference", "io", "likelihoods", "map_estimate", "open_ensemble", "sample",
        "testing",
    ],
    "potentia.annealers": ["Annealer", "Constant", "Cosine", "Geometric", "Karras", "Ladder", "Level", "Linear"],
    "potentia.energies": [
        "DCT", "Denoiser", "FieldsOfExperts", "Function", "Gaussian", "GaussianField", "GaussianMixture",
        "ScoreModel", "Sparsity", "StudentT", "TotalVariation", "Wavelet",
    ],
    "potentia.inference": [
        "ALPS", "Info", "Langevin", "Preconditioner", "Rule", "Sampler", "State", "map_estimate", "sample",
    ],
    "potentia.io": [
        "Ensemble", "EnsembleWriter", "StoreError", "StoreExistsError", "check_target", "open_ensemble",
        "read_array", "read_image", "scale_to_percentile",
    ],
    "potentia.likelihoods": [
        "Convolution", "Downsample", "Fourier", "Gaussian", "GaussianBlur", "Identity", "Mask", "Matrix",
        "MotionBlur", "Operator", "Sense", "birdcage_maps", "cartesian_mask",
    ],
}  # fmt: skip
OPTIONAL = [
    "PIL", "arviz", "dask", "hypothesis", "matplotlib", "nibabel", "pyro", "rich", "scipy", "sklearn", "typer",
    "xarray", "zarr",
]  # fmt: skip


def packages_on_disk() -> dict[str, str]:
    """Every folder with an ``__init__.py``, by the name that it is to be installed under."""
    found = {"potentia": "src/potentia"}
    for path in (ROOT / "src" / "potentia").iterdir():
        if not path.is_symlink() and (path / "__init__.py").is_file():
            found[f"potentia.{path.name}"] = f"src/potentia/{path.name}"
    for layer in LAYERS:
        for init in (ROOT / layer).rglob("__init__.py"):
            folder = init.parent.relative_to(ROOT)
            found[".".join(["potentia", *folder.parts])] = folder.as_posix()
    return found


def setuptools_tables() -> tuple[list[str], dict[str, str]]:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return tables["packages"], tables["package-dir"]


def test_every_package_stands_in_both_tables() -> None:
    packages, folders = setuptools_tables()
    on_disk = packages_on_disk()
    assert sorted(packages) == sorted(on_disk), "a package that is not listed is missing from the wheel"
    assert folders == on_disk
    assert {f"potentia.{layer}" for layer in (*LAYERS, "testing", "_cli")} <= set(packages)


def test_the_marker_of_typing_is_installed() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data == {"potentia": ["py.typed"]}
    assert (ROOT / "src" / "potentia" / "py.typed").is_file()


@pytest.mark.parametrize("layer", LAYERS)
def test_links_lead_to_the_layers(layer: str) -> None:
    link = ROOT / "src" / "potentia" / layer
    if not os.path.lexists(link) or link.is_file():
        pytest.skip("this checkout has no links: git writes files in their place where core.symlinks is off")
    assert link.is_symlink(), f"{link} is a folder, which would be a second copy of the layer"
    assert os.readlink(link) == f"../../{layer}"


def test_there_are_no_other_links() -> None:
    assert {p.name for p in (ROOT / "src" / "potentia").iterdir() if p.is_symlink()} <= set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_bare_folder_name_is_refused(layer: str) -> None:
    with pytest.raises(ImportError, match=rf"use potentia\.{layer}, not the bare folder name"):
        runpy.run_path(str(ROOT / layer / "__init__.py"), run_name=layer)


def test_the_standard_librarys_io_is_not_shadowed() -> None:
    code = "import io, potentia.io; assert io.BytesIO; assert io is not potentia.io"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests")


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    loaded = importlib.import_module(module)
    assert sorted(loaded.__all__) == PUBLIC[module]
    assert list(loaded.__all__) == sorted(loaded.__all__)
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None
        assert name in dir(loaded)
    shown = {name for name, value in vars(loaded).items() if not name.startswith("_") and not _is_module(value)}
    assert shown - {"TYPE_CHECKING", "Any"} <= set(loaded.__all__), "a public name is not in __all__"


def _is_module(value: object) -> bool:
    return isinstance(value, type(sys))


def test_every_layer_is_checked() -> None:
    assert set(PUBLIC) == {"potentia", *(f"potentia.{layer}" for layer in LAYERS)}


def test_the_facade_refuses_what_it_does_not_have() -> None:
    potentia = importlib.import_module("potentia")
    with pytest.raises(AttributeError, match="module 'potentia' has no attribute 'nonsense'"):
        potentia.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    ["import potentia", "from potentia import annealers, energies, inference, likelihoods", "import potentia.io"],
)
def test_importing_loads_no_library_that_is_not_needed(statement: str) -> None:
    # torch may bring some along by itself; what counts is what comes on top.
    code = (
        f"import sys, torch; before = set(sys.modules); {statement}; "
        f"print(sorted(set({OPTIONAL!r}) & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_facade_loads_no_layer_before_it_is_asked_for() -> None:
    code = (
        "import sys, potentia; "
        "print([m for m in sys.modules if m.startswith('potentia.') and not m.startswith('potentia._')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
