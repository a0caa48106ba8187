"""``potentia train`` from images in files to an energy in a file, and what it says to wrong ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from potentia import energies
from potentia._cli import run
from potentia.training._recipe import read_recipe, shipped_recipes

RECIPE = """
[card]
data = "blobs"
licence = "none"

[data]
[[data.source]]
path = "blobs.npy"
range = [0, 255]
validation = { last = 8 }

[augment]
flip = true

[network]
widths = [8, 8]
embedding = 8

[teacher]
steps = 12
batch = 8
warmup = 2

[energy]
steps = 4
batch = 8
warmup = 1
scales = [0.01, 10.0]

[evaluate]
sigmas = [0.1, 1.0]
images = 6
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:8, :8]
    centres = rng.uniform(1, 6, (40, 2, 1, 1))
    blobs = 255 * np.exp(-((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2) / 4)
    np.save(tmp_path / "blobs.npy", blobs.astype(np.uint8))
    np.save(tmp_path / "noise.npy", rng.integers(0, 255, (40, 8, 8), dtype=np.uint8))
    (tmp_path / "blobs.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "noise.toml").write_text(RECIPE.replace("blobs.npy", "noise.npy"), encoding="utf-8")
    return tmp_path


def train(folder: Path, command: str, *more: str, recipe: str = "blobs.toml") -> int:
    return run(
        ["train", command, str(folder / recipe), "--data", str(folder), "--out", str(folder / "run"), *more]
    )  # fmt: skip


def test_from_images_to_an_energy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "teacher") == 0
    assert train(folder, "energy") == 0
    weights = folder / "run" / "blobs.safetensors"
    energy = energies.load(weights)
    assert isinstance(energy, energies.Denoiser)
    assert isinstance(energies.load(folder / "run" / "teacher.safetensors"), energies.ScoreModel)
    info = energies.read_card(weights).info
    assert info["data"] == "blobs"
    assert info["images"] == {"shape": [1, 8, 8], "complex": False, "peak": 2.0}
    assert (info["trained_on"], info["validated_on"]) == (32, 8)
    assert set(info["metrics"]) == {"psnr", "teacher_psnr", "relative_residual"}
    assert info["training"]["steps"] == 4
    capsys.readouterr()
    assert train(folder, "evaluate", "--strange", str(folder / "noise.toml"), "--write") == 0
    told = capsys.readouterr().out
    assert "difference" in told
    assert "AUROC" in told
    found = json.loads((folder / "run" / "evaluation.json").read_text("utf-8"))
    assert found["asymmetry"] < 1e-10
    assert set(found["ordering"]) == {"strange", "0.05", "0.1", "0.2"}
    written = energies.read_card(weights).info["metrics"]
    assert written["ordering"] == found["ordering"]
    again = energies.load(weights)
    x = torch.zeros(2, 1, 8, 8)
    assert torch.equal(again(x, 0.1), energy(x, 0.1))


def test_an_energy_without_a_teacher(folder: Path) -> None:
    changes = ["--set", 'energy.form="scalar"', "--set", "energy.consistency=0.1"]
    assert train(folder, "energy", "--no-teacher", *changes) == 0
    energy = energies.load(folder / "run" / "blobs.safetensors")
    assert isinstance(energy, energies.Denoiser)
    assert energy.form == "scalar"
    assert energy.offset is not None
    assert energy.denoise(torch.zeros(1, 1, 8, 8), 0.5).shape == (1, 1, 8, 8)


def test_psi_starts_from_the_teacher(folder: Path) -> None:
    assert train(folder, "teacher") == 0
    assert train(folder, "energy", "--set", "energy.steps=1", "--set", "energy.learning_rate=1e-12") == 0
    teacher = energies.load(folder / "run" / "teacher.safetensors")
    energy = energies.load(folder / "run" / "blobs.safetensors")
    for a, b in zip(teacher.parameters(), energy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_finished_folder_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "teacher") == 0
    assert train(folder, "teacher") == 2
    assert "holds a training already" in capsys.readouterr().err
    assert train(folder, "teacher", "--resume") == 0
    assert train(folder, "teacher", "--resume", "--set", "teacher.steps=13") == 2
    assert "another training: settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher.speed=3", "unknown keys speed"),
        ("network.depth=3", "[network] has unknown keys depth"),
        ("augment.spin=3", "spin"),
        ("nothing=3", "unknown keys nothing"),
        ("teacher.steps=0", "steps must be at least 1"),
        ("teacher.noise={distribution='flat'}", "noise distribution is 'flat'"),
        ("energy.form='round'", "form is 'round'"),
        ("network.widths=[5]", "widths are [5], expected multiples of 8"),
        ("network.sigma_data=-1", "sigma_data must be positive"),
        ("steps", "is no TOML setting"),
        ("data.source=[]", "source"),
    ],
)
def test_wrong_settings_are_refused(
    folder: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "teacher", "--set", change) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (folder / "run" / "teacher.safetensors").exists()


def test_wrong_files_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "teacher", recipe="absent.toml") == 2
    assert "neither a file nor a recipe of the package" in capsys.readouterr().err
    (folder / "broken.toml").write_text("[data\n", encoding="utf-8")
    assert train(folder, "teacher", recipe="broken.toml") == 2
    assert "is no TOML" in capsys.readouterr().err
    (folder / "empty.toml").write_text("", encoding="utf-8")
    assert train(folder, "teacher", recipe="empty.toml") == 2
    assert "has no [data]" in capsys.readouterr().err
    assert train(folder, "energy") == 2
    assert "teacher.safetensors" in capsys.readouterr().err
    assert train(folder, "energy", "--no-teacher", "--set", "energy.compile=true") == 2
    assert "no double backward" in capsys.readouterr().err
    assert train(folder, "energy", "--no-teacher") == 0
    assert train(folder, "energy", "--teacher", str(folder / "run" / "blobs.safetensors")) == 2
    assert "expected a teacher" in capsys.readouterr().err
    assert train(folder, "teacher") == 0
    assert train(folder, "evaluate", "--energy", str(folder / "run" / "teacher.safetensors")) == 2
    assert "expected an energy, which has values" in capsys.readouterr().err
    assert train(folder, "teacher", "--device", "abacus") == 2
    assert "device is 'abacus'" in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_whole(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.teacher is not None
    assert recipe.energy is not None
    assert recipe.energy.steps <= recipe.teacher.steps / 4
    assert {"description", "data", "licence"} <= set(recipe.card)
    low, high = recipe.scales
    assert low <= 0.02
    assert high >= 5.0
    recipe.denoiser(3 if name.startswith("faces") else 1, 0.5)
