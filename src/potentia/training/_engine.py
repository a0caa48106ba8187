"""The one training loop: one CPU, one GPU or many processes, interrupted or not."""

import atexit
import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel

from potentia._random import standard_normal
from potentia._signals import held_back_signals
from potentia.training._checkpoint import read_checkpoint, write_checkpoint
from potentia.training._noise import draw_scales
from potentia.training._objectives import Objective
from potentia.training._progress import Progress
from potentia.training._settings import Settings

Batch = Callable[[Tensor, torch.Generator], Tensor]
Measure = Callable[[nn.Module], Mapping[str, Any]]


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the averaged network, the steps done, and whether all were."""

    network: nn.Module
    steps: int
    finished: bool
    seconds: float


def fit(
    objective: Objective[Any],
    images: Tensor,
    settings: Settings,
    *,
    folder: Path,
    augment: Batch | None = None,
    measure: Measure | None = None,
    measure_every: int = 500,
    checkpoint_seconds: float = 120.0,
    resume: bool = False,
    stop_after: int | None = None,
    fabric: Fabric | None = None,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
) -> Trained:
    """Train an objective's network on images.

    Which images a step sees, how they are augmented, and its noise are functions of the seed and the step alone: a
    resumed training goes through the same steps as an uninterrupted one, to the bit on the same machine, and the
    number of processes changes nothing but the order of summation. ``folder`` receives checkpoint.pt every
    ``checkpoint_seconds``, at the end and on Ctrl-C, and metrics.jsonl, a line of ``measure(averaged network)`` every
    ``measure_every`` steps. ``identity`` is kept in the checkpoint beside the settings: a resume refuses another.
    ``stop_after`` ends the run early, after that many steps of this run, as an interruption would.

    Shapes: images (N, C, H, W).
    Raises: FileExistsError if the folder holds a training and ``resume`` is False; ValueError for a checkpoint of other
        settings, a batch that the processes do not divide, or fewer images than a batch; FloatingPointError for a loss
        that is not finite, saying at which scale; KeyboardInterrupt, passed on once the checkpoint is written.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1, precision=settings.precision)
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_leave_group)
    if settings.batch % fabric.world_size:
        raise ValueError(f"training: {fabric.world_size} processes do not divide a batch of {settings.batch}")
    if len(images) < 1:
        raise ValueError("training: there are no images to train on")
    run = _Run(fabric, objective, images, settings, folder, augment, dict(identity or {}))
    run.start(resume)
    begun = time.monotonic()
    saved = begun
    last = settings.steps if stop_after is None else min(settings.steps, run.step + stop_after)
    bar = Progress(settings.steps, settings.noise, shown=progress and fabric.is_global_zero)
    with held_back_signals() as caught, bar:
        while run.step < last and not run.all_agree(bool(caught)):
            sigma, losses = run.advance()
            bar.advance(run.step, sigma, losses)
            if measure is not None and (run.step % measure_every == 0 or run.step == settings.steps):
                run.report(measure, bar)
            if run.all_agree(time.monotonic() - saved > checkpoint_seconds):
                run.save()
                saved = time.monotonic()
        run.save()
    if caught:
        raise KeyboardInterrupt
    return Trained(run.average.module, run.step, run.step == settings.steps, time.monotonic() - begun)


def _leave_group() -> None:
    """Leave gloo's process group while the interpreter is whole.

    Its threads may hold tensors, which abort the process where they are freed once Python is being taken down. They
    end with the last reference to the group, and the wrapped module, which holds one, is part of a cycle.
    """
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
        gc.collect()


