"""Restoration with the learned priors: point estimates against tuned total variation, and what their intervals hold.

    python benchmarks/restoration.py --data ../shared/data [--prior digits-28 --prior faces-64 --prior brain-t1]
        [--weights NAME=FILE] [--task WORDS] [--images 4] [--chains 8] [--tune] [--figure] [--resume]
        [--out benchmarks/results/restoration]

It writes OUT.json and OUT.md, anew after each task, and prints the latter. Test images, held out from the training of
the prior, are measured and restored one by one. Methods: TV-MAP, with the weight that does best on training images of
the task; MAP, the most probable image under the learned prior; the mean of an ensemble drawn by ALPS with
Leimkuhler-Matthews noise; the same by the published update, down the same annealer. ``--tune`` searches annealers on
training images and takes the best, in place of the table PLANS. ``--resume`` adds to OUT.json, and skips the tasks that
it has with the same settings. ``--weights NAME=field`` puts a Gaussian field, fitted to the training images, in the
prior's place. ``--figure`` draws one test image of each task that is run to OUT-PRIOR.png.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potentia import ConvergenceWarning, annealers, energies, inference, likelihoods
from potentia._potential import Energy, Potential
from potentia.inference._prepare import fingerprint
from potentia.io import Ensemble
from potentia.training._recipe import Recipe, read_recipe
from potentia.training._runner import held_out_images
from potentia.training._sources import Images, read_images

METHODS = ("TV-MAP", "MAP", "mean", "mean, published rule")
PRIORS = ("digits-28", "faces-64", "brain-t1")
RECORDED = ("images", "tuning_images", "chains", "tolerance")
LEVEL = 0.9
TV_SEARCH = {"max_iterations": 1500, "tolerance": 1e-3}  # within 0.03 dB of 5,000 iterations in double precision
TV_GRID = tuple(10 ** (k / 2) for k in range(-1, 5))  # 0.3 to 100, further where the best lies at an end


@dataclass(frozen=True)
class Schedule:
    """Geometric scales and the steps at each."""

    sigma_max: float
    sigma_min: float
    levels: int
    steps: int

    def annealer(self, prior: Energy) -> annealers.Annealer:
        low, high = prior.scales or (0.0, math.inf)
        return annealers.Geometric(min(self.sigma_max, high), max(self.sigma_min, low), self.levels, steps=self.steps)


@dataclass(frozen=True)
class Plan:
    """How a task is solved: the annealers of samples and MAP, and how many iterations of L-BFGS follow the latter."""

    sample: Schedule
    descent: Schedule
    polish: int


@dataclass(frozen=True)
class Task:
    """A measurement: ``operator`` takes the image's (C, H, W) and its number."""

    name: str
    operator: Callable[[tuple[int, ...], int], likelihoods.Operator]
    noise_std: float
    least_gain: float = 1.0  # dB of PSNR over TV-MAP that MAP and mean are to reach


@dataclass(frozen=True)
class Problem:
    """A truth (C, H, W) and what was measured of it; ``hidden`` (C or 1, H, W) marks what an inpainting hides."""

    truth: Tensor
    data: likelihoods.Gaussian
    hidden: Tensor | None
    peak: float


@dataclass(frozen=True)
class Found:
    """An estimate (C, H, W), what it cost, and the ensemble behind it, if there is one."""

    image: Tensor
    seconds: float
    evaluations: float = 0.0
    ensemble: Ensemble | None = None


