"""The test bed of benchmarks/calibration.py: its posteriors are exact, its statistics see planted faults."""

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_scripts import load
from torch import Tensor

from potentia import energies

NAMES = ("box-8/0", "random50-8/1", "blur-8-low/0", "box-16-sharp/0", "box-8-low-smooth/0")


@pytest.fixture(scope="module")
def bed() -> ModuleType:
    return load("_closed_form")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load("calibration")


def exact(problem, n: int = 1000, seed: int = 1) -> Tensor:  # type: ignore[no-untyped-def]
    return problem.posterior.sample(torch.Generator().manual_seed(seed), n)


@pytest.mark.parametrize("name", NAMES)
def test_the_posterior_is_the_normalised_potential(bed: ModuleType, name: str) -> None:
    """exp(-U) and the mixture's density differ by one factor: what the conjugate formulas claim, by the library's U."""
    problem = bed.problem(name)
    x = torch.cat([exact(problem, 20), 2 * exact(problem, 10, 2), torch.zeros(1, problem.truth.numel()).double()])
    mixture = energies.GaussianMixture(
        problem.posterior.weights.clamp(min=1e-300),
        problem.posterior.means.reshape(-1, *problem.shape),
        covariances=problem.posterior.covariances,
    )
    images = x.reshape(-1, *problem.shape)
    gap = problem.potential(images, 0.0) - mixture(images)
    assert float(gap.max() - gap.min()) < 1e-6 * float(problem.potential(images, 0.0).abs().max())
    share = mixture.responsibilities(images)
    assert (share - problem.posterior.responsibilities(x)).abs().max() < 1e-8


def test_the_distribution_function_is_that_of_the_draws(bed: ModuleType) -> None:
    posterior = bed.problem("box-8/0").posterior
    x = exact(bed.problem("box-8/0"), 20_000)
    q = x[0]
    share = (x < q).double().mean(0)
    # 64 pixels: 4.5 standard errors, whose p-value over all of them is 4e-4.
    assert ((share - posterior.cdf(q)).abs() < 4.5 * math.sqrt(0.25 / len(x))).all()


def test_problems_are_reproducible_and_ambiguous(bed: ModuleType) -> None:
    names = bed.problem_names(1)
    assert len(names) == len(set(names)) == 24
    bed.problem.cache_clear()
    first = bed.problem("random80-8/0")
    bed.problem.cache_clear()
    again = bed.problem("random80-8/0")
    assert torch.equal(first.likelihood.y, again.likelihood.y)
    assert torch.equal(first.posterior.means, again.posterior.means)
    for name in ("box-8/0", "box-16/0", "blur-8/0", "random80-8/0", "box-16-low/0"):
        assert float(bed.problem(name).posterior.weights.sort().values[-2]) >= 0.1
    assert not torch.equal(bed.problem("box-8/0").prior.means, bed.problem("box-8/1").prior.means)
    assert int(bed.problem("box-16/0").hidden.sum()) == 64
    assert int(bed.problem("random80-8/0").hidden.sum()) == 51


@pytest.mark.parametrize("name", ["box", "box-12/0", "box-8", "cube-8/0", "box-8-sharp-low/0", "box-8/x"])
def test_unknown_names_are_refused(bed: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=r"expected OPERATOR-SIDE\[-low\]\[-sharp\]\[-smooth\]/INSTANCE"):
        bed.parse(name)


@pytest.mark.parametrize("name", NAMES)
def test_exact_samples_pass(bed: ModuleType, name: str) -> None:
    """Within 1 and coverage 0.9, whose errors over a region's pixels are those of a few dozen normal numbers at most.

    A std of n samples errs by 1 / sqrt(2 n), an interval's coverage by about 1.2 sqrt(0.05 / n) of either end; pixels
    are correlated, so that the mean over them may err as much as one does: 4 of those. TV and SW2 are exchangeable
    with the floor's sets: at most 2.5 times their mean.
    """
    problem, n = bed.problem(name), 1000
    found = bed.statistics(problem, exact(problem, n))
    for region in problem.regions():
        assert abs(found[f"within, {region}"] - 1) < 4 / math.sqrt(2 * n)
        assert abs(found[f"cov, {region}"] - 0.9) < 4 * 1.2 * math.sqrt(0.05 / n)
    assert found["tv"] < 2.5 * found["tv floor"]
    assert found["sw2"] < 2.5 * found["sw2 floor"]


