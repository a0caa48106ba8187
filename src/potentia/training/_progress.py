"""A bar of steps with the loss in three bands of noise."""

from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

from potentia.training._noise import NoiseScales

BANDS = ("low", "middle", "high")
MEMORY = 0.98  # of the running losses, a step


class Progress:
    """The bar; a context. Losses are running means over each third of the distribution of scales."""

    def __init__(self, steps: int, noise: NoiseScales, *, shown: bool) -> None:
        self.edges = noise.quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)).to(torch.float32)
        self.sums = torch.zeros(len(BANDS), dtype=torch.float64)
        self.weights = torch.zeros(len(BANDS), dtype=torch.float64)
        self.last = ""
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            disable=not shown,
        )
        self.task = self.bar.add_task("training", total=steps, losses="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, step: int, sigma: Tensor, losses: Tensor) -> None:
        """Enter a step's scales (N,) and losses (N,)."""
        band = torch.bucketize(sigma.cpu(), self.edges)
        self.sums *= MEMORY
        self.weights *= MEMORY
        self.sums.index_add_(0, band, losses.double().cpu())
        self.weights.index_add_(0, band, torch.ones(len(band), dtype=torch.float64))
        text = "  ".join(f"{name} {value:.3g}" for name, value in self.bands().items())
        self.bar.update(self.task, completed=step, losses="loss " + text)

    def bands(self) -> dict[str, float]:
        """The running loss of each band."""
        return {name: float(s / w) for name, s, w in zip(BANDS, self.sums, self.weights, strict=True) if float(w) > 0}

    def note(self, line: dict[str, Any]) -> None:
        """Print a line of measurements above the bar."""
        self.bar.console.print(", ".join(f"{k} {_short(v)}" for k, v in line.items()), highlight=False)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
