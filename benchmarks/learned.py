"""Cost of a learned energy: a gradient against an evaluation of its teacher, and the memory of a training step.

    python benchmarks/learned.py [--recipe NAME ...] [--batch 8 --repeats 15 --memory-batch 64 --json FILE]

For each recipe, with untrained networks of its shape: the teacher's evaluation without a graph and ``Denoiser.grad``
are timed in turn, over and over, in one process; the ratio is the median over the rounds. The memory is the most that
a process of its own ever held while it took two steps of distillation on a batch of ``--memory-batch`` images.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from potentia.training import Distillation, fit
from potentia.training._recipe import read_recipe

SHAPES = {"digits-28": (1, 28, 28), "brain-t1": (1, 96, 96), "faces-64": (3, 64, 64)}
TARGET_RATIO = 2.3
TARGET_GIGABYTES = 12.0
SIGMA = 0.3


def images(name: str, number: int) -> Tensor:
    """Noise in the shape of a recipe's images."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.complex64 if read_recipe(name).is_complex else torch.float32
    return torch.randn(number, *SHAPES[name], generator=generator, dtype=dtype)


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def gradient_ratio(name: str, batch: int, repeats: int) -> dict[str, float]:
    """Time of ``Denoiser.grad`` over that of the teacher's evaluation."""
    net = read_recipe(name).denoiser(SHAPES[name][0], 0.5).eval().requires_grad_(False)
    energy = read_recipe(name).make_energy(net)
    x = images(name, batch)
    sigma = torch.full((batch,), SIGMA)

    def teacher() -> Tensor:
        with torch.no_grad():
            out: Tensor = net(x, sigma)
        return out

    pairs = [(seconds(teacher), seconds(lambda: energy.grad(x, sigma))) for _ in range(repeats + 2)][2:]
    return {
        "teacher_ms": 1e3 * statistics.median(t for t, _ in pairs),
        "gradient_ms": 1e3 * statistics.median(g for _, g in pairs),
        "ratio": statistics.median(g / t for t, g in pairs),
        "parameters": float(sum(p.numel() for p in net.parameters())),
    }


def train_two_steps(name: str, batch: int) -> None:
    """What ``training_gigabytes`` runs in a process of its own; prints the most it held."""
    import dataclasses

    recipe = read_recipe(name)
    assert recipe.energy is not None
    settings = dataclasses.replace(recipe.energy, steps=2, batch=batch)
    net, teacher = (recipe.denoiser(SHAPES[name][0], 0.5) for _ in range(2))
    objective = Distillation(recipe.make_energy(net), teacher.eval().requires_grad_(False), 0.5)
    with tempfile.TemporaryDirectory() as folder:
        fit(objective, images(name, batch), settings, folder=Path(folder) / "run", progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def training_gigabytes(name: str, batch: int) -> float:
    """The most that two steps of distillation held, in GB, the process itself included."""
    command = [sys.executable, __file__, "--train-two-steps", name, "--memory-batch", str(batch)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(out.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory-batch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train-two-steps", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train_two_steps:
        train_two_steps(given.train_two_steps, given.memory_batch)
        return
    found: dict[str, dict[str, float]] = {}
    for name in given.recipe or SHAPES:
        row = gradient_ratio(name, given.batch, given.repeats)
        row["training_gigabytes"] = training_gigabytes(name, given.memory_batch)
        found[name] = row
        met = "met" if row["ratio"] <= TARGET_RATIO else "NOT met"
        print(
            f"{name}: {row['parameters'] / 1e6:.2f} M parameters, teacher {row['teacher_ms']:.1f} ms, gradient "
            f"{row['gradient_ms']:.1f} ms for {given.batch} images: ratio {row['ratio']:.2f} ({TARGET_RATIO}: {met})"
        )
        met = "met" if row["training_gigabytes"] < TARGET_GIGABYTES else "NOT met"
        print(
            f"{name}: distillation step, batch {given.memory_batch}: {row['training_gigabytes']:.2f} GB at the most "
            f"({TARGET_GIGABYTES:g} GB: {met})"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
