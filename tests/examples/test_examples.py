"""The examples run in a small setting, draw their figure, and find what they say they find."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import potentia as pt
from potentia import inference

FOLDER = Path(__file__).resolve().parents[2] / "examples"
ELSEWHERE = {"choose_blur", "hierarchical"}  # tested with what they are examples of, in tests/inference


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def run(name: str, arguments: list[str], folder: Path) -> Any:
    """What ``main`` returns; chains are short here, which is not to warn of."""
    path = folder / "figure.png"
    with inference.without_diagnostics():
        found = load_example(name).main([*arguments, "--figure", str(path)])
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 5000
    return found


def blind_deblurring(found: Any) -> None:
    rows, coverage = found
    assert [r.unknown for r in rows] == ["blur", "noise_std"]
    for row in rows:
        assert abs(row.off) < 4  # Monte-Carlo standard errors, against the integral
        assert abs(row.mean - row.truth) < 4 * row.exact_std
    assert 0.75 < coverage < 1.0


def ct(found: Any) -> None:
    assert found.psnr > found.psnr_least_squares + 1
    assert found.coverage > 0.6


def custom_annealer(found: Any) -> None:
    spread = {row.name: row.spread for row in found}
    assert len({row.steps for row in found}) == 1
    # 100 draws of 144 pixels: chance is worth about 1 %, few levels the rest; the others are off by more.
    assert abs(spread["at textures"] - 1) < 0.1
    assert spread["at textures"] < min(spread["halving"], spread["Karras"])


def custom_energy(found: Any) -> None:
    assert found.complaint is None
    assert "grad is the derivative of forward" in found.complaint_wrong
    assert found.psnr > found.psnr_measured + 1.5
    assert found.coverage > 0.6


def custom_likelihood(found: Any) -> None:
    own, gaussian = found
    assert own.rmse < 0.95 * gaussian.rmse
    assert 0.75 < own.coverage < 1.0
    assert own.predictive_p > 0.05
    assert gaussian.predictive_p < 0.05


def deblurring(found: Any) -> None:
    measured, learned, tv = found
    assert (learned.prior, tv.prior) == ("faces-64", "tv")
    assert learned.psnr > measured.psnr + 1
    assert learned.coverage > 0.5


def inpainting(found: Any) -> None:
    assert found.psnr > 15
    assert found.std_hole > 3 * found.std_seen
    assert found.coverage_hole > 0.6


def mri_brain(found: Any) -> None:
    assert found.psnr > found.psnr_least_squares + 1
    assert 0.8 < found.chi2 < 1.2
    assert found.coverage > 0.5


def phase_retrieval(found: Any) -> None:
    assert max(found.chi2) < 1.3
    assert found.rhat > 1.5
    assert found.error > 2 * found.error_turned
    assert found.error_turned < 0.3


def poisson(found: Any) -> None:
    right, wrong = found["right"], found["background forgotten"]
    assert 0.75 < right.coverage < 1.0
    assert right.error < wrong.error
    assert 0.05 < right.predictive_p < 0.95
    assert 0.2 < right.acceptance < 0.95


SMALL: dict[Callable[[Any], None], list[str]] = {
    blind_deblurring: ["--side", "10", "--draws", "30", "--warmup", "20", "--chains", "4"],
    ct: ["--side", "16", "--angles", "8", "--chains", "2", "--draws", "12", "--warmup", "15"],
    custom_annealer: ["--side", "12", "--levels", "18"],
    custom_energy: ["--side", "16", "--chains", "2", "--draws", "20", "--warmup", "30"],
    custom_likelihood: ["--side", "16", "--chains", "2", "--draws", "30", "--warmup", "30"],
    deblurring: ["--side", "32", "--levels", "12", "--steps", "2", "--chains", "4", "--draws", "8"],
    inpainting: ["--hole", "6", "6", "--levels", "14", "--steps", "2", "--chains", "6"],
    mri_brain: ["--side", "48", "--levels", "6", "--steps", "2", "--chains", "2", "--draws", "4"],
    phase_retrieval: ["--side", "8", "--chains", "3", "--draws", "30", "--warmup", "40"],
    poisson: ["--side", "12", "--chains", "2", "--draws", "25", "--warmup", "12", "--leapfrog", "3"],
}


@pytest.mark.parametrize("check", SMALL, ids=lambda check: check.__name__)
def test_it_runs_and_finds_what_it_should(check: Callable[[Any], None], tmp_path: Path) -> None:
    if check is deblurring:
        pytest.importorskip("skimage")
    check(run(check.__name__, SMALL[check], tmp_path))


def test_every_example_is_tested() -> None:
    tested = {check.__name__ for check in SMALL} | ELSEWHERE
    assert {path.stem for path in FOLDER.glob("*.py")} == tested
    for name in ELSEWHERE:
        assert any(f'"{name}.py"' in path.read_text("utf-8") for path in FOLDER.parent.glob("tests/inference/*.py"))


@pytest.mark.parametrize("name", sorted(check.__name__ for check in SMALL))
def test_help_is_the_docstring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example(name)
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert (example.__doc__ or "").splitlines()[0] in printed
    assert "--figure" in printed


def test_a_real_scan_from_file_to_store(shared_data: Path, tmp_path: Path) -> None:
    """Eight coils, eightfold undersampled, in very few steps: far from converged, but data and model meet."""
    scan, store = shared_data / "mri" / "brain_8coil_ksp_230x180.npy", tmp_path / "scan.zarr"
    small = ["--levels", "2", "--steps", "1", "--chains", "1", "--draws", "2"]
    found = run("mri_brain", ["--data", str(scan), *small, "--store", str(store)], tmp_path)
    assert found.psnr is None
    assert 0.7 < found.chi2 < 1.5
    assert found.held_coverage > 0.2  # two draws know little of their spread
    ensemble = pt.open_ensemble(store)
    assert ensemble.is_complex
    assert tuple(ensemble.image.shape) == (1, 2, 2, 230, 180)
