"""``potentia sample`` on data sets: which items there are, what is built of them, and what is said at the end."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch

import potentia as pt
from potentia import likelihoods
from potentia._cli import EXIT_BAD_INPUT, run
from potentia._cli._dataset import (
    EXIT_SOME_FAILED,
    BuildItem,
    DataItem,
    DatasetOptions,
    _anchored,
    _filled,
    is_dataset,
    list_items,
    run_dataset,
)
from potentia._cli._options import SampleOptions
from potentia._cli._sample import run_sample
from potentia.inference._dataset import item_seed
from potentia.io._collection import open_collection

SMALL = ["--chains", "2", "--draws", "2", "--sampler", "alps", "--levels", "3", "--steps", "2"]
nibabel = pytest.importorskip("nibabel")


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (7, 5)) -> Path:
    from PIL import Image

    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)).save(path)
    return path


def volume(path: Path, depth: int = 12) -> Path:
    values = np.random.default_rng(1).normal(size=(7, 5, depth)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one that is broken, and what is no item."""
    data = tmp_path / "data"
    (data / "more").mkdir(parents=True)
    picture(data / "scan10.png", 10)
    picture(data / "scan9.png", 9)
    (data / "scan11.png").write_bytes((data / "scan9.png").read_bytes()[:60])
    (data / "README.txt").write_text("x")
    picture(data / ".hidden.png")
    picture(data / "more" / "other.png")
    return data


def options(data: Path, **changes: Any) -> SampleOptions:
    small = SampleOptions(
        str(data), 0.1, str(data.parent / "out"), chains=2, draws=2, sampler="alps", levels=3, steps=2
    )
    return replace(small, **changes)


