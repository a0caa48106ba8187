"""Cost of a learned energy: a gradient against an evaluation of its teacher, and the memory of a training step.

    python benchmarks/learned.py [--recipe NAME ...] [--batch 8 --repeats 15 --memory-batch 64] [--device cpu] [--quick]
        [--draw] [--out benchmarks/results/learned]

For each recipe, with untrained networks of its shape: the teacher's evaluation without a graph and ``Denoiser.grad``
are timed in turn, over and over, in one process; the ratio is the median over the rounds. The memory is the most that
a process of its own ever held while it took two steps of distillation on a batch of ``--memory-batch`` images, on the
CPU whichever the device.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _record import about, parsed, parser, publish, redraw, seconds, sentence, table, verdict
from torch import Tensor

from potentia.training import Distillation, fit
from potentia.training._recipe import read_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPES = {"digits-28": (1, 28, 28), "brain-t1": (1, 96, 96), "faces-64": (3, 64, 64)}
TARGET_RATIO = 2.3
TARGET_GIGABYTES = 12.0
SIGMA = 0.3


def images(name: str, number: int) -> Tensor:
    """Noise in the shape of a recipe's images."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.complex64 if read_recipe(name).is_complex else torch.float32
    return torch.randn(number, *SHAPES[name], generator=generator, dtype=dtype)


def gradient_ratio(name: str, batch: int, repeats: int, device: str) -> dict[str, float]:
    """Time of ``Denoiser.grad`` over that of the teacher's evaluation."""
    net = read_recipe(name).denoiser(SHAPES[name][0], 0.5).to(device).eval().requires_grad_(False)
    energy = read_recipe(name).make_energy(net)
    x = images(name, batch).to(device)
    sigma = torch.full((batch,), SIGMA, device=device)

    def teacher() -> Tensor:
        with torch.no_grad():
            out: Tensor = net(x, sigma)
        return out

    rounds = range(repeats + 2)
    pairs = [(seconds(teacher, device), seconds(lambda: energy.grad(x, sigma), device)) for _ in rounds][2:]
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
    command = [sys.executable, __file__, "--train-two-steps", name, str(batch)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(out.stdout.split()[-1])


def report(content: dict[str, Any]) -> str:
    batch, memory_batch = content["settings"]["batch"], content["settings"]["memory batch"]
    head = ["recipe", "M parameters", "teacher, ms", "gradient, ms", "ratio", "", f"GB, batch {memory_batch}", ""]
    rows = []
    for name, row in content["rows"].items():
        judged = verdict(row["ratio"], TARGET_RATIO), verdict(row["training_gigabytes"], TARGET_GIGABYTES)
        times = f"{row['teacher_ms']:.1f}", f"{row['gradient_ms']:.1f}", f"{row['ratio']:.2f}"
        numbers = (f"{row['parameters'] / 1e6:.2f}", *times)
        rows.append([name, *numbers, judged[0], f"{row['training_gigabytes']:.2f}", judged[1]])
    lines = ["# A learned energy", "", sentence(content["about"]), "", f"Times are for {batch} images.", ""]
    return "\n".join([*lines, *table(head, rows)])


def figure(content: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    made = Figure(figsize=(5, 2.4), layout="constrained")
    axis = made.subplots()
    names = list(content["rows"])
    axis.barh(names, [content["rows"][n]["ratio"] for n in names])
    axis.axvline(TARGET_RATIO, color="black", lw=0.8)
    axis.set(xlabel="a gradient's time over an evaluation's")
    axis.invert_yaxis()
    return made


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "learned")
    made.add_argument("--recipe", action="append", choices=list(SHAPES))
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--repeats", type=int, default=15)
    made.add_argument("--memory-batch", type=int, default=64)
    options = parsed(made, arguments)
    options.recipe = options.recipe or list(SHAPES)
    if options.quick:
        options.recipe, options.batch, options.repeats, options.memory_batch = ["digits-28"], 1, 2, 2
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = arguments_of(arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    settings = {"batch": options.batch, "repeats": options.repeats, "memory batch": options.memory_batch}
    content = {"about": about(options.device), "settings": settings, "rows": {}}
    for name in options.recipe:
        row = gradient_ratio(name, options.batch, options.repeats, options.device)
        row["training_gigabytes"] = training_gigabytes(name, options.memory_batch)
        content["rows"][name] = row
        text = publish(options.out, content, report, figure)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train-two-steps"]:
        train_two_steps(sys.argv[2], int(sys.argv[3]))
    else:
        main()
