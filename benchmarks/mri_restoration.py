"""Multi-coil MRI with a known truth: samplers side by side, all with the same learned prior and the same data.

    python benchmarks/mri_restoration.py --data ../shared/data [--images 2] [--chains 8] [--method WORDS] [--mask WORDS]
        [--resume] [--out benchmarks/results/mri-restoration]

Held-out brain slices are measured by 16 measured coils on 96 x 96, with noise, under the masks of the paper: every
second line (2x1D), one line in eight (8x1D), and one point in six at random in two dimensions (6x2D), each with a fully
sampled middle. It writes OUT.json and OUT.md after each row, and prints the latter; ``--resume`` skips the rows that
OUT.json has of the same settings.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from restoration import (
    LEVEL,
    PLANS,
    Found,
    Prior,
    Problem,
    coil_maps,
    mean_and_error,
    most_probable,
    scores_of,
    spread_out,
    total_variation,
    tuned_weight,
)
from restoration import machine as machine_of
from scipy import stats
from torch import Tensor

from potentia import annealers, inference, likelihoods
from potentia.training._recipe import read_recipe
from potentia.training._sources import read_images

NOISE_STD = 0.02
PRIOR = "brain-t1"
MASKS = ("2x1D", "8x1D", "6x2D")
INTERVAL = (0.85, 0.95)
WITHIN = 0.2  # dB
OURS = ("ALPS", "ALPS, 32 samples", "ALPS, calibrated")


def masks(shape: tuple[int, int], index: int) -> dict[str, Tensor]:
    """The sampling masks, by name, of the image of that number: (H, W)."""
    return {
        "2x1D": likelihoods.cartesian_mask(shape, 2, centre_fraction=0.08, seed=index),
        "8x1D": likelihoods.cartesian_mask(shape, 8, centre_fraction=0.04, seed=index),
        "6x2D": random_points(shape, 6, 12, seed=index),
    }


def random_points(shape: tuple[int, int], acceleration: float, centre: int, seed: int) -> Tensor:
    """One point in ``acceleration``, uniformly at random, beside a centred square of side ``centre``: (H, W)."""
    mask = torch.zeros(shape)
    top, left = ((n - centre + 1) // 2 for n in shape)
    mask[top : top + centre, left : left + centre] = 1
    outside = torch.nonzero(mask.flatten() == 0).flatten()
    left_over = round(mask.numel() / acceleration) - int(mask.sum())
    order = torch.randperm(len(outside), generator=torch.Generator().manual_seed(seed))
    mask.view(-1)[outside[order[:left_over]]] = 1
    return mask


@dataclass(frozen=True)
class Method:
    """A sampler, and what it is called; ``note`` says what differs from its paper."""

    name: str
    sampler: inference.Sampler
    note: str = ""
    chains: int | None = None  # None: as many as the others


def methods(prior: Prior) -> list[Method]:
    """The samplers; those with a paper's schedule walk fewer scales than it, which the table says."""
    low, high = prior.energy.scales or (0.02, 1.0)
    plan = PLANS[PRIOR].sample
    fine = annealers.Geometric(plan.sigma_max, 0.008, 24, steps=3)
    walk = plan.annealer(prior.energy)
    return [
        Method("ALPS", inference.ALPS(fine, tolerance=1e-3), "Leimkuhler-Matthews noise, 0.3 to 0.008, 24 x 3"),
        Method("ALPS, 32 samples", inference.ALPS(fine, tolerance=1e-3), "the same, the mean of 32", 32),
        Method("ALPS, calibrated", inference.ALPS.calibrated(100), "the recipe of 100 evaluations"),
        Method("ALPS, published", inference.ALPS(walk, rule="published", tolerance=1e-3), "the published rule, 20 x 3"),
        Method("DPS", inference.DPS(annealers.Karras(high, low, 200), zeta=1.0), "200 scales of the paper's 1,000"),
        Method("DPS, in full", inference.DPS(annealers.Karras(high, low, 1000), zeta=1.0), "the paper's 1,000 scales"),
        Method("DAPS", inference.DAPS(annealers.Karras(high, low, 40), num_ode=5), "40 scales of the paper's 200"),
        Method("DAPS, in full", inference.DAPS(annealers.Karras(high, low, 200), num_ode=5), "the paper's 200 scales"),
    ]