def test_a_folder_is_sampled_and_what_failed_is_told(
    folder: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--data", str(folder), "--noise-std", "0.1", "--store", str(folder.parent / "out"), *SMALL]
    command += ["--scheduler", scheduler]
    assert run(command) == EXIT_SOME_FAILED
    told = capsys.readouterr().out
    assert f"3 items of {folder}, each 2 chains of 2 draws" in told
    assert "2 of 3 items complete" in told
    assert "1 of 3 items failed" in told
    (line,) = [line for line in told.splitlines() if line.startswith("scan11.png ")]
    assert "cannot be read as a picture" in line
    collection = open_collection(folder.parent / "out")
    assert collection.names == ("scan9.png", "scan10.png", "scan11.png")
    # As the command would do it for one file.
    seed = item_seed(0, "scan9.png")
    single = options(folder / "scan9.png", store=str(folder.parent / "single.zarr"), seed=seed)
    assert torch.equal(collection["scan9.png"].samples(), run_sample(single).samples())
    # Mended and resumed, all is well.
    picture(folder / "scan11.png", 11)
    capsys.readouterr()
    assert run([*command, "--resume"]) == 0
    told = capsys.readouterr().out
    assert "3 of 3 items complete" in told
    assert "failed" not in told
    assert run([*command[:3], "--noise-std", "0.2", *command[5:], "--resume"]) == EXIT_BAD_INPUT
    assert "noise_std of the stored collection is 0.1, this run has 0.2" in capsys.readouterr().err


def test_a_volume_is_sampled_slice_by_slice(tmp_path: Path, scheduler: str) -> None:
    head = volume(tmp_path / "head.nii.gz")
    chosen = DatasetOptions(scheduler=scheduler, slices="3:9:4")
    assert run_dataset(options(head, slice_axis=1), replace(chosen, slices="4:")) == 0
    assert open_collection(tmp_path / "out").names == ("head.nii.gz.y004",)
    assert run_dataset(options(head, store=str(tmp_path / "z")), chosen) == 0
    collection = open_collection(tmp_path / "z")
    assert collection.names == ("head.nii.gz.z003", "head.nii.gz.z007")
    stored = collection["head.nii.gz.z007"].tree["observed_data"]["y"].values
    assert np.array_equal(stored[0], np.asarray(nibabel.load(head).dataobj)[:, :, 7])
    assert collection.mean().shape == (2, 1, 7, 5)


def items_of(data: Path, changes: dict[str, Any] | None = None, **dataset: Any) -> list[str]:
    return list(list_items(options(data, **(changes or {})), DatasetOptions(**dataset)))


def test_files_go_by_number_and_slices_by_their_index(folder: Path) -> None:
    volume(folder / "a.nii", 3)
    (folder / "broken.nii").write_bytes(b"x")
    np.save(folder / "scan9.npy", np.zeros((4, 4)))
    assert items_of(folder) == [
        "a.nii.z000",
        "a.nii.z001",
        "a.nii.z002",
        "broken.nii",
        "scan9.npy",
        "scan9.png",
        "scan10.png",
        "scan11.png",
    ]
    assert items_of(folder, slices="1")[:2] == ["a.nii.z001", "broken.nii"]
    assert items_of(folder, slices="7:")[0] == "broken.nii"
    found = list_items(options(folder), DatasetOptions())
    assert found["a.nii.z001"] == DataItem(str(folder / "a.nii"), 1)
    assert found["scan9.npy"] == DataItem(str(folder / "scan9.npy"))


@pytest.mark.parametrize(
    ("text", "wanted"), [("2:5", [2, 3, 4]), ("10:", [10, 11]), (":2", [0, 1]), ("::5", [0, 5, 10]), ("4", [4])]
)
def test_ranges_of_slices(text: str, wanted: list[int], tmp_path: Path) -> None:
    assert items_of(volume(tmp_path / "v.nii"), slices=text) == [f"v.nii.z{k:03d}" for k in wanted]


def test_what_is_read_beside_items_is_no_item(folder: Path) -> None:
    (folder / "scan11.png").unlink()
    np.save(folder / "mask [1].npy", np.ones((7, 5)))
    np.save(folder / "scan9.truth.npy", np.ones((7, 5)))
    np.savez(folder / "maps.npz", a=np.ones(3))
    beside = {
        "mask": str(folder / "mask [1].npy"),
        "truth": str(folder / "{stem}.truth.npy"),
        "coil_maps": str(folder / "maps.npz") + ":a",
        "prior_data": (str(folder / "scan10.png"),),
    }
    assert items_of(folder, beside) == ["scan9.png"]
    # What lies in an item's own file does not hide the item.
    assert "scan9.png" in items_of(folder, {"mask": "{path}"})


def test_items_have_masks_maps_and_truths_of_their_own(tmp_path: Path, scheduler: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    g = torch.Generator().manual_seed(0)
    maps = likelihoods.birdcage_maps(2, (8, 8))
    for name in ("one", "two"):
        operator = likelihoods.Sense(maps * (1 if name == "one" else 1j), likelihoods.cartesian_mask((8, 8), 2.0))
        truth = torch.randn(1, 8, 8, dtype=torch.complex64, generator=g)
        np.savez(data / f"{name}.npz", kspace=operator.measure(truth, 0.1, g), maps=operator.coil_maps)
        np.save(tmp_path / f"{name}-truth.npy", truth)
    given = options(
        data, coil_maps="{path}:maps", truth=str(tmp_path / "{stem}-truth.npy"), store=str(tmp_path / "out")
    )
    assert run_dataset(given, DatasetOptions(scheduler=scheduler, array="kspace")) == 0
    collection = open_collection(tmp_path / "out")
    for name in ("one", "two"):
        held = collection[f"{name}.npz"].tree["constant_data"]
        assert np.array_equal(held["truth"][0], np.load(tmp_path / f"{name}-truth.npy").real)
        assert np.array_equal(held["coil_maps"][0], np.load(data / f"{name}.npz")["maps"].real)


def test_what_is_sent_to_workers_is_small_and_knows_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mask.npy", np.ones((7, 5)))
    picture(Path("a.png"))
    given = _anchored(options(Path("a.png"), mask="mask.npy", prior="0.5*weights.safetensors + tv+gaussian-field"))
    assert given.mask == str(tmp_path / "mask.npy")
    assert given.prior == f"0.5*{tmp_path}/weights.safetensors + tv + gaussian-field"
    build = BuildItem(replace(given, prior="2*tv"))
    assert len(cloudpickle.dumps(build)) < 2000
    monkeypatch.chdir("/")
    made = cloudpickle.loads(cloudpickle.dumps(build))(DataItem(str(tmp_path / "a.png")))
    assert isinstance(made.posterior, pt.Sum)
    assert "mask" in dict(made.posterior.likelihood.operator.named_buffers())  # type: ignore[union-attr]
    with pytest.raises(FileNotFoundError, match=r"none\.npy: there is no such file"):
        _anchored(replace(given, truth="none.npy"))


def test_places_are_filled_in() -> None:
    assert _filled("{path}:maps", "/d/a.b.nii.gz") == "/d/a.b.nii.gz:maps"
    assert _filled("m/{stem}.npy", "/d/a.b.nii.gz") == "m/a.b.npy"
    assert _filled(None, "/d/a") is None


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"plot": Path("x.png")}, {}, "--plot: does not go with a data set"),
    ({"index": 3}, {}, "--index: does not go with a data set: use --slices"),
    ({"slice_axis": 3}, {}, "--slice-axis: is 3, expected 0, 1 or 2"),
    ({}, {"slices": "a:b"}, "--slices: is 'a:b', expected START:STOP"),
    ({}, {"slices": ""}, "--slices: is ''"),
    ({}, {"slices": "1:2:0"}, "--slices"),
    ({}, {"workers": 0}, "--workers must be at least 1"),
    ({}, {"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "workers are those of the cluster"),
    ({"prior": "nothing"}, {}, "--prior: 'nothing' is unknown"),
    ({"coil_maps": "none.npy"}, {}, "none.npy: there is no such file"),
    ({"data": "nowhere"}, {}, "nowhere: there is no such file or folder"),
    ({"resume": True}, {}, "there is no collection"),
]


@pytest.mark.parametrize(("changes", "dataset", "words"), WRONG, ids=[w for _, _, w in WRONG])
def test_wrong_options_are_told_before_anything_is_written(
    folder: Path, scheduler: str, changes: dict[str, Any], dataset: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words.replace("[", r"\[")):
        run_dataset(replace(options(folder), **changes), DatasetOptions(**{"scheduler": scheduler, **dataset}))
    assert not (folder.parent / "out").exists()


def test_a_folder_without_items_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"has no items, expected files of \.png"):
        list_items(options(tmp_path), DatasetOptions())
    volume(tmp_path / "a.nii", 3)
    with pytest.raises(ValueError, match="has no items"):
        list_items(options(tmp_path), DatasetOptions(slices="3:"))


def test_what_asks_for_a_data_set(folder: Path) -> None:
    one = options(folder / "scan9.png")
    assert is_dataset(options(folder), DatasetOptions())
    assert not is_dataset(one, DatasetOptions())
    assert is_dataset(one, DatasetOptions(slices="3:5"))
    assert is_dataset(one, DatasetOptions(scheduler="tcp://x:1"))


def test_ctrl_c_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("potentia._cli._dataset.sample_dataset", pressed)
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        run_dataset(options(folder), DatasetOptions())
    assert "--resume goes on" in capsys.readouterr().err
