"""The parts of benchmarks/restoration.py that need neither data nor weights."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_scripts import load

from potentia import annealers, energies, likelihoods


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    pytest.importorskip("lightning_fabric")
    return load("restoration")


@pytest.fixture(scope="module")
def told() -> ModuleType:
    return load("_restoration_report")


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


def test_targets_compare_image_by_image(told: ModuleType) -> None:
    judged = told.targets([*rows("box 12x12", 20.0, 21.5, 20.5), *rows("MRI 8x", 20.0, 20.5, 19.5, least=0.0)])
    assert [(j["task"], j["method"], j["met"]) for j in judged] == [
        ("box 12x12", "MAP", True),
        ("box 12x12", "mean", False),
        ("MRI 8x", "MAP", True),
        ("MRI 8x", "mean", False),
    ]
    # The images differ by 2 dB, alike for every method: the gain does not.
    assert judged[0]["gain"] == pytest.approx(1.5)
    assert judged[0]["error"] == pytest.approx(0.0)
    assert told.target_line(judged[1]).endswith("mean +0.50 ± 0.00 dB over TV-MAP (at least +1: NOT met)")


def test_the_table_leaves_out_columns_that_nobody_fills(told: ModuleType) -> None:
    lines = told.table([row("blur", "TV-MAP", [20.0, 22.0]), row("blur", "mean", [24.0, 24.0], evaluations=[91, 91])])
    assert lines[0] == "| task | method | PSNR | evaluations |"
    assert lines[2:] == ["| blur | TV-MAP | 21.00 ± 1.00 |  |", "| blur | mean | 24.00 ± 0.00 | 91 |"]


def test_a_record_is_resumed_or_refused(bench: ModuleType, tmp_path: Path) -> None:
    settings = {"images": 2, "tuning_images": 1, "chains": 8, "tolerance": 0.01}
    bench.Record(tmp_path / "out", settings, resume=False).write(rows("box 12x12", 20.0, 21.5, 20.5))
    again = bench.Record(tmp_path / "out", settings, resume=True)
    assert list(again.rows("digits-28", "box 12x12", {"source": "field"})) == list(bench.METHODS[:4])
    assert again.rows("digits-28", "box 12x12", {"source": "other"}) == {}
    again.write(rows("motion blur", 20.0, 25.0, 26.0))
    again.write(rows("box 12x12", 20.0, 25.0, 26.0))  # in place of the ones before
    again.write([row("box 12x12", "DPS", [20.0, 21.0])])  # one method more, beside those
    assert len(again.content["rows"]) == 9
    assert [r["method"] for r in again.content["rows"][:5]] == list(bench.METHODS[:5])
    assert (tmp_path / "out.md").read_text("utf-8").count("NOT met") == 0
    again.write([{**row("motion blur", "MAP", [20.0, 21.0]), "settings": {"source": "other"}}])
    assert [r["method"] for r in again.content["rows"][5:]] == ["MAP"]  # other settings: the task begins anew
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


def test_every_method_runs_and_tells_its_memory(bench: ModuleType) -> None:
    """The whole table on one small image, by the methods of the literature as well."""
    field = energies.GaussianField.power_law((1, 8, 8), std=0.5)
    task = bench.Task("box", lambda shape, _: likelihoods.Mask(bench.box_mask(shape, 2)), 0.05)
    problems = [
        bench.measured(task, x, i, 2.0) for i, x in enumerate(field.sample(torch.Generator().manual_seed(0), 2))
    ]
    prior = bench.Prior("digits-28", "field", field, [])
    options = bench.argparse.Namespace(batch=2, chains=2, tolerance=1e-2, device="cpu", tune=False, method=None)
    known = {m: row("box", m, [20.0, 21.0]) for m in ("TV-MAP", "MAP", "mean, published rule")}
    rows, _ = bench.run_task(prior, task, problems, problems, options, known)
    assert [r["method"] for r in rows] == ["mean", *bench.BASELINES]
    assert {r["tv_weight"] for r in rows} == {3.0}  # of the rows that there were
    for found in rows:
        assert all(value > 8.0 for value in found["scores"]["psnr"]), found
        assert len(found["scores"]["coverage"]) == len(found["scores"].get("megabytes", (0, 0))) == 2
    options.method = ["DPS"]
    assert [r["method"] for r in bench.run_task(prior, task, problems, problems, options, known)[0]] == ["DPS"]
    assert bench.run_task(prior, task, problems, problems, options, dict.fromkeys(bench.METHODS, known["MAP"])) == (
        [],
        {},
    )


def test_committed_results_are_drawn_without_measuring(bench: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    committed = Path(bench.__file__).parent / "results" / "restoration.json"
    (tmp_path / "restoration.json").write_bytes(committed.read_bytes())
    bench.main(["--draw", "--out", str(tmp_path / "restoration")])
    assert "| box 12x12 | MAP |" in (tmp_path / "restoration.md").read_text("utf-8")
    assert (tmp_path / "restoration.png").stat().st_size > 5000