def sampled(prior: Prior, method: Method, problem: Problem, chains: int, seed: int) -> Found:
    """The mean of an ensemble of independent samples."""
    begun, before = time.perf_counter(), sum(prior.evaluated)
    chains = chains if method.chains is None else method.chains
    with inference.without_diagnostics():
        ensemble = inference.sample(
            prior.energy + problem.data, method.sampler, num_chains=chains, seed=seed, progress=False
        )
    evaluations = (sum(prior.evaluated) - before) / chains
    return Found(ensemble.samples().mean(dim=(0, 1)), time.perf_counter() - begun, evaluations, ensemble)


def solvers(prior: Prior, tv_weight: float, chains: int) -> dict[str, Callable[[int, Problem], Found]]:
    """Everything that the table compares, by name."""
    found: dict[str, Callable[[int, Problem], Found]] = {
        "TV-MAP": lambda _, p: total_variation(p, tv_weight),
        "MAP": lambda _, p: most_probable(prior, p, PLANS[PRIOR]),
    }
    for method in methods(prior):
        found[method.name] = lambda i, p, m=method: sampled(prior, m, p, chains, i)  # type: ignore[misc]
    return found


def judged(found: Found, problem: Problem) -> dict[str, float]:
    """The scores of an estimate, coverage by prediction intervals."""
    scores = scores_of(found, problem)
    if found.ensemble is not None:
        samples = torch.view_as_real(found.ensemble.samples().flatten(0, 1)).double()
        n = len(samples)
        off = (torch.view_as_real(problem.truth).double() - samples.mean(0)).abs()
        held = off <= float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * samples.std(0) * (1 + 1 / n) ** 0.5
        scores |= {"coverage": float(held.double().mean())}
        scores |= {"coverage, inner": float(held[problem.truth.abs() > 0].double().mean())}
    return scores


def problem_of(truth: Tensor, mask: Tensor, maps: Tensor, index: int) -> Problem:
    """Measure an image."""
    operator = likelihoods.Sense(maps, mask)
    y = operator.measure(truth, NOISE_STD, torch.Generator().manual_seed(1000 + index))
    return Problem(truth, likelihoods.Gaussian(y, operator, NOISE_STD), None, 1.0)


COLUMNS = {
    "psnr": ("PSNR", 2),
    "psnr, magnitude": ("of magnitude", 2),
    "ssim": ("SSIM", 3),
    "coverage": ("coverage", 3),
    "coverage, inner": ("in the head", 3),
    "spread / error": ("spread / error", 2),
    "evaluations": ("evaluations", 0),
    "seconds": ("s", 0),
}


def report(content: dict[str, Any]) -> str:
    """The table in Markdown, and what was to be reached."""
    settings, run = content["settings"], content["run"]
    lines = [
        "# MRI with a known truth",
        "",
        f"{run}",
        "",
        f"{settings['images']} held-out slices of MNI152, 96 x 96, complex; 16 measured coils; noise std {NOISE_STD} a",
        "part in unitary k-space, images of magnitude 1 at their 99th percentile. PSNR is that of the complex image.",
        f"Coverage: share of real numbers whose {LEVEL:.0%} prediction interval holds the truth: of n = "
        f"{settings['chains']} samples where nothing else is said, mean ± t std sqrt(1 + 1 / n)",
        "with Student's t of n - 1 degrees of freedom, which is exact for Gaussian marginals; in the head: where the "
        "truth is not zero.",
        "Spread / error: root mean square of the std over that of the error of the mean, with the same factor.",
        "Evaluations: of the network, a sample; DPS needs as many vector-Jacobian products beside them.",
        "",
        "| mask | method | " + " | ".join(name for name, _ in COLUMNS.values()) + " |",
        "| --- | --- |" + " ---: |" * len(COLUMNS),
    ]
    for row in content["rows"]:
        cells = [_cell(row["scores"].get(key), digits) for key, (_, digits) in COLUMNS.items()]
        lines.append(f"| {row['mask']} | {row['method']} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {note}" for note in settings["notes"]), "", *verdicts(content)]
    return "\n".join(lines) + "\n"


