"""Restoration with the learned priors: point estimates against tuned total variation, and what their intervals hold.

    python benchmarks/restoration.py --data ../shared/data [--prior digits-28 --prior faces-64 --prior brain-t1]
        [--weights NAME=FILE] [--task WORDS] [--method WORDS] [--images 4] [--chains 8] [--device cpu] [--tune]
        [--figure] [--resume] [--quick] [--draw] [--out benchmarks/results/restoration]

It writes OUT.json and OUT.md, anew after each task, and prints the latter. Test images, held out from the training of
the prior, are measured and restored one by one. Methods: TV-MAP, with the weight that does best on training images of
the task; MAP, the most probable image under the learned prior; the mean of an ensemble drawn by ALPS with
Leimkuhler-Matthews noise; the same by the published update, down the same annealer; the baselines DPS, DAPS, DiffPIR,
PnP-DM and MMPS, given the same prior. ``--tune`` searches annealers on training images and takes the best, in place of
the table PLANS. ``--resume`` adds to OUT.json, and skips the methods that a task has there with the same settings.
``--weights NAME=field`` puts a Gaussian field, fitted to the training images, in the prior's place. ``--figure`` draws
one test image of each task that is run to OUT-PRIOR.png.
"""

import argparse
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import machine as machine  # the other restoration benchmarks take it from here
from _record import parsed as read_command_line
from _record import parser as command_line
from _record import peak_memory, redraw
from _restoration_report import (
    BASELINES,
    LEVEL,
    METHODS,
    PRIORS,
    Record,
    draw_panels,
    figure,
    plan_text,
    report,
)
from _restoration_report import mean_and_error as mean_and_error
from torch import Tensor

from potentia import ConvergenceWarning, annealers, energies, inference, likelihoods
from potentia._potential import Energy, Potential
from potentia.inference import Sampler
from potentia.inference._prepare import fingerprint
from potentia.io import Ensemble
from potentia.training._recipe import Recipe, read_recipe
from potentia.training._runner import held_out_images
from potentia.training._sources import Images, read_images

RECORDED = ("images", "tuning_images", "chains", "tolerance")
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
    megabytes: float = math.nan


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
    """The mean of an ensemble by ALPS."""
    alps = inference.ALPS(plan.sample.annealer(prior.energy), rule=rule, tolerance=options.tolerance)
    return sampled(prior, problem, alps, options, seed)


def sampled(prior: Prior, problem: Problem, sampler: Sampler, options: argparse.Namespace, seed: int) -> Found:
    """The mean of an ensemble of independent samples, ``options.batch`` at a time."""
    begun, before = time.perf_counter(), sum(prior.evaluated)
    batch = min(options.batch, options.chains)
    with inference.without_diagnostics():
        ensemble = inference.sample(
            prior.energy + problem.data,
            sampler,
            num_chains=batch,
            num_draws=options.chains // batch,
            seed=seed,
            device=options.device,
            progress=False,
        )
    seconds = time.perf_counter() - begun
    evaluations = (sum(prior.evaluated) - before) / options.chains
    return Found(ensemble.samples().mean(dim=(0, 1)), seconds, evaluations, ensemble)


def baselines(prior: Prior, tolerance: float) -> dict[str, Sampler]:
    """Samplers of the literature down all of the prior's scales, with the budgets that the report tells."""
    low, high = prior.energy.scales or (0.0, math.inf)
    low, high = max(low, 0.02), min(high, 100.0)
    turn = min(0.3, high)
    walk = annealers.Geometric(turn, low, 10, steps=3)
    made = (
        inference.DPS(annealers.Karras(high, low, 200), zeta=1.0),
        inference.DAPS(annealers.Karras(high, low, 40), num_ode=5),
        inference.DiffPIR(annealers.Karras(high, low, 100)),
        inference.SplitGibbs(annealers.Geometric(high, low, 50), num_denoise=4),
        inference.MMPS(annealers.Geometric(high, turn, 20), 3) >> inference.ALPS(walk, tolerance=tolerance),
    )
    return dict(zip(BASELINES, made, strict=True))


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
    if not math.isnan(found.megabytes):
        scores["megabytes"] = found.megabytes
    if found.evaluations:
        scores["evaluations"] = found.evaluations
    if found.ensemble is not None:
        scores |= calibration(found.ensemble, problem)
    return scores


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


