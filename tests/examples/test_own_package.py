"""The package of one's own: its test-suite passes where it is copied to, and fails on what is broken in the copy."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from potentia import inference

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "own_package"
FAULTS = {
    "_energy.py": ("d / (self.scale**2 * ", "d / (self.scale * ", "grad is the derivative of forward"),
    "_operator.py": ("rows[..., :, None] + ", "rows[..., :, None] - ", "Re <A x, y> = Re <x, A\\^H y>"),
}


def run_suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the suite of a copy, as its users would, with nothing of it installed."""
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__", ".*")))


def test_its_suite_passes(copy: Path) -> None:
    done = run_suite(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b9 passed", done.stdout)


def test_its_suite_catches_a_wrong_gradient_and_a_wrong_adjoint(copy: Path) -> None:
    for name, (sound, broken, _) in FAULTS.items():
        file = copy / "src" / "potentia_curvature" / name
        text = file.read_text(encoding="utf-8")
        assert text.count(sound) == 1
        file.write_text(text.replace(sound, broken), encoding="utf-8")
    done = run_suite(copy, "-k", "contract")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"\b2 failed", done.stdout)
    for _, _, says in FAULTS.values():
        assert re.search(says, done.stdout), done.stdout


def test_the_code_of_its_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PACKAGE / "src")
    (block,) = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert block.count("num_draws=1000") == 1
    scope: dict[str, Any] = {}
    with inference.without_diagnostics():  # of chains that are short here
        exec(compile(block.replace("num_draws=1000", "num_draws=25"), "README.md", "exec"), scope)
    assert scope["ensemble"].coverage(scope["truth"], 0.9) > 0.6


def test_it_asks_for_potentia_and_ships_its_types() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    assert "potentia" in project["project"]["dependencies"]
    assert project["tool"]["setuptools"]["package-data"] == {"potentia_curvature": ["py.typed"]}
    assert (PACKAGE / "src" / "potentia_curvature" / "py.typed").is_file()
