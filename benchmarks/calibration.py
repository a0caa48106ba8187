"""Calibration where the posterior is known: every sampler on problems with a closed form, in one table.

    python benchmarks/calibration.py [--problems GLOB ...] [--samplers WORDS ...] [--samples 1000] [--runs 1] [--seed 0]
        [--quick] [--resume] [--draw] [--threads 1] [--out benchmarks/results/calibration]

It writes OUT.json and OUT.md, anew after each run of a sampler, OUT.png at the end, and prints the summary.
``--problems`` are patterns such as ``'box-16*'`` (all problems where none is given; ``--list`` shows them),
``--samplers`` parts of names. ``--runs`` repeats each case with other seeds. ``--quick`` takes the first instance of
the 8x8 problems at noise 0.2, with 300 samples, and one run. ``--resume`` keeps what OUT.json has, and skips the cases
in it of the same problem, sampler, seed and number of samples. Several processes may write to one OUT at a time, each
with ``--resume``. Samplers that this version has not are skipped with a note. ``--draw`` makes OUT.md and OUT.png
of OUT.json and runs nothing. It runs on the CPU, in double precision.
"""

import argparse
import fcntl
import fnmatch
import hashlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _closed_form as closed_form
from _closed_form import Problem
from _record import machine, redraw

from potentia import annealers, inference
from potentia._random import chain_generators
from potentia.inference import Sampler
from potentia.inference._prepare import fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class Foreign(Protocol):
    """A sampler of another library."""

    def draw(self, problem: Problem, num: int, seed: int) -> Tensor:
        """One draw of each of ``num`` chains: (num, 1, side, side)."""


def fine(levels: int, sigma_min: float = 0.02) -> annealers.Annealer:
    """Geometric scales from 10 to below the finest texture of the priors."""
    return annealers.Geometric(10.0, sigma_min, levels)


def edm(levels: int, sigma_max: float = 100.0, sigma_min: float = 0.01) -> annealers.Annealer:
    """The scales of the diffusion papers."""
    return annealers.Karras(sigma_max, sigma_min, levels)


# Where a paper leaves a choice (zeta of DPS from 0.03 to 1; lam from 1 to 10 and zeta from 0.1 to 1 of DiffPIR; sweeps
# against steps a sweep and the last coupling of PnP-DM), it is the one with the least SW2 on other instances of six of
# the 16x16 problems. What is not there yet raises AttributeError when it is made, and is skipped.
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ALPS, published": lambda: inference.ALPS(annealers.Karras(10.0, 0.1, 50, rho=5.0), 5, rule="published"),
    "LM": lambda: inference.ALPS(fine(20), 5),
    "DPS": lambda: inference.DPS(edm(1000), zeta=0.1),
    "DAPS": lambda: inference.DAPS(edm(200, sigma_min=0.02)),
    "DAPS, Langevin": lambda: inference.DAPS(edm(200, sigma_min=0.02), num_langevin=100),
    "DiffPIR": lambda: inference.DiffPIR(edm(100)),
    "PnP-DM": lambda: inference.SplitGibbs(fine(250), num_denoise=4),
    "MMPS >> LM": lambda: inference.MMPS(fine(20, 0.3), 5) >> inference.ALPS(annealers.Geometric(0.3, 0.02, 30), 5),
    "TwistedSMC": lambda: inference.TwistedSMC(),
    "ALPS.calibrated(100)": lambda: inference.ALPS.calibrated(budget=100),
    "ALPS.calibrated(250)": lambda: inference.ALPS.calibrated(budget=250),
    "ALPS.calibrated(modes=True)": lambda: inference.ALPS.calibrated(modes=True),
}

# Run only where they are asked for by their full name: slow, and no better than their neighbours.
SLOW = ("DAPS, Langevin",)


def made(name: str) -> Sampler | None:
    """The sampler of that name, or None with a note if this version has none."""
    try:
        return SAMPLERS[name]()
    except AttributeError as err:
        print(f"{name}: skipped, {err}", flush=True)
        return None


def drawn(problem: Problem, sampler: Sampler, num: int, seed: int) -> Tensor:
    """One draw of each of ``num`` chains, after the sampler's own warm-up, as ``sample`` makes them: (num, 1, H, W).

    ``sample`` also asks the posterior for its value at each draw, which would count as a cost.
    """
    posterior = problem.potential
    generators = chain_generators(seed, range(num))
    shape = (num, *problem.shape)
    state = sampler.init(posterior, sampler.start(posterior, shape, torch.float64, generators), generators)
    for draw in range(sampler.default_warmup + 1):
        if draw == sampler.default_warmup:
            state = state._replace(memory=sampler.freeze(state.memory))
        for _ in range(sampler.steps_per_draw):
            state, _ = sampler.step(posterior, state)
    return state.x