def solvers_of(
    prior: Prior, plan: Plan, weight: float, options: argparse.Namespace
) -> dict[str, Callable[[int, Problem], Found]]:
    """Every method of the table, by name: a function of an image's number and its problem."""
    solvers: dict[str, Callable[[int, Problem], Found]] = {
        "TV-MAP": lambda _, p: total_variation(p, weight, device=options.device),
        "MAP": lambda _, p: most_probable(prior, p, plan, options.device),
        "mean": lambda i, p: drawn(prior, p, plan, options, i, "leimkuhler-matthews"),
        "mean, published rule": lambda i, p: drawn(prior, p, plan, options, i, "published"),
    }
    for name, sampler in baselines(prior, options.tolerance).items():
        solvers[name] = lambda i, p, sampler=sampler: sampled(prior, p, sampler, options, i)  # type: ignore[misc]
    return solvers


def measured_memory(solve: Callable[[], Found], device: str) -> Found:
    with peak_memory(device) as peak:
        found = solve()
    return replace(found, megabytes=peak.bytes / 1e6)


def run_task(
    prior: Prior,
    task: Task,
    tests: Sequence[Problem],
    training: Sequence[Problem],
    options: argparse.Namespace,
    known: Mapping[str, Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The rows of those methods that are asked for and not ``known``, and the panels of one image."""
    methods = [m for m in METHODS if m not in known and (not options.method or any(w in m for w in options.method))]
    if not methods:
        return [], {}
    plan = PLANS[prior.name]
    if options.tune:
        plan = searched(prior, training, plan, options)
    weights = [row["tv_weight"] for row in known.values()]
    weight = weights[0] if weights else tuned_weight(training, options.device)
    solvers = solvers_of(prior, plan, weight, options)
    chosen = tests[len(tests) // 2]
    panels = {"truth": chosen.truth, "data": chosen.data.operator.adjoint(chosen.data.y)}
    common = {"prior": prior.name, "task": task.name, "tv_weight": weight, "plan": asdict(plan)}
    rows = []
    for method in methods:
        solve = solvers[method]
        found = [measured_memory(partial(solve, i, p), options.device) for i, p in enumerate(tests)]
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
        if not asked:
            continue
        print(f"{name}, {task.name}", flush=True)
        tests = [measured(task, x, i, recipe.peak) for i, x in enumerate(test_images)]
        training = [measured(task, x, i, recipe.peak) for i, x in enumerate(training_images)]
        known = record.rows(name, task.name, settings)
        rows, pictured = run_task(prior, task, tests, training, options, known)
        if rows:
            record.write([{**row, "settings": settings} for row in rows])
        if {"truth", "data", *METHODS[:3]} <= set(pictured):
            panels[task.name] = pictured
    if options.figure and panels:
        draw_panels(panels, options.out.with_name(f"{options.out.name}-{name}.png"))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    if not options.draw:
        record = Record(options.out, {k: getattr(options, k) for k in RECORDED}, options.resume)
        for name in options.prior:
            run_prior(name, options, record)
    print(redraw(options.out, report, figure))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_line(__doc__, "restoration", "--tune", "--figure", "--resume")
    parser.add_argument("--data", type=Path, help="the folder of images and coil maps")
    parser.add_argument("--prior", action="append", choices=PRIORS, help="all of them where none is given")
    parser.add_argument("--weights", action="append", type=pair, default=[], metavar="NAME=FILE")
    parser.add_argument("--task", action="append", help="only tasks whose name contains this")
    parser.add_argument("--method", action="append", help="only methods whose name contains this")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--tuning-images", type=int, default=3)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="samples at a time; divides --chains")
    parser.add_argument("--tolerance", type=float, default=1e-2, help="of conjugate gradients, relative")
    options = read_command_line(parser, arguments)
    if options.data is None and not options.draw:
        parser.error("--data is needed, unless --draw is given")
    if options.quick:
        options.prior, options.task, options.images, options.tuning_images = ["digits-28"], ["box"], 2, 1
        options.chains = options.batch = 2
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
