"""The parts of benchmarks/restoration.py that need neither data nor weights."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from potentia import annealers, energies, likelihoods

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "restoration.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    pytest.importorskip("lightning_fabric")
    spec = importlib.util.spec_from_file_location("restoration_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(task: str, method: str, psnr: list[float], least: float = 1.0, **scores: list[float]) -> dict[str, Any]:
    schedule = {"sigma_max": 1.0, "sigma_min": 0.02, "levels": 10, "steps": 3}
    return {
        "prior": "digits-28",
        "task": task,
        "method": method,
        "scores": {"psnr": psnr, **scores},
        "least_gain": least,
        "tv_weight": 3.0,
        "plan": {"sample": schedule, "descent": schedule, "polish": 50},
        "settings": {"source": "field"},
    }


def rows(task: str, tv: float, best: float, mean: float, least: float = 1.0) -> list[dict[str, Any]]:
    found = {"TV-MAP": tv, "MAP": best, "mean": mean, "mean, published rule": mean}
    return [row(task, method, [v, v + 2.0], least) for method, v in found.items()]


def test_psnr_of_a_constant_error(bench: ModuleType) -> None:
    x = torch.zeros(1, 4, 4)
    assert bench.psnr(x + 0.02, x, 2.0) == pytest.approx(40.0, abs=1e-5)
    assert bench.psnr(x + 0.006 + 0.008j, x, 1.0) == pytest.approx(40.0, abs=1e-5)
    assert bench.psnr(x, x, 1.0) == float("inf")


def test_masks(bench: ModuleType) -> None:
    box = bench.box_mask((3, 10, 12), 4)
    assert box.shape == (10, 12)
    assert not box[3:7, 4:8].any()
    assert box.sum() == 120 - 16
    one, other = (bench.random_mask((1, 20, 30), 0.8, seed) for seed in (0, 1))
    assert one.sum() == other.sum() == 120
    assert not torch.equal(one, other)
    assert torch.equal(one, bench.random_mask((3, 20, 30), 0.8, 0))


def test_mean_and_error(bench: ModuleType) -> None:
    assert bench.mean_and_error([1.0, 3.0]) == pytest.approx((2.0, 1.0))


def test_targets_compare_image_by_image(bench: ModuleType) -> None:
    judged = bench.targets([*rows("box 12x12", 20.0, 21.5, 20.5), *rows("MRI 8x", 20.0, 20.5, 19.5, least=0.0)])
    assert [(j["task"], j["method"], j["met"]) for j in judged] == [
        ("box 12x12", "MAP", True),
        ("box 12x12", "mean", False),
        ("MRI 8x", "MAP", True),
        ("MRI 8x", "mean", False),
    ]
    # The images differ by 2 dB, alike for every method: the gain does not.
    assert judged[0]["gain"] == pytest.approx(1.5)
    assert judged[0]["error"] == pytest.approx(0.0)
    assert bench.target_line(judged[1]).endswith("mean +0.50 ± 0.00 dB over TV-MAP (at least +1: NOT met)")


def test_the_table_leaves_out_columns_that_nobody_fills(bench: ModuleType) -> None:
    lines = bench.table([row("blur", "TV-MAP", [20.0, 22.0]), row("blur", "mean", [24.0, 24.0], evaluations=[91, 91])])
    assert lines[0] == "| task | method | PSNR | evaluations |"
    assert lines[2:] == ["| blur | TV-MAP | 21.00 ± 1.00 |  |", "| blur | mean | 24.00 ± 0.00 | 91 |"]


def test_a_record_is_resumed_or_refused(bench: ModuleType, tmp_path: Path) -> None:
    settings = {"images": 2, "tuning_images": 1, "chains": 8, "tolerance": 0.01}
    bench.Record(tmp_path / "out", settings, resume=False).write(rows("box 12x12", 20.0, 21.5, 20.5))
    again = bench.Record(tmp_path / "out", settings, resume=True)
    assert again.has("digits-28", "box 12x12", {"source": "field"})
    assert not again.has("digits-28", "box 12x12", {"source": "other"})
    again.write(rows("motion blur", 20.0, 25.0, 26.0))
    again.write(rows("box 12x12", 20.0, 25.0, 26.0))  # in place of the ones before
    assert len(again.content["rows"]) == 8
    assert (tmp_path / "out.md").read_text("utf-8").count("NOT met") == 0
    with pytest.raises(ValueError, match="to resume it"):
        bench.Record(tmp_path / "out", {**settings, "chains": 16}, resume=True)


def test_methods_on_a_field(bench: ModuleType) -> None:
    """A small inpainting by every method: the tuned weight beats its neighbours, and scores are complete."""
    generator = torch.Generator().manual_seed(0)
    field = energies.GaussianField.power_law((1, 12, 12), std=0.5)
    task = bench.Task("box", lambda shape, _: likelihoods.Mask(bench.box_mask(shape, 4)), 0.05)
    problems = [bench.measured(task, x, i, 2.0) for i, x in enumerate(field.sample(generator, 2))]
    weight = bench.tuned_weight(problems)

    def quality(w: float) -> float:
        return sum(bench.psnr(bench.total_variation(p, w).image, p.truth, 2.0) for p in problems)

    assert quality(weight) >= max(quality(weight * 3), quality(weight / 3)) - 0.01
    schedule = bench.Schedule(1.0, 0.02, 8, 2)
    assert schedule.annealer(field) == annealers.Geometric(1.0, 0.02, 8, steps=2)
    plan = bench.Plan(schedule, schedule, polish=20)
    prior = bench.Prior("digits-28", "field", field, [])
    options = bench.argparse.Namespace(batch=4, chains=8, tolerance=1e-2, device="cpu")
    found = bench.drawn(prior, problems[0], plan, options, 0, "leimkuhler-matthews")
    scores = bench.calibration(found.ensemble, problems[0])
    # 16 hidden pixels and 128 observed ones make up the whole.
    whole = (16 * scores["coverage, hidden"] + 128 * scores["coverage, observed"]) / 144
    assert scores["coverage"] == pytest.approx(whole, abs=1e-6)
    assert bench.most_probable(prior, problems[0], plan).image.shape == (1, 12, 12)
