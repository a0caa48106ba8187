"""What the benchmarks share, and that every command leaves JSON, Markdown and a figure drawn of the JSON alone."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_scripts import FOLDER, load

from potentia import energies

RESULTS = FOLDER / "results"


@pytest.fixture(scope="module")
def record() -> ModuleType:
    return load("_record")


def test_the_head_of_a_record(record: ModuleType) -> None:
    told = record.about(packages=("torch", "no-such-package"))
    assert list(told["versions"]) == ["torch"]
    assert told["threads"] == torch.get_num_threads()
    words = record.sentence(told)
    assert words.startswith(told["date"])
    assert f"torch {torch.__version__}" in words
    assert json.loads(json.dumps(told)) == told


def test_a_table(record: ModuleType) -> None:
    lines = record.table(["a", "b"], [["x", "1"]])
    assert lines == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


def test_slopes(record: ModuleType) -> None:
    work = [1.0, 2.0, 8.0, 64.0]
    for power in (0.0, 1.0, 1.5):
        assert record.slope(work, [3 * w**power for w in work]) == pytest.approx(power, abs=1e-12)
    # A fixed cost flattens it, and cannot make it steeper.
    assert record.slope(work, [w + 10 for w in work]) < 1
    with pytest.raises(ValueError, match="expected two positive pairs or more"):
        record.slope([1.0, 2.0], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"got the work 3\.0 alone"):
        record.slope([3.0, 3.0], [1.0, 2.0])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not tell")
def test_peak_memory_sees_what_is_held_for_a_while(record: ModuleType) -> None:
    megabytes = 64
    with record.peak_memory() as small:
        torch.ones(1000)
    with record.peak_memory() as large:
        held = torch.ones(megabytes * 2**18)
        del held
    assert small.bytes < 4 * 2**20
    assert abs(large.bytes / 2**20 - megabytes) < 4


def test_results_are_written_again_from_the_json_alone(record: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    text = record.publish(out, {"value": 1.5}, lambda c: f"value {c['value']}")
    assert text == (tmp_path / "deep" / "out.md").read_text("utf-8") == "value 1.5\n"
    place = record.files(out)["json"]
    place.write_text(place.read_text("utf-8").replace("1.5", "2.5"), "utf-8")
    assert record.redraw(out, lambda c: f"value {c['value']}") == "value 2.5\n"
    assert not record.files(out)["png"].exists()
    with pytest.raises(SystemExit, match="is absent"):
        record.redraw(tmp_path / "nothing", str)


def test_resuming(record: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert record.resumed(out, {"repeats": 3}) == []
    record.publish(out, {"settings": {"repeats": 3}, "rows": [{"a": 1}]}, str)
    assert record.resumed(out, {"repeats": 3}) == [{"a": 1}]
    with pytest.raises(SystemExit, match=r"expected .*5.* to resume it"):
        record.resumed(out, {"repeats": 5})


def test_places_of_results(record: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    made = record.parser("words", "scaling", "--resume")
    assert record.parsed(made, []).out == RESULTS / "scaling"
    assert record.parsed(made, ["--device", "cuda", "--draw"]).out == RESULTS / "cuda-scaling"
    assert record.parsed(made, ["--quick", "--out", "x", "--resume"]).resume
    for wrong, words in ((["--quick"], "an --out of its own"), (["--device", "cuda"], "sees no such device")):
        if "cuda" in wrong and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit):
            record.parsed(made, wrong)
        assert words in capsys.readouterr().err


QUICK = {
    "composition": ("sum / by hand", "not judged"),
    "overhead": ("sample / gradients",),
    "step": ("ALPS / published, memory",),
    "imports": ("import potentia over import torch",),
    "scaling": ("analytic, chains, seconds",),
    "store": ("blocks above the loop's own",),
    "learned": ("teacher, ms",),
}


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_run_leaves_its_results(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn once more afterwards, of a JSON whose date was changed."""
    if name == "learned":
        pytest.importorskip("lightning_fabric")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)  # where the store is written
    script, out = load(name), tmp_path / name
    if name == "imports":  # what is imported does not matter here
        monkeypatch.setattr(script, "STATEMENTS", dict.fromkeys(script.STATEMENTS, "import json"))
    script.main(["--quick", "--out", str(out)])
    place = {end: tmp_path / f"{name}.{end}" for end in ("json", "md", "png")}
    content = json.loads(place["json"].read_text("utf-8"))
    assert content["about"]["versions"]["torch"] == torch.__version__
    text = place["md"].read_text("utf-8")
    assert all(words in text for words in QUICK[name])
    assert place["png"].stat().st_size > 2000
    content["about"]["date"] = "1999-12-31"
    place["json"].write_text(json.dumps(content), "utf-8")
    place["png"].unlink()
    script.main(["--draw", "--out", str(out)])
    assert place["md"].read_text("utf-8") == text.replace(text.split("\n")[2].split(",")[0], "1999-12-31")
    assert place["png"].stat().st_size > 2000