def box_mask(shape: tuple[int, ...], side: int) -> Tensor:
    """One where measured, zero in a centred square: (H, W)."""
    mask = torch.ones(shape[-2:])
    top, left = ((n - side) // 2 for n in shape[-2:])
    mask[top : top + side, left : left + side] = 0
    return mask


def random_mask(shape: tuple[int, ...], missing: float, seed: int) -> Tensor:
    """One where measured, zero in exactly that share of the pixels: (H, W)."""
    pixels = shape[-2] * shape[-1]
    order = torch.randperm(pixels, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(pixels)
    mask[order[: round(missing * pixels)]] = 0
    return mask.reshape(shape[-2:])


def coil_maps(path: Path) -> Tensor:
    """Measured sensitivities, which end at the rim of a disc, continued beyond it, where the brains reach.

    Outside they are averages of those inside with Gaussian weights of std 4 pixels; then all are divided by the root of
    their sum of squares, so that noise has its nominal size in every pixel of a fully sampled scan.

    Shapes: (coils, H, W), complex.
    """
    from scipy.ndimage import gaussian_filter

    with np.load(path, allow_pickle=False) as held:
        maps, inside = held["maps"].astype(np.complex128), held["mask"]
    weight, *smooth = (gaussian_filter(m * inside, 4.0, mode="constant", truncate=8.0) for m in (1.0, *maps))
    full = np.where(inside, maps, np.stack(smooth) / weight)
    full /= np.sqrt((np.abs(full) ** 2).sum(0))
    return torch.from_numpy(full.astype(np.complex64))


def tasks_of(prior: str, data: Path) -> list[Task]:
    """The tasks of a prior."""
    if prior == "brain-t1":
        maps = coil_maps(data / "mri" / "coilmaps16_96.npz")

        def scan(rate: float, centre: float) -> Callable[[tuple[int, ...], int], likelihoods.Operator]:
            def operator(shape: tuple[int, ...], index: int) -> likelihoods.Operator:
                mask = likelihoods.cartesian_mask(shape[-2:], rate, centre_fraction=centre, seed=index)
                return likelihoods.Sense(maps, mask)

            return operator

        return [Task("MRI 4x", scan(4, 0.08), 0.02), Task("MRI 8x", scan(8, 0.04), 0.02, least_gain=0.0)]
    side = 12 if prior == "digits-28" else 20
    return [
        Task(f"box {side}x{side}", lambda shape, _: likelihoods.Mask(box_mask(shape, side)), 0.05),
        Task("random 80 %", lambda shape, index: likelihoods.Mask(random_mask(shape, 0.8, index)), 0.05),
        Task("Gaussian blur", lambda shape, _: likelihoods.GaussianBlur(2.0, shape), 0.05),
        Task("motion blur", lambda shape, _: likelihoods.MotionBlur(9.0, 30.0, shape), 0.05),
    ]


def measured(task: Task, truth: Tensor, index: int, peak: float) -> Problem:
    """Measure an image; masks and noise follow from its number."""
    operator = task.operator(tuple(truth.shape), index)
    y = operator.measure(truth, task.noise_std, torch.Generator().manual_seed(1000 + index))
    hidden = operator.mask == 0 if isinstance(operator, likelihoods.Mask) else None
    return Problem(truth, likelihoods.Gaussian(y, operator, task.noise_std), hidden, peak)


def spread_out(recipe: Recipe, images: Images, number: int, *, held_out: bool) -> Tensor:
    """Images from the middles of equal shares of the data, with phases if they are complex: (number, C, H, W)."""
    pool = images.validation if held_out else images.train
    picked = pool[((torch.arange(number) + 0.5) / number * len(pool)).long()]
    return held_out_images(recipe, replace(images, validation=picked), number)


@dataclass(frozen=True)
class Prior:
    """An energy; ``evaluated`` lists how many images its network got, call by call, and stays empty without one."""

    name: str
    source: str
    energy: Energy
    evaluated: list[int]

    @classmethod
    def read(cls, name: str, source: str, images: Images) -> "Prior":
        if source == "field":
            return cls(name, source, energies.GaussianField.fit(images.train), [])
        evaluated: list[int] = []
        energy = energies.load(source)
        for net in energy.children():
            if not isinstance(net, energies.ScaleOffset):
                net.register_forward_pre_hook(lambda _, args: evaluated.append(len(args[0])))
        return cls(name, source, energy, evaluated)


def minimum(posterior: Potential, annealer: annealers.Annealer, **settings: Any) -> Tensor:
    """The most probable image by iterations tuned for quality: the gradient need not vanish."""
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return inference.map_estimate(posterior, annealer, **settings).image


def total_variation(problem: Problem, weight: float, init: Tensor | None = None, device: str = "cpu") -> Found:
    """The minimum of weighted total variation and data: convex, so that L-BFGS from anywhere finds it."""
    begun = time.perf_counter()
    posterior = weight * energies.TotalVariation() + problem.data
    image = minimum(posterior, annealers.Constant(0.05), steps_per_level=1, init=init, device=device, **TV_SEARCH)
    return Found(image.cpu(), time.perf_counter() - begun)


def tuned_weight(problems: Sequence[Problem], device: str = "cpu") -> float:
    """The weight of total variation with the highest mean PSNR: over TV_GRID, on beyond its ends, then between."""
    starts: list[Tensor | None] = [None] * len(problems)
    tried: dict[float, float] = {}

    def quality(weight: float) -> float:
        if weight not in tried:
            found = [total_variation(p, weight, x, device).image for p, x in zip(problems, starts, strict=True)]
            starts[:] = found
            tried[weight] = statistics.mean(psnr(x, p.truth, p.peak) for x, p in zip(found, problems, strict=True))
        return tried[weight]

    grid = sorted(TV_GRID)
    while True:
        best = max(reversed(grid), key=quality)  # from the heavy end: each solution starts the search for the next
        if best == grid[0] and best > 1e-3:
            grid.insert(0, best * 10**-0.5)
        elif best == grid[-1] and best < 1e4:
            grid.append(best * 10**0.5)
        else:
            return max((best, best * 10**0.25, best * 10**-0.25), key=quality)


def most_probable(prior: Prior, problem: Problem, plan: Plan, device: str = "cpu") -> Found:
    """MAP under the learned prior."""
    begun, before = time.perf_counter(), sum(prior.evaluated)
    annealer = plan.descent.annealer(prior.energy)
    image = minimum(prior.energy + problem.data, annealer, max_iterations=plan.polish, tolerance=1e-4, device=device)
    return Found(image.cpu(), time.perf_counter() - begun, sum(prior.evaluated) - before)


def drawn(prior: Prior, problem: Problem, plan: Plan, options: argparse.Namespace, seed: int, rule: str) -> Found:
    """The mean of an ensemble of independent samples, ``options.batch`` at a time."""
    begun, before = time.perf_counter(), sum(prior.evaluated)
    batch = min(options.batch, options.chains)
    ensemble = inference.sample(
        prior.energy + problem.data,
        inference.ALPS(plan.sample.annealer(prior.energy), rule=rule, tolerance=options.tolerance),
        num_chains=batch,
        num_draws=options.chains // batch,
        seed=seed,
        device=options.device,
        progress=False,
    )
    seconds = time.perf_counter() - begun
    evaluations = (sum(prior.evaluated) - before) / options.chains
    return Found(ensemble.samples().mean(dim=(0, 1)), seconds, evaluations, ensemble)


def psnr(image: Tensor, truth: Tensor, peak: float) -> float:
    """Peak signal to noise ratio in dB, over all real numbers or complex ones."""
    error = float((image - truth).abs().double().square().mean())
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def calibration(ensemble: Ensemble, problem: Problem) -> dict[str, float]:
    """Coverage of the nominal interval, and the spread against the error of the mean, which is 1 if both agree."""
    samples = ensemble.samples().flatten(0, 1)
    n = len(samples)
    variance = (samples - samples.mean(0)).abs().double().square().sum(0) / (n - 1)
    error = (samples.mean(0) - problem.truth).abs().double().square()
    # Of n samples the mean is off by the truth's spread and by its own: 1 + 1 / n variances.
    ratio = float(((1 + 1 / n) * variance.mean() / error.mean()).sqrt())
    size = problem.truth.abs()
    kinds: dict[str, Tensor | None] = {"": None, ", inner": size > 0 if problem.truth.is_complex() else size < 1}
    if problem.hidden is not None:
        kinds |= {", observed": ~problem.hidden, ", hidden": problem.hidden}
    covered = {f"coverage{kind}": ensemble.coverage(problem.truth, LEVEL, mask=m) for kind, m in kinds.items()}
    return {**covered, "spread / error": ratio}


def scores_of(found: Found, problem: Problem) -> dict[str, float]:
    """Everything the table says of one estimate; SSIM is of magnitudes if images are complex."""
    from skimage.metrics import structural_similarity

    image, truth, peak = found.image, problem.truth, problem.peak
    a, b = ((x.abs() if x.is_complex() else x).double() for x in (image, truth))
    similarity = structural_similarity(a.numpy(), b.numpy(), data_range=peak, channel_axis=0)
    scores = {"psnr": psnr(image, truth, peak), "ssim": float(similarity), "seconds": found.seconds}
    if truth.is_complex():
        scores["psnr, magnitude"] = psnr(a, b, peak)
    if found.evaluations:
        scores["evaluations"] = found.evaluations
    if found.ensemble is not None:
        scores |= calibration(found.ensemble, problem)
    return scores


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, of two values or more."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


PLANS: dict[str, Plan] = {
    "digits-28": Plan(Schedule(3.0, 0.02, 30, 3), Schedule(3.0, 0.1, 30, 3), polish=50),
    "faces-64": Plan(Schedule(3.0, 0.02, 30, 3), Schedule(3.0, 0.1, 30, 3), polish=50),
    "brain-t1": Plan(Schedule(0.3, 0.02, 20, 3), Schedule(0.3, 0.01, 20, 3), polish=30),
}
GRIDS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {  # sigma_max, sigma_min
    "digits-28": ((1.0, 3.0, 10.0), (0.02, 0.03, 0.05)),
    "faces-64": ((1.0, 3.0, 10.0), (0.02, 0.03, 0.05)),
    "brain-t1": ((0.3, 0.6), (0.005, 0.01, 0.02)),
}


def searched(prior: Prior, problems: Sequence[Problem], plan: Plan, options: argparse.Namespace) -> Plan:
    """The plan with the highest mean PSNR on training images: first the samples' annealer, then that of MAP."""

    def quality(trial: Plan, solve: Callable[[int, Problem], Found]) -> float:
        scores = [scores_of(solve(i, p), p) for i, p in enumerate(problems)]
        keys = [k for k in ("psnr", "coverage", "spread / error") if k in scores[0]]
        told = {k: statistics.fmean(s[k] for s in scores) for k in keys}
        print(f"    {plan_text(asdict(trial))}: {', '.join(f'{k} {v:.2f}' for k, v in told.items())}", flush=True)
        return told["psnr"]

    def sampling(trial: Plan) -> float:
        return quality(trial, lambda i, p: drawn(prior, p, trial, options, i, "leimkuhler-matthews"))

    def maximising(trial: Plan) -> float:
        return quality(trial, lambda _, p: most_probable(prior, p, trial, options.device))

    tops, bottoms = GRIDS[prior.name]
    ends = itertools.product(tops, bottoms)
    best = max((replace(plan, sample=replace(plan.sample, sigma_max=a, sigma_min=b)) for a, b in ends), key=sampling)
    lower = sorted({b * factor for b in bottoms for factor in (1, 4)})
    narrowed = [replace(best.descent, sigma_max=best.sample.sigma_max, sigma_min=b) for b in lower]
    pairs = itertools.product(narrowed, sorted({0, plan.polish}))
    return max((replace(best, descent=schedule, polish=n) for schedule, n in pairs), key=maximising)


def run_task(
    prior: Prior, task: Task, tests: Sequence[Problem], training: Sequence[Problem], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The rows of a task, one a method, and the panels of one image."""
    plan = PLANS[prior.name]
    if options.tune:
        plan = searched(prior, training, plan, options)
    weight = tuned_weight(training, options.device)
    solvers: dict[str, Callable[[int, Problem], Found]] = {
        "TV-MAP": lambda _, p: total_variation(p, weight, device=options.device),
        "MAP": lambda _, p: most_probable(prior, p, plan, options.device),
        "mean": lambda i, p: drawn(prior, p, plan, options, i, "leimkuhler-matthews"),
        "mean, published rule": lambda i, p: drawn(prior, p, plan, options, i, "published"),
    }
    chosen = tests[len(tests) // 2]
    panels = {"truth": chosen.truth, "data": chosen.data.operator.adjoint(chosen.data.y)}
    common = {"prior": prior.name, "task": task.name, "tv_weight": weight, "plan": asdict(plan)}
    rows = []
    for method, solve in solvers.items():
        found = [solve(i, p) for i, p in enumerate(tests)]
        scores = [scores_of(f, p) for f, p in zip(found, tests, strict=True)]
        listed = {name: [s[name] for s in scores] for name in scores[0]}
        rows.append({**common, "method": method, "least_gain": task.least_gain, "scores": listed})
        print(f"  {method}: {statistics.fmean(listed['psnr']):.2f} dB", flush=True)
        if method in METHODS[:3]:
            panels |= pictures(method, found[len(tests) // 2], chosen)
    return rows, panels


def pictures(method: str, found: Found, problem: Problem) -> dict[str, Tensor]:
    """An estimate, and of an ensemble the std and the error of its mean."""
    if found.ensemble is None:
        return {method: found.image}
    std = (found.ensemble.samples() - found.image).abs().square().mean(dim=(0, 1)).sqrt()
    return {method: found.image, "std": std, "error": (found.image - problem.truth).abs()}


def run_prior(name: str, options: argparse.Namespace, record: "Record") -> None:
    """Run the tasks of a prior that the record has not, and write after each."""
    recipe = read_recipe(name)
    images = read_images(recipe.data, options.data)
    prior = Prior.read(name, dict(options.weights).get(name, name), images)
    test_images = spread_out(recipe, images, options.images, held_out=True)
    training_images = spread_out(recipe, images, options.tuning_images, held_out=False)
    plan = "tuned" if options.tune else asdict(PLANS[name])
    shared = {"prior": fingerprint(prior.energy), "source": prior.source, "plan": plan}
    panels: dict[str, dict[str, Tensor]] = {}
    for task in tasks_of(name, options.data):
        settings = {**shared, "noise_std": task.noise_std}
        asked = not options.task or any(word in task.name for word in options.task)
        if not asked or record.has(name, task.name, settings):
            continue
        print(f"{name}, {task.name}", flush=True)
        tests = [measured(task, x, i, recipe.peak) for i, x in enumerate(test_images)]
        training = [measured(task, x, i, recipe.peak) for i, x in enumerate(training_images)]
        rows, panels[task.name] = run_task(prior, task, tests, training, options)
        record.write([{**row, "settings": settings} for row in rows])
    if options.figure and panels:
        draw(panels, options.out.with_name(f"{options.out.name}-{name}.png"))


class Record:
    """What OUT.json and OUT.md say.

    Raises: ValueError for rows to resume of other numbers of images or samples.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.json, self.markdown = (out.with_name(f"{out.name}.{end}") for end in ("json", "md"))
        self.content: dict[str, Any] = {"settings": dict(settings), "rows": [], "targets": []}
        if resume and self.json.exists():
            old = json.loads(self.json.read_text("utf-8"))
            if old["settings"] != self.content["settings"]:
                raise ValueError(f"{self.json}: was run with {old['settings']}, expected {settings} to resume it")
            self.content = old

    def has(self, prior: str, task: str, settings: Mapping[str, Any]) -> bool:
        """Whether every method has a row of these settings."""
        rows = [r for r in self.content["rows"] if (r["prior"], r["task"], r["settings"]) == (prior, task, settings)]
        return len(rows) == len(METHODS)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put the rows of a task in place of those there were."""
        place = rows[0]["prior"], rows[0]["task"]
        kept = [r for r in self.content["rows"] if (r["prior"], r["task"]) != place]
        run = machine()
        new = [{**row, "run": run} for row in rows]
        self.content["rows"] = sorted([*kept, *new], key=lambda r: PRIORS.index(r["prior"]))
        self.content["targets"] = targets(self.content["rows"])
        self.json.parent.mkdir(parents=True, exist_ok=True)
        self.json.write_text(json.dumps(self.content, indent=1) + "\n", "utf-8")
        self.markdown.write_text(report(self.content), "utf-8")


COLUMNS = {
    "psnr": ("PSNR", 2),
    "psnr, magnitude": ("of magnitude", 2),
    "ssim": ("SSIM", 3),
    "coverage": ("coverage", 3),
    "coverage, inner": ("inner", 3),
    "coverage, observed": ("observed", 3),
    "coverage, hidden": ("hidden", 3),
    "spread / error": ("spread / error", 2),
    "evaluations": ("evaluations", 0),
    "seconds": ("s", 2),
}
WITH_ERROR = ("psnr", "psnr, magnitude", "ssim", "coverage, hidden")


def cell(key: str, values: Sequence[float] | None) -> str:
    """A mean, with its standard error in columns where that matters; empty for what a method has not."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    digits = COLUMNS[key][1]
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if key in WITH_ERROR and len(values) > 1 else "")


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of one prior in Markdown, without columns that none of them fills."""
    keys = [k for k in COLUMNS if any(r["scores"].get(k) for r in rows)]
    lines = [["task", "method", *(COLUMNS[k][0] for k in keys)], ["---", "---", *("---:" for _ in keys)]]
    lines += [[r["task"], r["method"], *(cell(k, r["scores"].get(k)) for k in keys)] for r in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def targets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What MAP and mean gain over TV-MAP, image by image, and whether that is enough on the average."""
    found = {(r["prior"], r["task"], r["method"]): r for r in rows}
    judged = []
    for (prior, task, method), row in found.items():
        if method not in METHODS[1:3]:
            continue
        baseline = found[prior, task, METHODS[0]]
        pairs = zip(row["scores"]["psnr"], baseline["scores"]["psnr"], strict=True)
        gain, error = mean_and_error([a - b for a, b in pairs])
        verdict = {"gain": gain, "error": error, "least": row["least_gain"], "met": gain >= row["least_gain"]}
        judged.append({"prior": prior, "task": task, "method": method, **verdict})
    return judged


def target_line(judged: Mapping[str, Any]) -> str:
    gain = f"{judged['gain']:+.2f} ± {judged['error']:.2f} dB over TV-MAP"
    verdict = f"at least {judged['least']:+.0f}: {'met' if judged['met'] else 'NOT met'}"
    return f"- {judged['prior']}, {judged['task']}: {judged['method']} {gain} ({verdict})"


NOTES = """\
PSNR in dB, of peak 2 for images in [-1, 1] and 1 for MRI, whose magnitudes are divided by the 99th percentile of the
volume's: there it is that of the complex image, with that of the magnitude beside it, and SSIM is of magnitudes.
Estimates are not clipped. Means over the images ± their standard error. Coverage: share of pixels (real and imaginary
parts count one each) whose nominal 90 % interval holds the truth; from n samples an interval can hold (n - 1) / (n + 1)
at the most, {most:.3f} for the {chains} here, so that {nominal:.3f} is right. Inner pixels are those whose truth is not
at an end of its range, such as the black around a digit or a head, whose spread is no more than the last scale. Spread
/ error: root mean square of the pixels' std over that of the error of the mean, with the factor 1 + 1 / n for the mean
of n; 1 is right. Evaluations of the network, counted, for one sample or one MAP; s: seconds for one image's MAP or its
ensemble of {chains}. The published rule walks the same annealer. Noise std: 0.05; in MRI 0.02 a part in unitary
k-space. Coil maps are measured ones, 16 coils on a disc, continued smoothly beyond its rim and divided by the root of
their sum of squares; lines and random pixels differ from image to image. The weight of total variation (isotropic,
epsilon 0.01) is the best of a log grid on {tuning_images} training images for each task."""


def report(record: Mapping[str, Any]) -> str:
    """The whole table in Markdown."""
    rows, settings = record["rows"], record["settings"]
    most = (settings["chains"] - 1) / (settings["chains"] + 1)
    notes = NOTES.format(**settings, most=most, nominal=min(LEVEL, most))
    lines = ["# Restoration", "", *dict.fromkeys(r["run"] for r in rows), "", notes, ""]
    for prior in dict.fromkeys(r["prior"] for r in rows):
        mine = [r for r in rows if r["prior"] == prior]
        sources = ", ".join(dict.fromkeys(r["settings"]["source"] for r in mine))
        lines += [f"## {prior}", "", f"{settings['images']} images, weights {sources}.", ""]
        for task in dict.fromkeys(r["task"] for r in mine):
            row = next(r for r in mine if r["task"] == task)
            lines.append(f"- {task}: {plan_text(row['plan'])}; weight of total variation {row['tv_weight']:.3g}.")
        lines += ["", *table(mine), ""]
    return "\n".join([*lines, "## Targets", "", *map(target_line, record["targets"]), ""])


def plan_text(plan: Mapping[str, Any]) -> str:
    """The annealers of a plan, in words."""
    sample, descent = (
        f"{s['sigma_max']:g} to {s['sigma_min']:g}, {s['levels']} x {s['steps']}"
        for s in (plan["sample"], plan["descent"])
    )
    return f"samples {sample}; MAP {descent}, then {plan['polish']} iterations of L-BFGS"


def machine() -> str:
    """Date, processor, threads and versions, in a sentence."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in ("potentia", "torch", "numpy"))
    threads = f"{torch.get_num_threads()} thread(s)"
    return f"{datetime.now(UTC):%Y-%m-%d}, {name}, {threads}; Python {platform.python_version()}, {versions}."


def draw(panels: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """One row a task: truth, data, the three estimates, std and error, the last two on one scale a task."""
    from matplotlib.figure import Figure

    names = ["truth", "data", *METHODS[:3], "std", "error"]
    figure = Figure(figsize=(1.9 * len(names), 2.0 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(names), squeeze=False)
    for row, (task, images) in zip(axes, panels.items(), strict=True):
        top = float(torch.stack([images[n].abs().mean(0) for n in ("std", "error")]).quantile(0.995))
        for axis, name in zip(row, names, strict=True):
            uncertain, is_complex = name in ("std", "error"), images[name].is_complex()
            image = images[name].abs() if is_complex else images[name]
            low, high = (0.0, top) if uncertain else (0.0 if is_complex else -1.0, 1.0)
            picture = image.mean(0) if uncertain or len(image) != 3 else image.movedim(0, -1)
            scaled = ((picture - low) / (high - low)).clamp(0, 1).cpu().numpy()
            axis.imshow(scaled, cmap="magma" if uncertain else "gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], ylabel=task if name == "truth" else "")
            axis.set_title(name if not uncertain else f"{name}, up to {top:.2g}", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = parsed()
    record = Record(options.out, {k: getattr(options, k) for k in RECORDED}, options.resume)
    for name in options.prior:
        run_prior(name, options, record)
    print(report(record.content))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of images and coil maps")
    parser.add_argument("--prior", action="append", choices=PRIORS, help="all of them where none is given")
    parser.add_argument("--weights", action="append", type=pair, default=[], metavar="NAME=FILE")
    parser.add_argument("--task", action="append", help="only tasks whose name contains this")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--tuning-images", type=int, default=3)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="samples at a time; divides --chains")
    parser.add_argument("--tolerance", type=float, default=1e-2, help="of conjugate gradients, relative")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/restoration"))
    for flag in ("--tune", "--figure", "--resume"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    options.prior = options.prior or list(PRIORS)
    if min(options.images, options.chains) < 2 or options.tuning_images < 1:
        parser.error("expected two --images and --chains or more, and one of --tuning-images")
    if options.chains % min(options.batch, options.chains):
        parser.error(f"--chains is {options.chains}, expected a multiple of --batch {options.batch}")
    return options


def pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if name not in PRIORS or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FILE, NAME one of {', '.join(PRIORS)}")
    return name, value


if __name__ == "__main__":
    main()