def faulty(problem, kind: str) -> Tensor:  # type: ignore[no-untyped-def]
    x = exact(problem)
    posterior = problem.posterior
    label = posterior.responsibilities(x).argmax(-1)
    if kind == "wider":
        return posterior.means[label] + 1.2 * (x - posterior.means[label])
    if kind == "narrower":
        return posterior.means[label] + 0.8 * (x - posterior.means[label])
    order = posterior.weights.argsort(descending=True)
    if kind == "dropped":
        kept = x[label != order[1]]
        return kept[torch.arange(len(x)) % len(kept)]
    swapped = posterior.weights.clone()
    swapped[order[0]], swapped[order[-1]] = posterior.weights[order[-1]], posterior.weights[order[0]]
    wrong = type(posterior)(swapped, posterior.means, posterior.covariances)
    return wrong.sample(torch.Generator().manual_seed(1), len(x))


@pytest.mark.parametrize("name", ["box-8/0", "box-16-sharp/0"])
def test_planted_faults_are_seen(bed: ModuleType, name: str) -> None:
    problem = bed.problem(name)
    wider, narrower, dropped, swapped = (
        bed.statistics(problem, faulty(problem, kind)) for kind in ("wider", "narrower", "dropped", "swapped")
    )
    for region in problem.regions():
        # Modes that overlap share what is too wide or too narrow: their labels take a little of it away.
        assert 1.15 < wider[f"within, {region}"] < 1.23
        assert 0.77 < narrower[f"within, {region}"] < 0.85
    # 90 % intervals of a Gaussian 1.2 times too wide or 0.8 times too narrow: 0.952 and 0.812.
    assert wider["cov, observed"] == pytest.approx(0.952, abs=0.01)
    assert narrower["cov, observed"] == pytest.approx(0.812, abs=0.02)
    weights = problem.posterior.weights.sort(descending=True).values
    assert dropped["tv"] > 0.7 * float(weights[1])
    assert dropped["sw2"] > 2 * dropped["sw2 floor"]
    assert swapped["tv"] == pytest.approx(float(weights[0] - weights[-1]), abs=0.05)
    assert swapped["sw2"] > 2 * swapped["sw2 floor"]


def test_hidden_and_observed_pixels_are_told_apart(bed: ModuleType) -> None:
    """Only hidden pixels too wide: coverage of the observed ones stays right."""
    problem = bed.problem("random50-8/1")
    x = exact(problem)
    label = problem.posterior.responsibilities(x).argmax(-1)
    off = x - problem.posterior.means[label]
    found = bed.statistics(problem, x + 0.5 * off * problem.hidden)
    assert found["cov, hidden"] > 0.96
    assert found["cov, observed"] == pytest.approx(0.9, abs=0.02)


def test_statistics_refuse_what_is_no_ensemble(bed: ModuleType) -> None:
    problem = bed.problem("box-8/0")
    with pytest.raises(ValueError, match=r"shape \(30, 60\), expected \(20 or more, 64 entries\)"):
        bed.statistics(problem, torch.zeros(30, 60))
    with pytest.raises(ValueError, match="1 of 30 samples are not finite"):
        bed.statistics(problem, torch.full((30, 64), math.nan).where(torch.arange(30)[:, None] == 3, 0.0))


def test_costs_are_counted(bed: ModuleType) -> None:
    problem = bed.problem("box-8/0")
    x = exact(problem, 6).reshape(6, *problem.shape)
    cost = problem.prior.cost
    for ask, evaluations, products in [
        (lambda: problem.potential.grad(x, 0.3), 6, 0),
        (lambda: problem.potential.value_and_grad(x, 0.3), 6, 0),
        (lambda: problem.potential(x, 0.3), 6, 0),
        (lambda: problem.prior.denoise(x[:2], 0.3), 2, 0),
        (lambda: problem.prior.denoise_with_vjp(x, 0.3)[1](x), 6, 6),
    ]:
        before = cost.evaluations, cost.products
        ask()
        assert (cost.evaluations - before[0], cost.products - before[1]) == (evaluations, products)


def row(problem: str, sampler: str, seed: int = 0, **scores: float) -> dict[str, object]:
    base = {"within, observed": 1.0, "cov, observed": 0.9, "tv": 0.01, "tv floor": 0.02, "sw2": 0.1, "sw2 floor": 0.1}
    costs = {"evaluations": 100.0, "products": 0.0, "seconds": 1.0}
    return {
        "problem": problem, "sampler": sampler, "seed": seed, "samples": 100, "settings": f"{sampler}()",
        "fingerprint": "a", "weights": [0.6, 0.4], "run": "today", "scores": {**base, **costs, **scores},
    }  # fmt: skip


def test_targets_are_judged_as_stated(bench: ModuleType) -> None:
    right = {"within, observed": 1.0, "cov, observed": 0.9, "within, hidden": 1.04, "cov, hidden": 0.89}
    assert bench.spread_right(right)
    assert not bench.spread_right({**right, "within, hidden": 1.06})
    assert not bench.spread_right({**right, "cov, observed": 0.925})
    modes = {"cov, observed": 0.9, "tv": 0.05, "ratio": 1.5}
    assert bench.modes_right(modes)
    assert not any(
        bench.modes_right({**modes, k: v}) for k, v in [("tv", 0.06), ("ratio", 1.6), ("cov, observed", 0.8)]
    )


