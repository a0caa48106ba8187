"""The demonstration, in a small setting on the same real brain."""

from pathlib import Path

import pytest
import torch

import potentia as pt
from potentia._cli import run
from potentia._cli._demo import DISTANCE_MM, DemoOptions, brain_slices, simulate_scan

pytest.importorskip("nilearn")

SMALL = DemoOptions(Path(), coils=3, pixel=6, acceleration=2.0)


def test_the_demonstration_runs_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--chains", "4", "--levels", "4", "--coils", "3", "--pixel", "6", "--acceleration", "2"]
    assert run(["demo", "--out", str(tmp_path), *options]) == 0
    told = capsys.readouterr().out
    for words in ("zero-filled", "MAP", "mean", "PSNR", "SSIM", "90 % interval", "gradient evaluations", "time"):
        assert words in told
    ensemble = pt.open_ensemble(tmp_path / "demo.zarr")
    assert ensemble.num_chains == 4
    assert {"truth", "zero_filled", "coil_maps", "mask"} <= set(ensemble.tree["constant_data"].data_vars)
    assert "map" in ensemble.tree["posterior_summary"].data_vars
    assert (tmp_path / "demo.png").stat().st_size > 50_000


def test_the_prior_never_sees_the_slice_or_its_neighbours() -> None:
    slices, heights = brain_slices(6)
    scan = simulate_scan(SMALL)
    apart = [abs(h - 100) >= DISTANCE_MM for h in heights]
    assert scan.trained_on <= sum(apart) + 1
    assert scan.trained_on < len(slices) - 2 * DISTANCE_MM // 6


def test_the_slice_is_a_brain_seen_from_below_with_the_front_up() -> None:
    slices, _ = brain_slices(6)
    assert slices.shape[-2] % 8 == 0
    assert slices.shape[-1] % 8 == 0
    assert 0.9 < float(slices.max()) < 2
    truth = simulate_scan(SMALL).truth
    assert truth.is_complex()
    # The head is longer than wide.
    inside = truth.abs()[0] > 0.3
    assert int(inside.any(1).sum()) > int(inside.any(0).sum())
    assert torch.equal(truth, simulate_scan(SMALL).truth)
