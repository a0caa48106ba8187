"""``sample``: run a sampler and keep what it draws."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import chain_generators
from potentia._validate import count, shape_text
from potentia.inference import _checkpoint as checkpoint
from potentia.inference._alps import ALPS
from potentia.inference._langevin import Langevin
from potentia.inference._prepare import Problem, prepare
from potentia.inference._protocol import Info, Sampler, State
from potentia.inference._summary import warn_if_suspect
from potentia.io import EnsembleWriter, check_target

if TYPE_CHECKING:
    from potentia.io import Ensemble


def sample(
    posterior: Potential,
    sampler: Sampler | None = None,
    *,
    num_chains: int,
    num_draws: int = 1,
    num_warmup: int | None = None,
    init: Tensor | None = None,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
    compile: bool = False,  # noqa: A002 - torch's own word for it
    constant_data: Mapping[str, Any] | None = None,
) -> "Ensemble":
    """Draw an ensemble of images from a posterior.

    Chains run as one batch. Each has a generator of its own, seeded from ``(seed, chain)``. Draws are kept in memory,
    or streamed to the zarr store ``store``; ``resume`` goes on from a store's last committed draw and ends with what
    an uninterrupted run would have drawn. The posterior handed in is left alone: where ``device`` or ``dtype`` ask for
    another, a copy moves.

    Args:
        posterior: What to sample: usually ``prior + likelihood``.
        sampler: How: by default ``ALPS.calibrated()``, 100 gradient evaluations a draw; for a posterior without
            multi-scale terms ``Langevin()``.
        num_chains: Chains side by side.
        num_draws: Draws to keep of each chain.
        num_warmup: Draws to throw away first; None is the sampler's own default.
        init: Where to start: (C, H, W) for all chains, or (chains, C, H, W); by default where the sampler likes to.
        seed: Seed of all random numbers, zero or more.
        store: Folder or URL of a zarr store.
        resume: Go on with a store that a run of the same posterior, sampler and seed began.
        overwrite: Replace an existing store.
        device: Where to compute; by default where the posterior's tensors are.
        dtype: Precision: float32 or float64, as a torch dtype or by name (complex posteriors take its complex twin).
        progress: Show a progress bar where the output is a terminal.
        compile: Compile the networks of the posterior with torch.compile, which pays on long runs.
        constant_data: Arrays to keep in the store beside the measurements, such as the true image.

    Returns:
        The ensemble; its images have shape (chain, draw, channel, y, x).

    Raises:
        TypeError: For arguments of the wrong kind.
        ValueError: For arguments out of range or that do not fit together, before anything is written.
        StoreError: For a store that exists, or cannot be resumed.
        FloatingPointError: If a chain stops being finite, with the chain, draw and scale; what was committed is kept.

    Warns:
        DiagnosticWarning: Where R-hat, the effective sample size or divergences give cause: see ``summary``.
    """
    sampler = default_sampler(posterior) if sampler is None else sampler
    problem = prepare(posterior, sampler, num_chains, init, seed, device, dtype, compile)
    draws = count("sample", "num_draws", num_draws)
    warmup = sampler.default_warmup if num_warmup is None else count("sample", "num_warmup", num_warmup, least=0)
    if resume and (store is None or overwrite):
        raise ValueError("sample: resume needs a store, and does not go with overwrite")
    run = _Run(problem, sampler, warmup, draws, seed, constant_data or {})
    if resume:
        assert store is not None
        run.resume(store)
    elif store is not None:
        check_target(store, overwrite=overwrite)
    with _bar(progress, run) as advance:
        ensemble = run.finish(store, overwrite, advance)
    warn_if_suspect(ensemble, stacklevel=3)
    return ensemble


def default_sampler(posterior: Potential) -> Sampler:
    """The calibrated anneal for posteriors with noise scales; Langevin dynamics for the others."""
    return Langevin() if isinstance(posterior, Potential) and posterior.scales is None else ALPS.calibrated()


class _Run:
    """One call of ``sample``: the chains' state, the counters, and the writer once there is something to write."""

    def __init__(
        self,
        problem: Problem,
        sampler: Sampler,
        warmup: int,
        draws: int,
        seed: int,
        constant: Mapping[str, Any],
    ) -> None:
        self.problem = problem
        self.sampler = sampler
        self.warmup = warmup
        self.draws = draws
        self.constant = constant
        self.generators = chain_generators(seed, range(problem.num_chains), problem.device)
        self.record = problem.record(sampler, warmup, draws, seed)
        self.writer: EnsembleWriter | None = None
        self.done = 0  # draws so far, those of the warm-up included
        self.n_grad = 0
        self.state: State | None = None

    @property
    def total(self) -> int:
        return self.warmup + self.draws

    def resume(self, store: str | os.PathLike[str]) -> None:
        self.writer, saved = EnsembleWriter.resume(store, expect=self.record)
        if self.writer.num_committed == 0 or not saved:
            return
        self.state, self.done, self.n_grad = checkpoint.decode(saved, self.generators, self.problem.device)

    def finish(self, store: str | os.PathLike[str] | None, overwrite: bool, advance: Any) -> "Ensemble":
        begun = time.perf_counter()
        problem = self.problem
        if self.state is None:
            self.state = self.sampler.init(
                problem.posterior, problem.starts(self.sampler, self.generators), self.generators
            )
        while self.done < self.total:
            if self.done == self.warmup:
                self.state = self.state._replace(memory=self.sampler.freeze(self.state.memory))
            stats = self._one_draw(advance)
            self.done += 1
            if self.done <= self.warmup:
                continue
            if self.writer is None:
                self.writer = self._create(store, overwrite)
            self.writer.append(self.state.x, stats)
            if self.writer.ready_to_commit:
                # What is kept in memory ends with the process: there is nothing to resume.
                state = b"" if store is None else checkpoint.encode(self.state, self.generators, self.done, self.n_grad)
                self.writer.commit(state)
        if self.writer is None:
            raise RuntimeError("sample: nothing was drawn")
        return self.writer.close(sampling_time=time.perf_counter() - begun)

    def _one_draw(self, advance: Any) -> dict[str, Any]:
        """Run the steps of one draw; what the store keeps of them."""
        state = self.state
        if state is None:
            raise RuntimeError("sample: the chains were not started")
        accepted: list[Tensor] = []
        diverging = torch.zeros(len(state.x), dtype=torch.bool, device=state.x.device)
        for _ in range(self.sampler.steps_per_draw):
            state, info = self.sampler.step(self.problem.posterior, state)
            self.n_grad += info.n_grad
            if info.acceptance is not None:
                accepted.append(info.acceptance)
            if info.diverging is not None:
                diverging = diverging | info.diverging
            advance()
        self.state = state
        bad = ~torch.isfinite(state.x).flatten(1).all(dim=1)
        if bool(bad.any()):
            chain = int(bad.nonzero()[0])
            raise FloatingPointError(
                f"sample: chain {chain} is no longer finite at draw {self.done - self.warmup} (sigma {info.sigma}), "
                f"with {int(bad.sum())} of {len(bad)} chains affected; a smaller step size may help"
            )
        return {
            "lp": self._log_density(state, info),
            # A chain is told by the steps that had a test, all of one draw together.
            "acceptance_rate": torch.stack(accepted).double().mean(0).cpu() if accepted else 1.0,
            "step_size": info.step_size.double().cpu() if isinstance(info.step_size, Tensor) else info.step_size,
            "diverging": diverging.cpu(),
            "sigma": math.nan if info.sigma is None else info.sigma,
            "n_grad": self.n_grad,
        }

    def _log_density(self, state: State, info: Info) -> Tensor | float:
        posterior = self.problem.posterior
        if not posterior.has_value:
            return math.nan
        if state.value is not None:
            return -state.value.double().cpu()
        with torch.no_grad():
            value: Tensor = posterior(state.x, info.sigma)
            return -value.double().cpu()

    @staticmethod
    def _never() -> State:
        raise RuntimeError("sample: the chains were not started")

    def _create(self, store: str | os.PathLike[str] | None, overwrite: bool) -> EnsembleWriter:
        problem = self.problem
        return EnsembleWriter.create(
            store,
            num_chains=problem.num_chains,
            num_draws=self.draws,
            event_shape=problem.shape,
            is_complex=problem.dtype.is_complex,
            dtype=str(problem.dtype.to_real()).removeprefix("torch."),
            attrs=self.record,
            observed=problem.observed(),
            constant={**problem.constants(), **{k: _array(v) for k, v in self.constant.items()}},
            overwrite=overwrite,
            state_bytes=0 if store is None else checkpoint.capacity((self.state or self._never()), self.generators),
        )


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


@contextmanager
def _bar(progress: bool, run: _Run) -> Iterator[Any]:
    """A progress bar over steps on a terminal, nothing elsewhere."""
    if not progress:
        yield lambda: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    steps = run.sampler.steps_per_draw
    label = f"{run.problem.num_chains} chains of {shape_text(run.problem.shape)}"
    with Progress(*columns, transient=True, disable=not _terminal()) as bar:
        task = bar.add_task(label, total=run.total * steps, completed=run.done * steps)
        yield lambda: bar.advance(task)


def _terminal() -> bool:
    import sys

    return sys.stderr.isatty() or sys.stdout.isatty()
