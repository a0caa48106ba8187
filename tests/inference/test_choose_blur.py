"""The example that picks a blur's width, or a noise level, by evidence."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load_example() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "choose_blur.py"
    spec = importlib.util.spec_from_file_location("choose_blur", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()
SMALL = ["--side", "5", "--particles", "32", "--runs", "4"]


@pytest.mark.parametrize(
    ("unknown", "candidates", "truth"), [("blur", ["0.5", "0.9", "1.4"], 0.9), ("noise", ["0.05", "0.1", "0.2"], 0.1)]
)
def test_the_right_one_wins(
    unknown: str, candidates: list[str], truth: float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = example.main(
        [*SMALL, "--unknown", unknown, "--candidates", *candidates, "--figure", str(tmp_path / "f.png")]
    )
    printed = capsys.readouterr().out
    assert example.best(rows).candidate == truth
    assert max(rows, key=lambda r: r.exact).candidate == truth
    assert all(abs(r.log_evidence - r.exact) < 4 * r.std_error for r in rows)
    assert len([line for line in printed.splitlines() if "±" in line]) == 3
    assert "<- chosen (the truth)" in printed
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_the_prior_is_stationary_and_of_the_right_contrast() -> None:
    prior = example.textures(6)
    covariance = (
        prior.covariances.eigenvectors * prior.covariances.eigenvalues[:, None] @ (prior.covariances.eigenvectors.mT)
    )
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    assert diagonal.std(1).max() < 1e-9
    assert diagonal.mean(1).tolist() == pytest.approx([0.36, 1.0, 2.56], rel=1e-4)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0
    assert "--candidates" in capsys.readouterr().out