def test_a_record_is_resumed_and_shared(bench: ModuleType, tmp_path: Path) -> None:
    record = bench.Record(tmp_path / "out", resume=False)
    record.add(row("box-8/0", "LM"))
    other = bench.Record(tmp_path / "out", resume=True)
    other.add(row("box-8/0", "ALPS, published"))
    record.add(row("box-8/0", "LM", seed=1, tv=0.2))
    record.add(row("blur-8/0", "LM"))
    record.add(row("blur-8/0", "LM", tv=0.3))  # in the place of the one before
    rows = record.rows()
    assert [(r["problem"], r["sampler"], r["seed"]) for r in rows] == [
        ("box-8/0", "ALPS, published", 0), ("box-8/0", "LM", 0), ("box-8/0", "LM", 1), ("blur-8/0", "LM", 0),
    ]  # fmt: skip
    assert record.has(row("box-8/0", "LM"))
    assert not record.has(row("box-8/0", "LM", seed=2))
    assert not record.has({**row("box-8/0", "LM"), "settings": "LM(2)"})
    assert not record.has({**row("box-8/0", "LM"), "fingerprint": "b"})
    text = (tmp_path / "out.md").read_text("utf-8")
    assert "0.105 ± 0.095" in text  # two runs of one case
    assert bench.Record(tmp_path / "out", resume=False).rows() == []


def test_failures_are_rows(bench: ModuleType, bed: ModuleType, tmp_path: Path) -> None:
    class Broken(bench.inference.Langevin):  # type: ignore[misc, name-defined]
        def step(self, posterior, state):  # type: ignore[no-untyped-def]
            state, info = super().step(posterior, state)
            return state._replace(x=state.x * math.nan), info

    found = bench.run_case(bed.problem("box-8/0"), Broken(sigma=0.1), 30, 0)
    assert found["error"] == "ValueError: statistics: 30 of 30 samples are not finite"
    record = bench.Record(tmp_path / "out", resume=False)
    broken = {k: v for k, v in row("box-8/0", "LM").items() if k != "scores"}
    record.add({**broken, **found})
    record.add(row("box-8/0", "DPS"))
    lines = bench.summary(record.rows())
    assert lines[2].startswith("| LM | 0 |")
    assert lines[2].endswith("| 1 |")
    assert "30 of 30 samples" in (tmp_path / "out.md").read_text("utf-8")


def test_a_case_counts_its_costs_and_is_reproducible(bench: ModuleType, bed: ModuleType) -> None:
    problem = bed.problem("box-8/0")
    sampler = bench.inference.ALPS(bench.annealers.Geometric(5.0, 0.05, 4), 2)
    found = bench.run_case(problem, sampler, 40, 3)["scores"]
    assert (found["evaluations"], found["products"]) == (8, 0)
    again = bench.run_case(problem, sampler, 40, 3)["scores"]
    assert {k: v for k, v in found.items() if k != "seconds"} == {k: v for k, v in again.items() if k != "seconds"}
    ours = bench.drawn(problem, sampler, 40, 3)
    theirs = bench.inference.sample(problem.potential, sampler, num_chains=40, seed=3, progress=False)
    assert torch.equal(ours, theirs.samples()[:, 0])


def test_what_a_version_has_not_is_skipped(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.SAMPLERS, "absent", lambda: bench.inference.NoSuchSampler())
    assert bench.made("absent") is None
    assert bench.made("LM") == bench.SAMPLERS["LM"]()


def test_the_command_line(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    quick = bench.parsed(["--quick"])
    assert quick.problems == ["box-8/0", "random50-8/0", "random80-8/0", "blur-8/0"]
    assert (quick.samples, quick.runs) == (300, 1)
    assert quick.samplers == [n for n in bench.SAMPLERS if n not in bench.SLOW]
    some = bench.parsed(["--problems", "box-16*", "blur-8/0", "--instances", "1", "--samplers", "LM", "DAPS, Langevin"])
    kinds = {f"box-16{low}{flag}" for low in ("", "-low") for flag in ("", "-sharp", "-smooth")}
    assert set(some.problems) == {f"{kind}/0" for kind in kinds} | {"blur-8/0"}
    assert some.samplers == ["LM", "DAPS, Langevin"]
    for wrong in (["--samplers", "nobody"], ["--problems", "none"], ["--samples", "5"], ["--runs", "0"]):
        with pytest.raises(SystemExit):
            bench.parsed(wrong)
    assert "no problem or no sampler of that name" in capsys.readouterr().err