class _Run:
    """The state of a training between two steps."""

    def __init__(
        self,
        fabric: Fabric,
        objective: Objective[Any],
        images: Tensor,
        settings: Settings,
        folder: Path,
        augment: Batch | None,
        identity: dict[str, Any],
    ) -> None:
        self.fabric, self.settings, self.folder, self.augment = fabric, settings, folder, augment
        self.images = images
        self.identity = {"settings": settings.as_dict(), "images": list(images.shape), **identity}
        self.step = 0
        self.objective = objective.to(fabric.device)
        self.average = AveragedModel(self.objective.trained, multi_avg_fn=self._blend)
        optimizer = torch.optim.Adam(self.objective.trained.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
        self.module, self.optimizer = fabric.setup(self.objective, optimizer)
        self.order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.long))

    @property
    def path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _blend(self, averages: Any, currents: Any, seen: Any) -> None:
        """An exponential average that starts as a plain one (Karras et al. 2022 ramp theirs up likewise)."""
        n = float(seen)
        # torch's stubs do not hand this name on.
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(averages), list(currents), 1 - min(self.settings.ema, (1 + n) / (10 + n))
        )

    def start(self, resume: bool) -> None:
        if self.path.exists():
            if not resume:
                raise FileExistsError(f"{self.path}: holds a training already, expected resume or another folder")
            state = read_checkpoint(self.path, self.identity)
            self.objective.trained.load_state_dict(state["trained"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        elif self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.fabric.barrier()

    def save(self) -> None:
        if self.fabric.is_global_zero:
            state = {
                "identity": self.identity,
                "step": self.step,
                "trained": self.objective.trained.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            write_checkpoint(self.path, state)
        # No rank may go on, or look for the checkpoint, before it is there.
        self.fabric.barrier()

    def generator(self, *salt: int) -> torch.Generator:
        """The generator of a purpose and a step."""
        words = np.random.SeedSequence((self.settings.seed, *salt)).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

    def indices(self) -> Tensor:
        """The images of this step, over all processes: epochs of random order, which batches may straddle."""
        size, n = self.settings.batch, len(self.images)
        places = torch.arange(self.step * size, (self.step + 1) * size)
        picked = torch.empty(size, dtype=torch.long)
        for epoch in range(int(places[0]) // n, int(places[-1]) // n + 1):
            if self.order[0] != epoch:
                self.order = (epoch, torch.randperm(n, generator=self.generator(1, epoch)))
            here = places // n == epoch
            picked[here] = self.order[1][places[here] % n]
        return picked

    def advance(self) -> tuple[Tensor, Tensor]:
        """One step; returns the scales and losses of this process's images."""
        generator = self.generator(2, self.step)
        x = self.images[self.indices()]
        if self.augment is not None:
            x = self.augment(x, generator)
        sigma = draw_scales(self.settings.noise, len(x), generator)
        noise = standard_normal(tuple(x.shape), generator, dtype=x.dtype)
        share = len(x) // self.fabric.world_size
        mine = slice(self.fabric.global_rank * share, (self.fabric.global_rank + 1) * share)
        x, sigma, noise = (self._place(t[mine]) for t in (x, sigma, noise))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        losses = self.module(x, sigma, noise)
        self._refuse_broken(losses, sigma)
        self.optimizer.zero_grad()
        self.fabric.backward(losses.mean())
        self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.settings.clip, error_if_nonfinite=True)
        self.optimizer.step()
        self.average.update_parameters(self.objective.trained)
        self.step += 1
        return sigma, losses.detach()

    def _place(self, t: Tensor) -> Tensor:
        precision = torch.float64 if self.settings.precision == "64-true" else torch.float32
        return t.to(self.fabric.device, precision.to_complex() if t.is_complex() else precision)

    def _refuse_broken(self, losses: Tensor, sigma: Tensor) -> None:
        broken = ~losses.isfinite()
        if bool(broken.any()):
            raise FloatingPointError(
                f"training: the loss of step {self.step} is not finite at sigma = {float(sigma[broken][0]):g}; "
                "expected a lower learning rate, or 32-true precision"
            )

    def all_agree(self, wish: bool) -> bool:
        """Whether rank 0 wishes so: ranks have clocks of their own."""
        return bool(self.fabric.broadcast(wish)) if self.fabric.world_size > 1 else wish

    def report(self, measure: Measure, bar: Progress) -> None:
        """Measure the averaged network and write a line."""
        if self.fabric.is_global_zero:
            line = {"step": self.step, "loss": bar.bands(), **measure(self.average.module)}
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            bar.note(line)
        self.fabric.barrier()
