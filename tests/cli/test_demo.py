"""The demonstration, in a small setting on the same real brain."""

from pathlib import Path

import pytest
import torch

import potentia as pt
from potentia import energies
from potentia._cli import run
from potentia._cli._demo import DISTANCE_MM, DemoOptions, brain_slices, simulate_scan

pytest.importorskip("nilearn")

SMALL = DemoOptions(Path(), coils=3, pixel=6, acceleration=2.0, prior="gaussian-field")


@pytest.fixture
def learned(tmp_path: Path) -> str:
    """A file of an energy of complex images, untrained."""
    torch.manual_seed(0)
    net = energies.EDM(energies.UNet(2, widths=(8, 8), embedding=8), 0.3)
    return str(energies.save(energies.Denoiser(net, (0.005, 5.0)), tmp_path / "tiny.safetensors", {"data": "nothing"}))


@pytest.mark.parametrize("kind", ["gaussian-field", "learned"])
def test_the_demonstration_runs_and_reports(
    kind: str, learned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--chains", "4", "--levels", "4", "--coils", "3", "--pixel", "6", "--acceleration", "2"]
    prior = learned if kind == "learned" else kind
    assert run(["demo", "--out", str(tmp_path), "--prior", prior, *options]) == 0
    told = capsys.readouterr().out
    assert ("What the prior saw: nothing" if kind == "learned" else "at least 20 mm away") in told
    assert ("total_variation" in told or "TotalVariation" in told) == (kind != "learned")
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
    used = int(scan.seen.split()[0])
    assert used <= sum(apart) + 1
    assert used < len(slices) - 2 * DISTANCE_MM // 6


def test_an_unknown_prior_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--out", str(tmp_path), "--prior", "brain-t9", "--pixel", "6"]) == 2
    assert "neither a file nor an energy of the package" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_frame_holds_the_whole_brain() -> None:
    slices, _ = brain_slices(2)
    edges = torch.cat([slices[..., 0, :].flatten(), slices[..., -1, :].flatten(), slices[..., 0].flatten()])
    assert float(edges.max()) < 0.05
    assert slices.shape[-2:] == (96, 96)


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