def _cell(values: list[float] | None, digits: int) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}" if digits > 1 else f"{mean:.{digits}f}"


def verdicts(content: dict[str, Any]) -> list[str]:
    """Whether ours is within 0.2 dB of the best, and alone in covering."""
    lines = []
    for mask in dict.fromkeys(row["mask"] for row in content["rows"]):
        rows = {r["method"]: r["scores"] for r in content["rows"] if r["mask"] == mask}
        psnr = {name: statistics.fmean(s["psnr"]) for name, s in rows.items()}
        ours = [name for name in OURS if name in rows]
        if not ours:
            continue
        best, mine = max(psnr, key=psnr.__getitem__), max(ours, key=psnr.__getitem__)
        gap = psnr[best] - psnr[mine]
        met = "met" if gap <= WITHIN else "not met"
        lines.append(f"- {mask}: {mine} is {gap:.2f} dB below the best, {best} (at most {WITHIN}: {met})")
        covered = {n: statistics.fmean(s["coverage, inner"]) for n, s in rows.items() if "coverage" in s}
        inside = [n for n, c in covered.items() if INTERVAL[0] <= c <= INTERVAL[1]]
        only = bool(inside) and set(inside) <= set(OURS)
        told = ", ".join(f"{n} {c:.3f}" for n, c in covered.items())
        lines.append(
            f"- {mask}: coverage in the head: {told}; within {INTERVAL[0]} to {INTERVAL[1]}: "
            f"{', '.join(inside) or 'none'} (ours alone: {'met' if only else 'not met'})"
        )
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--method", action="append", help="words in the names of the methods to run")
    parser.add_argument("--mask", action="append")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mri-restoration"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    recipe = read_recipe(PRIOR)
    images = read_images(recipe.data, options.data)
    prior = Prior.read(PRIOR, PRIOR, images)
    maps = coil_maps(options.data / "mri" / "coilmaps16_96.npz")
    truths = spread_out(recipe, images, options.images, held_out=True)
    training = spread_out(recipe, images, 2, held_out=False)
    notes = [f"{m.name}: {m.note}" for m in methods(prior) if m.note]
    settings = {"images": options.images, "chains": options.chains, "notes": notes}
    files = [options.out.with_name(f"{options.out.name}.{end}") for end in ("json", "md")]
    content: dict[str, Any] = {"settings": settings, "rows": []}
    if options.resume and files[0].exists():
        content = json.loads(files[0].read_text("utf-8"))
        kept = content["settings"]
        if any(kept[key] != settings[key] for key in ("images", "chains")):
            raise SystemExit(f"{files[0]}: was run with {kept}, expected {settings} to resume it")
        content["settings"] = settings  # a method more is a note more
    for mask in MASKS:
        if options.mask and mask not in options.mask:
            continue
        problems = [problem_of(x, masks(x.shape[-2:], i)[mask], maps, i) for i, x in enumerate(truths)]
        tuning = [problem_of(x, masks(x.shape[-2:], i)[mask], maps, i) for i, x in enumerate(training)]
        weight = None
        for name, solve in solvers(prior, 0.0, options.chains).items():
            done = any((r["mask"], r["method"]) == (mask, name) for r in content["rows"])
            if done or (options.method and not any(word in name for word in options.method)):
                continue
            if name == "TV-MAP":
                weight = tuned_weight(tuning)
                solve = solvers(prior, weight, options.chains)[name]
            scores = [judged(solve(i, p), p) for i, p in enumerate(problems)]
            listed = {key: [s[key] for s in scores] for key in scores[0]}
            content["rows"].append({"mask": mask, "method": name, "tv_weight": weight, "scores": listed})
            order = list(solvers(prior, 0.0, options.chains))
            content["rows"].sort(key=lambda row: (MASKS.index(row["mask"]), order.index(row["method"])))
            content["run"] = machine_of()
            files[0].parent.mkdir(parents=True, exist_ok=True)
            files[0].write_text(json.dumps(content, indent=1) + "\n", "utf-8")
            files[1].write_text(report(content), "utf-8")
            print(f"{mask}, {name}: {statistics.fmean(listed['psnr']):.2f} dB", flush=True)
    print(report(content))


if __name__ == "__main__":
    main()