def test_a_script_runs_as_a_command(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "composition.py"), "--quick", "--out", "here"]
    done = subprocess.run(command, check=True, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.rstrip() == (tmp_path / "here.md").read_text("utf-8").rstrip()


def test_composition_is_judged_as_stated() -> None:
    script = load("composition")
    told = {"milliseconds": dict.fromkeys(("sum", "by hand", "merged"), 1.0), "quartiles": [1.0, 1.1], "merged": 2.0}
    content: dict[str, Any] = {"about": load("_record").about(), "settings": {"batch": 4}, "rows": []}
    for side, ratio in ((64, 1.3), (128, 1.04), (256, 1.06)):
        content["rows"].append({"side": side, "ratio": ratio, **told})
    *_, small, met, missed = script.report(content).splitlines()
    assert small.endswith("not judged |")
    assert met.endswith("at most 1.05: met |")
    assert missed.endswith("at most 1.05: NOT met |")


@pytest.mark.parametrize("change", [1.001, None])
def test_composition_compares_the_same_formula(monkeypatch: pytest.MonkeyPatch, change: float | None) -> None:
    """The three ways agree, and one that is a thousandth off is refused."""
    script = load("composition")
    options = script.argparse.Namespace(device="cpu", batch=2, repeats=2, least=1e-4)
    if change is None:
        assert script.measure(16, options)["ratio"] > 0
        return
    monkeypatch.setattr(script, "WEIGHT", script.WEIGHT)
    honest = script.variation
    monkeypatch.setattr(script, "variation", lambda x: tuple(change * t + 0.01 for t in honest(x)))
    with pytest.raises(AssertionError, match="not close"):
        script.measure(16, options)


def test_a_sum_leaves_the_gradients_of_its_terms_alone() -> None:
    """The sum adds up in place: never into what a term handed out."""
    kept = torch.ones(2, 1, 4, 4)

    class Held(energies.Gaussian):
        def value_and_grad(self, x, sigma=None):  # type: ignore[no-untyped-def]
            return x.new_zeros(len(x)), kept

        def grad(self, x, sigma=None):  # type: ignore[no-untyped-def]
            return kept

    terms = [Held(torch.zeros(1, 4, 4), 1.0) for _ in range(4)]
    for ask in (lambda u, x: u.value_and_grad(x)[1], lambda u, x: u.grad(x)):
        assert torch.equal(ask(sum(terms), torch.zeros(2, 1, 4, 4)), 4 * torch.ones(2, 1, 4, 4))
        assert torch.equal(kept, torch.ones(2, 1, 4, 4))


def test_slopes_of_a_scaling_record_see_a_quadratic_cost() -> None:
    script = load("scaling")

    def rows(power: float) -> list[dict[str, Any]]:
        sizes = [1, 4, 16, 64]
        return [
            {"sweep": "chains", "prior": "analytic", "chains": n, "side": 64, "ranks": 1, "seconds": n**power,
             "bytes": 2**22 * n**power}
            for n in sizes
        ]  # fmt: skip

    assert [s["met"] for s in script.slopes(rows(1.0))] == [True, True]
    assert [s["met"] for s in script.slopes(rows(2.0))] == [False, False]
    assert [round(s["slope"], 6) for s in script.slopes(rows(2.0))] == [2.0, 2.0]
    # What is below the allocator's steps, or was not told, is left out.
    few = [{**r, "bytes": None if r["chains"] < 64 else r["bytes"]} for r in rows(1.0)]
    assert [s["cost"] for s in script.slopes(few)] == ["seconds"]


def test_an_operator_that_ends_with_an_error_ends_the_scaling() -> None:
    script = load("scaling")
    with pytest.raises(RuntimeError, match="ended with"):
        script.answer(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], stdout=-1, text=True))


def test_committed_results_are_drawn_without_measuring(tmp_path: Path) -> None:
    """The records of calibration and restoration that come with the project."""
    pytest.importorskip("matplotlib")
    for name in ("calibration", "calibration-peers"):
        place = RESULTS / f"{name}.json"
        if not place.exists():
            continue
        (tmp_path / f"{name}.json").write_bytes(place.read_bytes())
        load("calibration").main(["--draw", "--out", str(tmp_path / name)])
        assert (tmp_path / f"{name}.md").read_text("utf-8") == place.with_suffix(".md").read_text(
            "utf-8"
        ).rstrip() + "\n"
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_committed_efficiency_and_store_are_drawn_without_measuring(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("efficiency", "store"):
        place = RESULTS / f"{name}.json"
        (tmp_path / f"{name}.json").write_bytes(place.read_bytes())
        load(name).main(["--draw", "--out", str(tmp_path / name)])
        assert (tmp_path / f"{name}.md").read_text("utf-8") == place.with_suffix(".md").read_text("utf-8")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_comparison_runs_without_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "deepinv", None)
    monkeypatch.delitem(sys.modules, "_deepinv_samplers", raising=False)
    script = load("calibration_peers")
    script.main(["--quick", "--samplers", "ALPS.calibrated(250)", "deepinv", "--out", str(tmp_path / "out")])
    assert "deepinv's samplers are left out" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [(r["problem"], r["sampler"]) for r in rows] == [("box-8/0", "ALPS.calibrated(250)")]
    assert (tmp_path / "out.png").exists()


def test_nothing_is_not_a_number(record: ModuleType) -> None:
    assert math.isnan(record.Peak().bytes)
