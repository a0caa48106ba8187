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
        "ConvergenceWarning", "DiagnosticWarning", "Energy", "Ensemble", "Likelihood", "Potential", "Quadratic",
        "ScoreOnly", "Sum", "annealers", "energies", "inference", "io", "likelihoods", "map_estimate",
        "open_ensemble", "sample", "summary", "testing",
    ],
    "potentia.annealers": ["Annealer", "Constant", "Cosine", "Geometric", "Karras", "Ladder", "Level", "Linear"],
    "potentia.energies": [
        "Card", "DCT", "Denoiser", "EDM", "EDMPotential", "FieldsOfExperts", "Function", "Gaussian", "GaussianField",
        "GaussianMixture", "ScaleOffset", "ScoreModel", "Sparsity", "StudentT", "TotalDeepVariation",
        "TotalVariation", "UNet", "Wavelet", "convert_edm_pickle", "from_deepinv", "from_diffusers", "from_function",
        "load", "read_card", "read_edm_pickle", "save", "shipped",
    ],
    "potentia.inference": [
        "ALPS", "Calibrated", "ChEES", "Chained", "DAPS", "DPS", "DiagnosticWarning", "DiffPIR", "Evidence",
        "EvidenceWarning", "FailedItemsWarning", "GewekeResult", "Gibbs", "HMC", "Homogeneous", "Info", "Langevin",
        "MALA", "MMPS", "MapEstimate", "MmseEstimate", "NoiseStd", "Normaliser", "ParallelTempering", "Parameter",
        "PotentialFunction", "Preconditioner", "PredictiveCheck", "PyroMALA", "PyroModel", "RankHistogram",
        "Reconstruction", "Rule", "SBCResult", "SMC", "Sampler", "SplitGibbs", "State", "Summary", "TARPResult",
        "TwistedSMC", "Unknown", "Weight", "ess", "geweke_test", "log_evidence", "map_estimate", "mcse", "mmse",
        "nested_rhat", "pixel_diagnostics", "posterior_predictive_check", "potential_fn", "pyro_model",
        "rank_histogram", "rhat", "sample", "sample_dataset", "simulation_based_calibration", "standard_normal",
        "summary", "tarp", "without_diagnostics",
    ],
    "potentia.io": [
        "Calibration", "Collection", "Durability", "Ensemble", "EnsembleWriter", "Modes", "Scan", "StoreError",
        "StoreExistsError", "centre_crop", "check_target", "compress_coils", "espirit_maps", "estimate_noise_std",
        "mix_coils", "noise_covariance", "noise_samples", "open_collection", "open_ensemble", "prewhiten",
        "read_array", "read_cfl", "read_image", "read_scan", "remove_oversampling", "sampling_mask", "scale_kspace",
        "scale_to_percentile", "whitening_matrix", "write_cfl",
    ],
    "potentia.likelihoods": [
        "Bayer", "ChannelMix", "CodedDiffraction", "Convolution", "Downsample", "FanBeam", "ForwardModel", "Fourier",
        "FourierPhaseRetrieval", "Gamma", "Gaussian", "GaussianBlur", "Identity", "Laplace", "Mask", "Matrix",
        "MotionBlur", "NoiseModel", "NonCartesian", "OffResonance", "Operator", "PaddedFourier", "PhaseRetrieval",
        "Poisson", "PoissonGaussian", "ProductConvolution", "Quantised", "Radon", "Rician", "Sense",
        "SimultaneousSlices", "Stack", "StructuredRandom", "StudentT", "SuperResolution", "ToneCurve",
        "ValidConvolution", "birdcage_maps", "caipi_phases", "cartesian_mask", "density_weights", "equispaced_mask",
        "from_deepinv", "from_pylops", "partial_fourier_mask", "poisson_disk_mask", "radial_trajectory", "random_mask",
        "spiral_trajectory",
    ],
}  # fmt: skip
OPTIONAL = [
    "PIL", "arviz", "dask", "deepinv", "diffusers", "finufft", "h5py", "huggingface_hub", "hypothesis", "ismrmrd",
    "lightning_fabric", "matplotlib", "nibabel", "numba", "pydicom", "pylops", "pyro", "rich", "scipy", "sigpy",
    "sklearn", "typer", "xarray", "zarr",
]  # fmt: skip
# What is installed beside the code, a package at a time.
DATA = {
    "potentia": ["py.typed"],
    "potentia.energies": ["weights/*.safetensors"],
    "potentia.report": ["*.css", "*.html", "*.js"],
    "potentia.training": ["recipes/*.toml"],
}


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
    assert {f"potentia.{layer}" for layer in (*LAYERS, "testing", "training", "_cli")} <= set(packages)


def data_left_out(folders: dict[str, str], data: dict[str, list[str]]) -> list[str]:
    """Files other than code in the folders of packages that no pattern of theirs takes along."""
    left_out = []
    for package, folder in folders.items():
        at = ROOT / folder
        inner = {path for other in folders.values() if at in (path := ROOT / other).parents}
        taken = {path for pattern in data.get(package, []) for path in at.glob(pattern)}
        for path in at.rglob("*"):
            code = path.suffix in (".py", ".pyc") or path.is_dir()
            if not (code or path in taken or path.is_symlink() or inner & set(path.parents)):
                left_out.append(path.relative_to(ROOT).as_posix())
    return sorted(left_out)


def test_the_data_are_installed() -> None:
    packages, folders = setuptools_tables()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data == DATA
    assert set(data) <= set(packages)
    assert (ROOT / "src" / "potentia" / "py.typed").is_file()
    assert list((ROOT / "src" / "potentia" / "training" / "recipes").glob("*.toml"))
    assert data_left_out(folders, data) == []


def test_data_without_a_pattern_are_seen() -> None:
    """The planted fault: the marker of typing and the recipes, without the patterns that take them along."""
    left_out = data_left_out(setuptools_tables()[1], {"potentia.energies": DATA["potentia.energies"]})
    assert "src/potentia/py.typed" in left_out
    assert "src/potentia/training/recipes/digits-28.toml" in left_out


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
    # The order that Ruff keeps: capitals, classes, functions.
    assert list(loaded.__all__) == sorted(loaded.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
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
