"""The command line on real files, and what it says to wrong ones."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import potentia as pt
from potentia import energies, likelihoods
from potentia._cli import run

SMALL = ["--chains", "3", "--levels", "3", "--steps", "2"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    data = (127 + 60 * np.sin(np.arange(16 * 12).reshape(16, 12) / 7)).astype(np.uint8)
    Image.fromarray(data).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    maps = likelihoods.birdcage_maps(3, (16, 16))
    operator = likelihoods.Sense(maps, likelihoods.cartesian_mask((16, 16), 2.0))
    truth = torch.randn(1, 16, 16, dtype=torch.complex64, generator=g)
    np.save(tmp_path / "kspace.npy", operator.measure(truth, 0.05, g).numpy())
    np.savez(tmp_path / "maps.npz", maps=maps.numpy(), other=np.zeros(3))
    np.save(tmp_path / "truth.npy", truth.numpy())
    return tmp_path


def test_a_picture_is_denoised_and_shown(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = picture.parent / "out.zarr"
    plot = picture.parent / "out.png"
    assert (
        run(
            ["sample", "--data", str(picture), "--noise-std", "0.1", "--store", str(store), *SMALL, "--plot", str(plot)]
        )
        == 0
    )
    assert plot.stat().st_size > 10_000
    assert pt.open_ensemble(store).num_chains == 3
    assert run(["show", str(store)]) == 0
    told = capsys.readouterr().out
    assert "GaussianField" in told
    assert "3 chains of 1 draws" in told
    assert (picture.parent / "out.zarr.png").exists()


def learned_energy(path: Path, scales: tuple[float, float] = (0.05, 5.0)) -> Path:
    torch.manual_seed(0)
    net = energies.EDM(energies.UNet(1, widths=(8, 8), embedding=8), 0.5)
    return energies.save(energies.Denoiser(net, scales), path)


def test_a_learned_prior_of_a_file(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = learned_energy(picture.parent / "tiny.safetensors")
    given = ["sample", "--data", str(picture), "--noise-std", "0.1", "--prior", f"0.5*{weights} + 0.1*tv"]
    assert run([*given, "--store", str(picture.parent / "a.zarr"), *SMALL]) == 0
    told = capsys.readouterr().out
    assert "psi=EDM, scales 0.05 to 5" in told
    # Scales that are asked for are not changed.
    assert run([*given, "--store", str(picture.parent / "b.zarr"), *SMALL, "--sigma-max", "10"]) == 2
    assert "expected 0.05 to 5" in capsys.readouterr().err
    assert run([*given[:-1], "nothing", "--store", str(picture.parent / "c.zarr"), *SMALL]) == 2
    assert "FILE.safetensors or hf://OWNER/NAME" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["alps", "alps-euler", "alps-published", "langevin"])
def test_every_sampler_and_prior(picture: Path, sampler: str) -> None:
    store = picture.parent / "out.zarr"
    arguments = ["sample", "--data", str(picture), "--noise-std", "0.1", "--store", str(store), *SMALL]
    assert run([*arguments, "--sampler", sampler, "--prior", "gaussian-field + 0.5*tv", "--blur", "0.8"]) == 0
    ensemble = pt.open_ensemble(store)
    assert "0.5 * TotalVariation" in ensemble.attrs["posterior"]
    assert "GaussianBlur" in ensemble.attrs["posterior"]


def test_the_calibrated_recipe_is_the_default(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = picture.parent / "out.zarr"
    arguments = ["sample", "--data", str(picture), "--noise-std", "0.1", "--store", str(store), "--chains", "3"]
    assert run([*arguments, "--budget", "20"]) == 0
    ensemble = pt.open_ensemble(store)
    assert ensemble.attrs["sampler"].startswith("Calibrated(budget=20")
    assert int(ensemble.tree["sample_stats"]["n_grad"].max()) == 20
    assert run([*arguments, "--sampler", "calibrated", "--levels", "5", "--overwrite"]) == 2
    assert "--levels: the sampler calibrated finds its own scales" in capsys.readouterr().err


def test_inpainting_with_a_field_fitted_to_pictures(picture: Path) -> None:
    mask = np.ones((16, 12))
    mask[4:9, 4:9] = 0
    np.save(picture.parent / "mask.npy", mask)
    arguments = ["sample", "--data", str(picture), "--noise-std", "0.1", "--store", str(picture.parent / "out.zarr")]
    assert run([*arguments, "--mask", str(picture.parent / "mask.npy"), "--prior-data", str(picture), *SMALL]) == 0


def test_k_space_with_coil_maps_and_a_truth(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = scan / "out.zarr"
    files = [
        "--data",
        str(scan / "kspace.npy"),
        "--coil-maps",
        f"{scan / 'maps.npz'}:maps",
        "--truth",
        str(scan / "truth.npy"),
    ]
    assert run(["sample", *files, "--noise-std", "0.05", "--store", str(store), *SMALL]) == 0
    assert pt.open_ensemble(store).is_complex
    assert "holds the truth" in capsys.readouterr().out


def test_resume_of_a_finished_run_changes_nothing(picture: Path) -> None:
    store = picture.parent / "out.zarr"
    arguments = ["sample", "--data", str(picture), "--noise-std", "0.1", "--store", str(store), *SMALL]
    assert run(arguments) == 0
    before = pt.open_ensemble(store).samples()
    assert run([*arguments, "--resume"]) == 0
    assert torch.equal(pt.open_ensemble(store).samples(), before)
    assert run(arguments) == 2
    assert run([*arguments, "--overwrite"]) == 0


WRONG: list[tuple[Callable[[Path], list[str]], str]] = [
    (lambda d: ["--data", str(d / "none.png")], "there is no such file"),
    (lambda d: ["--data", str(d / "broken.png")], "cannot be read as a picture"),
    (lambda d: ["--data", str(d / "pickle.npy")], "without pickles"),
    (lambda d: ["--data", str(d / "nan.npy")], "2 NaN or infinite"),
    (lambda d: ["--data", str(d / "kspace.npy")], "expected --coil-maps"),
    (lambda d: ["--data", str(d / "kspace.npy"), "--coil-maps", str(d / "maps.npz")], "expected FILE.npz:NAME"),
    (lambda d: ["--data", str(d / "photo.png"), "--mask", str(d / "zeros.npy")], "zero everywhere"),
    (lambda d: ["--data", str(d / "photo.png"), "--mask", str(d / "small.npy")], "(1, 3, 3)"),
    (lambda d: ["--data", str(d / "photo.png"), "--noise-std", "0"], "noise_std must be positive"),
    (lambda d: ["--data", str(d / "photo.png"), "--prior", "magic"], "'magic' is unknown"),
    (lambda d: ["--data", str(d / "photo.png"), "--prior", "x*tv"], "is no number"),
    (lambda d: ["--data", str(d / "photo.png"), "--sampler", "nuts"], "'nuts' is unknown"),
    (lambda d: ["--data", str(d / "photo.png"), "--sigma-min", "20"], "sigma_min must be at most sigma_max"),
    (lambda d: ["--data", str(d / "photo.png"), "--dtype", "int8"], "dtype is int8"),
    (lambda d: ["--data", str(d / "photo.png"), "--device", "nowhere"], "is not to be had"),
    (lambda d: ["--data", str(d / "photo.png"), "--chains", "0"], "num_chains must be at least 1"),
    (lambda d: ["--data", str(d / "photo.png"), "--store", str(d / "no" / "where.zarr")], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[w for _, w in WRONG])
def test_wrong_input_is_one_sentence_and_no_store(
    scan: Path, picture: Path, capsys: pytest.CaptureFixture[str], arguments: Callable[[Path], list[str]], words: str
) -> None:
    (scan / "broken.png").write_bytes(picture.read_bytes()[:60])
    np.save(scan / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(scan / "nan.npy", np.array([[1.0, np.nan], [np.inf, 1.0]]))
    np.save(scan / "zeros.npy", np.zeros((16, 12)))
    np.save(scan / "small.npy", np.ones((3, 3)))
    given = arguments(scan)
    defaults = {"--noise-std": "0.1", "--store": str(scan / "out.zarr")}
    extra = [text for key, value in defaults.items() if key not in given for text in (key, value)]
    small = [text for k in range(0, len(SMALL), 2) if SMALL[k] not in given for text in SMALL[k : k + 2]]
    assert run(["sample", *given, *extra, *small]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not (scan / "out.zarr").exists()


def test_a_wrong_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(tmp_path / "none.zarr")]) == 2
    assert "there is no such store" in capsys.readouterr().err
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    assert run(["show", str(tmp_path / "a.zarr")]) == 2
    assert "no ensemble store" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["demo"], ["sample"], ["show"]])
def test_help_tells_what_there_is(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "potentia", *command, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: potentia" in done.stdout
    assert "--help" in done.stdout


def test_an_unknown_option_is_refused_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "potentia", "demo", "--wrong"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "Traceback" not in done.stderr
