"""What the restoration benchmark writes: its record, tables and pictures."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _record import machine
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = ("DPS", "DAPS", "DiffPIR", "PnP-DM", "MMPS >> ALPS")
METHODS = ("TV-MAP", "MAP", "mean", "mean, published rule", *BASELINES)
PRIORS = ("digits-28", "faces-64", "brain-t1")
LEVEL = 0.9


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, of two values or more."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


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

    def rows(self, prior: str, task: str, settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The rows of these settings, by method."""
        found = [r for r in self.content["rows"] if (r["prior"], r["task"], r["settings"]) == (prior, task, settings)]
        return {r["method"]: r for r in found}

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows in place of those there were of the same methods, and of all of their tasks of other settings."""
        new = {(r["prior"], r["task"], r["method"]) for r in rows}
        now = {(r["prior"], r["task"]): r["settings"] for r in rows}
        kept = [
            r
            for r in self.content["rows"]
            if (r["prior"], r["task"], r["method"]) not in new
            and now.get((r["prior"], r["task"]), r["settings"]) == r["settings"]
        ]
        run = machine()
        gathered = [*kept, *({**row, "run": run} for row in rows)]
        tasks = dict.fromkeys(r["task"] for r in [*self.content["rows"], *rows])
        order = {task: k for k, task in enumerate(tasks)}
        gathered.sort(key=lambda r: (PRIORS.index(r["prior"]), order[r["task"]], METHODS.index(r["method"])))
        self.content["rows"] = gathered
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
    "megabytes": ("MB", 0),
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
        if method not in METHODS[1:3] or (prior, task, METHODS[0]) not in found:
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
ensemble of {chains}; MB: the most memory held meanwhile, above that before. The published rule walks the same annealer.
The baselines are given the same prior and walk fewer scales than in their papers: DPS 200, DAPS 40 with 5 steps each,
DiffPIR 100, PnP-DM 50 with 4 steps each; DPS and MMPS take as many or more vector-Jacobian products, not counted here.
Noise std: 0.05; in MRI 0.02 a part in unitary k-space. Coil maps are measured ones, 16 coils on a disc, continued
smoothly beyond its rim and divided by the root of their sum of squares; lines and random pixels differ from image to
image. The weight of total variation (isotropic, epsilon 0.01) is the best of a log grid on {tuning_images} training
images for each task."""


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


def figure(content: Mapping[str, Any]) -> "Figure | None":
    """PSNR, coverage of what was to be covered, and cost, a row of panels a prior, all from the record."""
    from matplotlib.figure import Figure

    rows = content["rows"]
    priors = list(dict.fromkeys(r["prior"] for r in rows))
    if not priors:
        return None
    made = Figure(figsize=(11, 2.6 * len(priors)), layout="constrained")
    for axes, prior in zip(made.subplots(len(priors), 3, squeeze=False), priors, strict=True):
        mine = [r for r in rows if r["prior"] == prior]
        tasks = list(dict.fromkeys(r["task"] for r in mine))
        for method in (m for m in METHODS if any(r["method"] == m for r in mine)):
            for axis, key in zip(axes, ("psnr", "coverage", "evaluations"), strict=True):
                told = {r["task"]: r["scores"].get(key) for r in mine if r["method"] == method}
                points = [(tasks.index(t), statistics.fmean(v)) for t, v in told.items() if v]
                axis.plot(*zip(*points, strict=True) if points else ([], []), "o", label=method)
                axis.set(ylabel=f"{prior}: {key}", xticks=range(len(tasks)), xticklabels=tasks)
        axes[2].set(yscale="log")
    axes[0].legend(fontsize=6)
    return made


def draw_panels(panels: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
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