def run_case(problem: Problem, sampler: Sampler | Foreign, num: int, seed: int) -> dict[str, Any]:
    """The row of one ensemble: its statistics, what a sample cost, and seconds for all of them."""
    before = problem.prior.cost.evaluations, problem.prior.cost.products
    begun = time.perf_counter()
    try:
        foreign = isinstance(sampler, Foreign)
        ensemble = sampler.draw(problem, num, seed) if foreign else drawn(problem, sampler, num, seed)
        seconds = time.perf_counter() - begun
        scores = closed_form.statistics(problem, ensemble)
    except (FloatingPointError, ValueError, RuntimeError) as err:
        return {"error": f"{type(err).__name__}: {str(err).splitlines()[0]}"}
    after = problem.prior.cost.evaluations, problem.prior.cost.products
    scores["evaluations"], scores["products"] = ((b - a) / num for a, b in zip(before, after, strict=True))
    scores["seconds"] = seconds
    return {"scores": scores}


class Record:
    """What OUT.json and OUT.md say; a row is known by problem, sampler, seed and number of samples."""

    KEY = ("problem", "sampler", "seed", "samples")

    def __init__(self, out: Path, resume: bool) -> None:
        self.json, self.markdown = (out.with_name(f"{out.name}.{end}") for end in ("json", "md"))
        place = hashlib.sha256(str(self.json.resolve()).encode()).hexdigest()[:16]
        self.lock = Path(tempfile.gettempdir()) / f"calibration-{place}.lock"
        self.json.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.json.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """The rows that there are now."""
        return json.loads(self.json.read_text("utf-8")) if self.json.exists() else []

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a case was run before, on the same tensors and with the same settings of the sampler."""
        same = (*self.KEY, "settings", "fingerprint")
        return any(all(old[k] == row[k] for k in same) for old in self.rows())

    def add(self, row: Mapping[str, Any]) -> None:
        """Put a row in, in the place of one with the same key."""
        with self._alone():
            kept = [old for old in self.rows() if any(old[k] != row[k] for k in self.KEY)]
            rows = sorted([*kept, dict(row)], key=self._place)
            self.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")
            self.markdown.write_text(report(rows), "utf-8")

    @staticmethod
    def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        kind, side, flags, instance = closed_form.parse(row["problem"])
        told = [flag in flags for flag in closed_form.FLAGS]
        where = *told[1:], side, told[0], closed_form.OPERATORS.index(kind), instance
        return (*where, rank(row["sampler"]), row["sampler"], row["samples"], row["seed"])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield


PROBLEM_COLUMNS = {
    "within, observed": ("within, observed", 2),
    "within, hidden": ("hidden", 2),
    "cov, observed": ("coverage, observed", 3),
    "cov, hidden": ("hidden", 3),
    "tv": ("TV", 3),
    "sw2": ("SW2", 3),
    "ratio": ("SW2 / floor", 2),
    "evaluations": ("evaluations", 0),
    "products": ("VJPs", 0),
    "seconds": ("s", 0),
}
# Columns of which both ends over the problems are of interest, and those of which only the upper one is.
SPANS = ("within, observed", "within, hidden", "cov, observed", "cov, hidden")
WORST = ("tv", "ratio")


def gathered(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Scores by problem and sampler, one entry a run."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        scores = row.get("scores")
        if scores is None:
            continue
        case = found.setdefault((row["problem"], row["sampler"]), {})
        for key, value in {**scores, "ratio": scores["sw2"] / scores["sw2 floor"]}.items():
            case.setdefault(key, []).append(value)
    return found


def spread_right(case: Mapping[str, float]) -> bool:
    """Whether std within a mode is 0.95 to 1.05 of the truth and coverage 0.88 to 0.92, wherever they are told."""
    within = [case[k] for k in SPANS[:2] if k in case]
    cover = [case[k] for k in SPANS[2:] if k in case]
    return all(0.95 <= v <= 1.05 for v in within) and all(0.88 <= v <= 0.92 for v in cover)


def modes_right(case: Mapping[str, float]) -> bool:
    """Whether TV is 0.05 at most, SW2 1.5 floors at most, and coverage 0.87 to 0.93."""
    cover = [case[k] for k in SPANS[2:] if k in case]
    return case["tv"] <= 0.05 and case["ratio"] <= 1.5 and all(0.87 <= v <= 0.93 for v in cover)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a sampler, over all problems, in Markdown."""
    cases = {key: averaged(case) for key, case in gathered(rows).items()}
    costs = ("evaluations", "products", "seconds")
    head = [PROBLEM_COLUMNS[k][0] for k in (*SPANS, *WORST, *costs)]
    lines = [["sampler", "problems", *head, "spread right", "modes right", "failed"]]
    lines.append(["---", *("---:" for _ in lines[0][1:])])
    for name in dict.fromkeys(r["sampler"] for r in sorted(rows, key=lambda r: rank(r["sampler"]))):
        mine = [case for (_, sampler), case in cases.items() if sampler == name]
        failed = sum(r["sampler"] == name and "error" in r for r in rows)
        cells = [name, str(len(mine))]
        for key in SPANS:
            values = [c[key] for c in mine if key in c]
            digits = PROBLEM_COLUMNS[key][1]
            cells.append(f"{min(values):.{digits}f} to {max(values):.{digits}f}" if values else "")
        for key in WORST:
            values = [c[key] for c in mine]
            cells.append(f"{statistics.fmean(values):.2f}, at most {max(values):.2f}" if values else "")
        for key in costs:
            cells.append(f"{statistics.fmean(c[key] for c in mine):.0f}" if mine else "")
        cells += [f"{sum(map(right, mine))} of {len(mine)}" for right in (spread_right, modes_right)]
        lines.append([*cells, str(failed)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def rank(sampler: str) -> int:
    """Place in the table."""
    names = list(SAMPLERS)
    return names.index(sampler) if sampler in names else len(names)


def averaged(case: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means over runs."""
    return {key: statistics.fmean(values) for key, values in case.items()}


def problem_table(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of one problem in Markdown, means over runs with their standard errors where there are several."""
    cases = {sampler: case for (_, sampler), case in gathered(rows).items()}
    keys = [k for k in PROBLEM_COLUMNS if any(k in case for case in cases.values())]
    first = next(iter(cases.values()), None)
    told = "" if first is None else f"; floors: TV {first['tv floor'][0]:.3f}, SW2 {first['sw2 floor'][0]:.4f}"
    weights = ", ".join(f"{w:.2f}" for w in rows[0]["weights"])
    lines = [f"### {name}", "", f"Mode weights {weights}{told}.", ""]
    table = [["sampler", *(PROBLEM_COLUMNS[k][0] for k in keys)], ["---", *("---:" for _ in keys)]]
    for sampler in dict.fromkeys(r["sampler"] for r in rows):
        case = cases.get(sampler)
        if case is None:
            error = next(r["error"] for r in rows if r["sampler"] == sampler and "error" in r)
            table.append([sampler, error, *("" for _ in keys[1:])])
        else:
            table.append([sampler, *(cell(k, case.get(k, ())) for k in keys)])
    return [*lines, *("| " + " | ".join(line) + " |" for line in table), ""]


def cell(key: str, values: Sequence[float]) -> str:
    """A mean, with its standard error where there are several runs."""
    if not values:
        return ""
    digits = PROBLEM_COLUMNS[key][1]
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1 and key not in ("evaluations", "products", "seconds"):
        text += f" ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"
    return text


NOTES = """\
Posteriors in closed form: mixtures of five Gaussians over images (rank 8 plus isotropic std 0.05, `sharp` 0.03) that
differ by textures or, `smooth`, by smooth images; 8x8 and 16x16; a centred box of half the width hidden (`box`), random
50 or 80 % of the pixels hidden, or a periodic Gaussian blur; noise 0.2, `low` 0.05. Prior, truth, mask and noise differ
from instance to instance. Every sampler is given the exact smoothed prior, in double precision: what is seen is its own
error.

Within: std within a mode over the truth, root mean square over pixels and modes; 1 is right. Coverage: mass of the
posterior inside the ensemble's central 90 % interval, mean over pixels; 0.900 is right. TV: total variation between the
weights of the modes. SW2: sliced 2-Wasserstein distance over 256 directions. Floors: the same of exact sample sets of
this size. Evaluations of the prior and vector-Jacobian products of its denoiser, counted, for one sample; s: seconds
for all samples of a problem. Spread right: within 0.95 to 1.05 and coverage 0.88 to 0.92, observed and hidden. Modes
right: TV 0.05 at most, SW2 1.5 floors at most, coverage 0.87 to 0.93."""


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole table in Markdown."""
    samples = ", ".join(map(str, sorted({r["samples"] for r in rows})))
    runs = dict.fromkeys(r["run"] for r in rows)
    lines = ["# Calibration", "", *runs, "", f"{samples} samples a case.", "", NOTES, ""]
    lines += ["## All problems", "", "Means over problems, or least and greatest.", "", *summary(rows), ""]
    settings: dict[str, str] = {}
    for row in rows:
        settings.setdefault(row["sampler"], row["settings"])
    lines += [f"- {name}: `{settings[name]}`" for name in sorted(settings, key=rank)]
    lines += ["", "## Problem by problem", ""]
    for name in dict.fromkeys(r["problem"] for r in rows):
        lines += problem_table(name, [r for r in rows if r["problem"] == name])
    return "\n".join(lines)


def figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Coverage of what is observed and error of the weights against the cost of a sample, a point a sampler."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(10, 4), layout="constrained")
    left, right = made.subplots(1, 2)
    cases = {key: averaged(case) for key, case in gathered(rows).items()}
    names = sorted({sampler for _, sampler in cases}, key=lambda n: (rank(n), n))
    for number, name in enumerate(names):
        mine = [case for (_, sampler), case in cases.items() if sampler == name]
        cost = statistics.fmean(c["evaluations"] + c["products"] for c in mine)
        style = {"color": f"C{number % 10}", "marker": "os^Dv"[number // 10], "ls": ""}
        for axis, key in ((left, "cov, observed"), (right, "tv")):
            values = [c[key] for c in mine]
            mean = statistics.fmean(values)
            axis.plot([cost, cost], [min(values), max(values)], color=style["color"], alpha=0.4)
            axis.plot([cost], [mean], label=name, **style)
    left.axhline(closed_form.LEVEL, color="black", lw=0.8)
    left.set(xscale="log", xlabel="evaluations and VJPs a sample", ylabel="coverage of 90 % intervals, observed")
    right.set(xscale="log", xlabel="evaluations and VJPs a sample", ylabel="TV between mode weights")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return made


def run(options: argparse.Namespace, samplers: Mapping[str, Sampler | Foreign]) -> None:
    """Run the cases that OUT has not, or (``--draw``) none; then the report and the figure."""
    if not options.draw:
        record = Record(options.out, options.resume)
        for name in options.problems:
            run_problem(name, samplers, options, record)
    redraw(options.out, report, figure)
    print("\n".join(summary(json.loads(options.out.with_name(f"{options.out.name}.json").read_text("utf-8")))))


def run_problem(
    name: str, samplers: Mapping[str, Sampler | Foreign], options: argparse.Namespace, record: Record
) -> None:
    problem = closed_form.problem(name)
    digest = fingerprint(problem.potential)
    for label, sampler in samplers.items():
        for seed in range(options.seed, options.seed + options.runs):
            row = {"problem": name, "sampler": label, "seed": seed, "samples": options.samples}
            row |= {"settings": repr(sampler), "fingerprint": digest}
            if record.has(row):
                continue
            row |= {"weights": problem.posterior.weights.tolist(), "run": machine()}
            row |= run_case(problem, sampler, options.samples, seed)
            record.add(row)
            print(f"{name}, {label}, seed {seed}: {told(row)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    run(options, {name: sampler for name in options.samplers if (sampler := made(name)) is not None})


def told(row: Mapping[str, Any]) -> str:
    """The scores of a row in one line."""
    if "error" in row:
        return str(row["error"])
    return ", ".join(f"{k} {v:.3g}" for k, v in row["scores"].items())


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", metavar="GLOB", default=["*"])
    parser.add_argument("--samplers", nargs="+", metavar="WORDS", default=[""])
    parser.add_argument("--instances", type=int, default=2, help="of each kind of problem")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/calibration"))
    for flag in ("--quick", "--resume", "--list", "--draw"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    names = closed_form.problem_names(options.instances)
    if options.list:
        parser.exit(message="\n".join([*names, "", *SAMPLERS, ""]))
    if options.quick:
        names, options.samples, options.runs = [f"{k}-8/0" for k in closed_form.OPERATORS], 300, 1
    options.problems = [n for n in names if any(fnmatch.fnmatch(n, p) for p in options.problems)]
    parts = [word for word in options.samplers if word not in SAMPLERS]  # a whole name means that one alone
    options.samplers = [
        n for n in SAMPLERS if n in options.samplers or (n not in SLOW and any(word in n for word in parts))
    ]
    if not options.problems or not options.samplers:
        parser.error("no problem or no sampler of that name; --list shows them")
    if min(options.samples, options.runs) < 1 or options.samples < 20:
        parser.error("expected 20 --samples and one of --runs or more")
    return options


if __name__ == "__main__":
    main()
