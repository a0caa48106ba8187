"""Calibration with a learned prior: coverage where the truth comes from the prior, and the classes of half-seen digits.

    python benchmarks/learned_calibration.py [--prior digits-28] [--images 50] [--chains 19] [--budget 100]
        [--digits 0 --data FOLDER --particles 256] [--rounds 500] [--seed 0] [--threads 1]
        [--out benchmarks/results/learned-calibration]

First, ``--images`` truths are drawn from the prior by annealing it alone, their lower half is hidden and noise of 0.2
added to the upper half; ensembles of ``--chains`` samples by ``ALPS.calibrated(budget)`` should hold the truth in 90 %
of the pixels (19 samples: between the least and the greatest), observed and hidden. Second, with ``--digits N``, N
held-out digits with the lower half hidden: effective sample size and spread over error by ``calibrated`` and
``calibrated(modes=True)``, and the weights of the digit classes, told by a classifier, against a long run of parallel
tempering over noise scales. Writes OUT.json and OUT.md.
"""

import argparse
import json
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potentia import Energy, annealers, energies, inference, likelihoods
from potentia._random import chain_generators
from potentia.inference import Sampler
from potentia.inference._twisted import EFFECTIVE

NOISE = 0.2


def upper_half(shape: tuple[int, ...]) -> Tensor:
    """One where measured: (H, W)."""
    mask = torch.ones(shape[-2:])
    mask[shape[-2] // 2 :] = 0
    return mask


def measured(truth: Tensor, mask: Tensor, generator: torch.Generator) -> likelihoods.Gaussian:
    """The upper half with noise."""
    noise = torch.randn(truth.shape, generator=generator)
    return likelihoods.Gaussian((truth + NOISE * noise) * mask, operator=likelihoods.Mask(mask), noise_std=NOISE)


def run(posterior: Any, sampler: Sampler, shape: tuple[int, ...], seed: int, draws: int = 1) -> dict[str, Any]:
    """Draws of every chain after the sampler's warm-up, what they cost, and the last state's memory."""
    begun = time.perf_counter()
    generators = chain_generators(seed, range(shape[0]))
    state = sampler.init(posterior, sampler.start(posterior, shape, torch.float32, generators), generators)
    kept, evaluations, products = [], 0, 0
    effective = float("nan")
    for draw in range(sampler.default_warmup + draws):
        if draw == sampler.default_warmup:
            state = state._replace(memory=sampler.freeze(state.memory))
        for _ in range(sampler.steps_per_draw):
            state, info = sampler.step(posterior, state)
            evaluations, products = evaluations + info.n_grad, products + info.n_vjp
            effective = float(state.memory.get(EFFECTIVE, torch.tensor(effective)))
        if draw >= sampler.default_warmup:
            kept.append(state.x)
    return {
        "samples": torch.stack(kept, dim=1).flatten(0, 1),
        "evaluations": evaluations,
        "products": products,
        "seconds": time.perf_counter() - begun,
        "effective": effective,
        "acceptance": float("nan") if info.acceptance is None else float(info.acceptance.mean()),
    }


def shares(samples: Tensor, truth: Tensor, mask: Tensor) -> dict[str, float]:
    """Coverage of the nominal 90 % interval and spread over error, observed and hidden pixels apart.

    Spread is the root mean square of the samples' std, error that of the mean's error, allowing for the mean's own
    Monte-Carlo error: for a calibrated ensemble of n samples their ratio is 1.
    """
    n = len(samples)
    tail = 0.05 * (n + 1)  # order statistics that hold 90 % of one more draw
    ranked = samples.sort(0).values
    low, high = ranked[max(round(tail) - 1, 0)], ranked[min(round(n + 1 - tail) - 1, n - 1)]
    inside = ((truth >= low) & (truth <= high)).float()[0]
    spread, error = samples.var(0)[0] * (1 + 1 / n), (samples.mean(0) - truth).square()[0]
    seen = mask > 0
    return {
        f"{what} {where}": value
        for where, chosen in (("observed", seen), ("hidden", ~seen))
        for what, value in (
            ("coverage", float(inside[chosen].mean())),
            ("spread", float(spread[chosen].mean())),
            ("error", float(error[chosen].mean())),
        )
    }


def pooled(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over images; spread over error from the mean squares."""
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    told = {key: value for key, value in mean.items() if key.startswith("coverage")}
    for where in ("observed", "hidden"):
        told[f"coverage {where}, standard error"] = float(
            np.std([row[f"coverage {where}"] for row in rows]) / np.sqrt(len(rows))
        )
        told[f"spread / error {where}"] = float(np.sqrt(mean[f"spread {where}"] / mean[f"error {where}"]))
    return told


def from_the_prior(prior: Energy, options: argparse.Namespace) -> dict[str, Any]:
    """Coverage on images drawn from the prior itself."""
    shape = tuple(prior.event_shape or (1, 28, 28))
    truths = run(prior, inference.ALPS.calibrated(250), (options.images, *shape), options.seed + 1)["samples"]
    mask = upper_half(shape)
    generator = torch.Generator().manual_seed(options.seed)
    rows, cost = [], {}
    for k, truth in enumerate(truths):
        posterior = prior + measured(truth, mask, generator)
        sampler = inference.ALPS.calibrated(options.budget)
        cost = run(posterior, sampler, (options.chains, *shape), options.seed + 10 + k)
        rows.append(shares(cost.pop("samples"), truth, mask))
        print(f"image {k + 1} of {options.images}: {pooled(rows)}", flush=True)
    return {"images": options.images, "chains": options.chains, "budget": options.budget, **pooled(rows), "last": cost}


def classes(images: Tensor, model: Any) -> list[float]:
    """Share of each digit among images (n, 1, 28, 28), by the classifier's probabilities."""
    flat = images.clamp(-1, 1).flatten(1).numpy()
    return [float(p) for p in model.predict_proba(flat).mean(0)]


def half_seen_digits(prior: Energy, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Held-out digits, their lower half hidden, by three samplers."""
    from sklearn.neural_network import MLPClassifier

    with np.load(options.data / "digits" / "mnist10k.npz", allow_pickle=False) as held:
        images = torch.from_numpy(held["images"].astype(np.float32)).reshape(-1, 1, 28, 28) / 127.5 - 1
        labels = held["labels"].astype(int)
    # The file is in order of the labels: the images that the prior never saw are nines.
    flat = images.flatten(1).numpy()
    kept = np.arange(len(flat)) % 10 > 0
    model = MLPClassifier((128,), max_iter=12, alpha=1.0, early_stopping=True, random_state=0)
    model.fit(flat[kept], labels[kept])
    print(f"classifier: {model.score(flat[~kept], labels[~kept]):.3f} of held-out digits right", flush=True)
    mask = upper_half((1, 28, 28))
    generator = torch.Generator().manual_seed(options.seed)
    told = []
    for k in range(options.digits):
        truth = images[-1 - k]
        posterior = prior + measured(truth, mask, generator)
        shape = (options.particles, 1, 28, 28)
        found = {
            "calibrated": run(posterior, inference.ALPS.calibrated(options.budget), shape, options.seed),
            "calibrated, modes": run(posterior, inference.ALPS.calibrated(modes=True), shape, options.seed),
            "parallel tempering": run(
                posterior,
                inference.ParallelTempering(annealers.Geometric(min(5.0, (prior.scales or (0, 5.0))[1]), 0.05, 16)),
                (8, 1, 28, 28),
                options.seed,
                draws=options.rounds,
            ),
        }
        rows: dict[str, Any] = {}
        for name, cost in found.items():
            samples = cost.pop("samples")
            rows[name] = {**pooled([shares(samples, truth, mask)]), "classes": classes(samples, model), **cost}
            rows[name]["class"] = int(labels[-1 - k])
        long = np.array(rows["parallel tempering"]["classes"])
        for row in rows.values():
            row["TV to parallel tempering"] = float(0.5 * np.abs(np.array(row["classes"]) - long).sum())
        told.append(rows)
        print(json.dumps(rows, indent=1), flush=True)
    return told


def markdown(record: Mapping[str, Any]) -> str:
    """The report."""
    first = record["truth from the prior"]
    lines = [
        "# Calibration with a learned prior",
        "",
        f"{record['date']}, {record['machine']}; {record['versions']}. Prior `{record['prior']}`, lower half hidden, "
        f"noise {NOISE}.",
        "",
    ]
    if first:
        lines += [
            f"## {first['images']} truths drawn from the prior, {first['chains']} samples each at budget "
            f"{first['budget']}",
            "",
            "| pixels | coverage of the 90 % interval | spread / error |",
            "| --- | ---: | ---: |",
            *(
                f"| {where} | {first[f'coverage {where}']:.3f} ± {first[f'coverage {where}, standard error']:.3f} "
                f"| {first[f'spread / error {where}']:.2f} |"
                for where in ("observed", "hidden")
            ),
            "",
        ]
    for k, rows in enumerate(record["digits"]):
        truth = next(iter(rows.values()))["class"]
        lines += [
            f"## Half-seen digit {k + 1}, a {truth}",
            "",
            "Effective: share of the particles that the weights were worth. Classes: share of each digit, 0 to 9.",
            "",
            "| sampler | coverage, observed | hidden | spread / error, observed | hidden | effective | evaluations "
            "| VJPs | s | classes | TV |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
        ]
        for name, row in rows.items():
            lines.append(
                f"| {name} | {row['coverage observed']:.2f} | {row['coverage hidden']:.2f} "
                f"| {row['spread / error observed']:.2f} | {row['spread / error hidden']:.2f} | {row['effective']:.3f} "
                f"| {row['evaluations']} | {row['products']} | {row['seconds']:.0f} "
                f"| {' '.join(f'{p:.2f}' for p in row['classes'])} | {row['TV to parallel tempering']:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="digits-28", help="a shipped prior of digits, or a file")
    parser.add_argument("--images", type=int, default=50, help="truths to draw from the prior; 0 leaves that part out")
    parser.add_argument("--chains", type=int, default=19, help="samples of each posterior")
    parser.add_argument("--budget", type=int, default=100, help="gradient evaluations a sample")
    parser.add_argument("--digits", type=int, default=0, help="held-out digits to reconstruct; needs --data")
    parser.add_argument("--particles", type=int, default=256, help="samples of each digit")
    parser.add_argument("--rounds", type=int, default=500, help="draws of parallel tempering a chain")
    parser.add_argument("--data", type=Path, help="folder of shared data, with digits/mnist10k.npz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learned-calibration"))
    options = parser.parse_args()
    if options.digits and options.data is None:
        parser.error("--digits needs --data")
    torch.set_num_threads(options.threads)
    prior = energies.load(options.prior)
    file = options.out.with_name(options.out.name + ".json")
    held = json.loads(file.read_text()) if file.exists() else {}
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {options.threads} thread(s)",
        "versions": f"potentia {version('potentia')}, torch {torch.__version__}",
        "prior": options.prior,
        "truth from the prior": from_the_prior(prior, options) if options.images else held.get("truth from the prior"),
        "digits": half_seen_digits(prior, options) if options.digits else held.get("digits", []),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    options.out.with_name(options.out.name + ".md").write_text(markdown(record) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
