"""``sample``: run a sampler and keep what it draws."""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._random import chain_generators
from potentia._signals import held_back_signals
from potentia._validate import count, shape_text
from potentia.inference import _checkpoint as checkpoint
from potentia.inference._alps import ALPS
from potentia.inference._langevin import Langevin
from potentia.inference._prepare import Problem, prepare
from potentia.inference._progress import progress_bar
from potentia.inference._protocol import Info, Sampler, State
from potentia.inference._ranks import Ranks
from potentia.inference._summary import DiagnosticWarning, warn_if_suspect
from potentia.inference._twisted import EFFECTIVE
from potentia.io import Durability, EnsembleWriter, StoreError, check_target, open_ensemble
from potentia.io._schema import rank_chains
from potentia.io._writer import check_durability

if TYPE_CHECKING:
    from potentia.io import Ensemble

_FEW = 0.1  # share of the particles below which their weights say little


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
    durability: Durability | str = "process",
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
    compile: bool = False,  # noqa: A002 - torch's own word for it
    constant_data: Mapping[str, Any] | None = None,
) -> "Ensemble":
    """Draw an ensemble of images from a posterior.

    Chains run as one batch. Each has a generator of its own, seeded from ``(seed, chain)``. Draws are kept in memory,
    or streamed to the zarr store ``store`` by a thread of its own; ``resume`` goes on from a store's last committed
    draw and ends with what an uninterrupted run would have drawn. With a store, Ctrl-C and SIGTERM end the run after
    the draw under way, which is committed with those before it; a second one stops at once. The posterior handed in is
    left alone: where ``device`` or ``dtype`` ask for another, a copy moves.

    Once ``torch.distributed`` has a process group, as after ``init_process_group("gloo")`` under ``torchrun``, its
    processes share the chains out and write one store; each returns the whole ensemble.

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
        durability: What committed draws survive: the death of the "process", or a failure of the "power" too, for which
            each block waits for the disk.
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
            Also where the disk does not take a block, with the cause; what was committed is kept.
        FloatingPointError: If a chain stops being finite, with the chain, draw and scale; what was committed is kept.

    Warns:
        DiagnosticWarning: Where R-hat, the effective sample size or divergences give cause: see ``summary``; and where
            ``TwistedSMC`` gave most of its particles next to no weight.
    """
    sampler = default_sampler(posterior) if sampler is None else sampler
    keep = check_durability("sample", durability)
    problem = prepare(posterior, sampler, num_chains, init, seed, device, dtype, compile)
    draws = count("sample", "num_draws", num_draws)
    warmup = sampler.default_warmup if num_warmup is None else count("sample", "num_warmup", num_warmup, least=0)
    if resume and (store is None or overwrite):
        raise ValueError("sample: resume needs a store, and does not go with overwrite")
    ranks = Ranks.of_process()
    if ranks.count > 1:
        _check_shared(sampler, store, ranks, num_chains)
    run = _Run(problem, sampler, warmup, draws, seed, constant_data or {}, ranks, keep)
    if resume:
        assert store is not None
        run.resume(store)
    elif store is not None:
        ranks.first(lambda: check_target(store, overwrite=overwrite))
    label, steps = f"{num_chains} chains of {shape_text(problem.shape)}", sampler.steps_per_draw
    shown = progress and ranks.index == 0
    with progress_bar(label, run.total * steps, shown=shown, done=run.done * steps) as advance:
        ensemble = run.finish(store, overwrite, advance)
    if ranks.index == 0:
        warn_if_suspect(ensemble, stacklevel=3)
        _warn_of_weights(run.state, stacklevel=3)
    return ensemble


def _warn_of_weights(state: State | None, stacklevel: int) -> None:
    """Warn where particles were weighed and few of them count."""
    share = None if state is None else state.memory.get(EFFECTIVE)
    if share is not None and float(share) < _FEW:
        warnings.warn(
            f"sample: the weights were worth {float(share):.1%} of the particles, expected {_FEW:.0%} or more: the "
            "weights of the modes are not to be trusted, nor the spread where modes differ",
            DiagnosticWarning,
            stacklevel=stacklevel + 1,
        )


def _check_shared(sampler: Sampler, store: object, ranks: Ranks, num_chains: int) -> None:
    """Raises: ValueError for what several processes cannot do."""
    if store is None:
        raise ValueError(f"sample: {ranks.count} processes share no memory, expected a store")
    if len(rank_chains(num_chains, ranks.count, ranks.count - 1)) == 0:
        raise ValueError(
            f"sample: {num_chains} chains leave some of {ranks.count} processes without any, expected fewer processes"
        )
    if sampler.couples_chains:
        raise ValueError(
            f"sample: {ranks.count} processes cannot share out the chains of {sampler!r}, which learns from all of "
            "them together or weighs them against one another; expected one process, or a fixed step size"
        )


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
        ranks: Ranks,
        durability: Durability,
    ) -> None:
        self.ranks = ranks
        self.durability: Durability = durability
        self.chains = rank_chains(problem.num_chains, ranks.count, ranks.index)
        self.problem = problem
        self.sampler = sampler
        self.warmup = warmup
        self.draws = draws
        self.constant = constant
        self.generators = chain_generators(seed, self.chains, problem.device)
        self.record = problem.record(sampler, warmup, draws, seed)
        self.writer: EnsembleWriter | None = None
        self.done = 0  # draws so far, those of the warm-up included
        self.n_grad = 0
        self.state: State | None = None
        self.parameters: tuple[str, ...] = ()  # known once there is a draw

    @property
    def total(self) -> int:
        return self.warmup + self.draws

    def resume(self, store: str | os.PathLike[str]) -> None:
        """Go on from a store; rank 0 clears away what was half-written, and nobody writes while others still look."""
        self.ranks.in_turn(lambda: self._take_up(store))

    def _take_up(self, store: str | os.PathLike[str]) -> None:
        self.writer, saved = self._open(store)
        committed = self.writer.num_committed
        if committed == 0:
            return
        if not saved:
            raise StoreError(
                f"{store}: {committed} draws are committed without the sampler's state, so that the run "
                "cannot be resumed"
            )
        self.state, self.done, self.n_grad = checkpoint.decode(saved, self.generators, self.problem.device)

    def finish(
        self, store: str | os.PathLike[str] | None, overwrite: bool, advance: Callable[[str], None]
    ) -> "Ensemble":
        begun = time.perf_counter()
        if self.state is None:
            self.state = self.sampler.init(
                self.problem.posterior, self.problem.starts(self.sampler, self.generators, self.chains), self.generators
            )
        try:
            if store is None:
                self._draw_all(store, overwrite, advance, [])
            else:
                with held_back_signals("ends after this draw; Ctrl-C again stops at once") as caught:
                    self._draw_all(store, overwrite, advance, caught)
        finally:
            if self.writer is not None:
                self.writer.stop()
        if self.writer is None:
            raise RuntimeError("sample: nothing was drawn")
        if self.ranks.count == 1:
            return self.writer.close(sampling_time=time.perf_counter() - begun)
        self.writer.finish(sampling_time=time.perf_counter() - begun)
        self.ranks.wait()
        assert store is not None
        return open_ensemble(store)

    def _draw_all(
        self, store: str | os.PathLike[str] | None, overwrite: bool, advance: Callable[[str], None], caught: list[int]
    ) -> None:
        """Draw what is left; a signal that was caught ends this after a draw."""
        while self.done < self.total:
            if self.done == self.warmup:
                self.state = self._started._replace(memory=self.sampler.freeze(self._started.memory))
            stats = self._one_draw(advance)
            self.done += 1
            if self.done > self.warmup:
                if self.writer is None:
                    self.writer = self._begin(store, overwrite)
                self.writer.append(self._started.x, stats)
                if self.writer.ready_to_commit or caught:
                    # What is kept in memory ends with the process: there is nothing to resume.
                    self.writer.commit(b"" if store is None else self._encoded())
            if caught and self.done < self.total:
                raise KeyboardInterrupt

    @property
    def _started(self) -> State:
        if self.state is None:
            raise RuntimeError("sample: the chains were not started")
        return self.state

    def _encoded(self) -> bytes:
        return checkpoint.encode(self._started, self.generators, self.done, self.n_grad)

    def _one_draw(self, advance: Callable[[str], None]) -> dict[str, Any]:
        """Run the steps of one draw; what the store keeps of them."""
        state, info = self._started, Info(None, math.nan, 0)
        accepted: list[Tensor] = []
        diverging = torch.zeros(len(state.x), dtype=torch.bool, device=state.x.device)
        for _ in range(self.sampler.steps_per_draw):
            state, info = self.sampler.step(self.problem.posterior, state)
            self.n_grad += info.n_grad
            if info.acceptance is not None:
                accepted.append(info.acceptance)
            if info.diverging is not None:
                diverging = diverging | info.diverging
            if self.writer is not None:
                self.writer.check()
            advance("")
        self.state = state
        self.parameters = tuple(info.parameters)
        bad = ~torch.isfinite(state.x).flatten(1).all(dim=1)
        if bool(bad.any()):
            chain = self.chains[int(bad.nonzero()[0])]
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
            **info.parameters,
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

    def _begin(self, store: str | os.PathLike[str] | None, overwrite: bool) -> EnsembleWriter:
        """A writer to a new store, which rank 0 makes; nobody writes while others still look."""
        made: list[EnsembleWriter] = []

        def take_up() -> None:
            if self.ranks.index == 0:
                made.append(self._create(store, overwrite))
            elif store is not None:
                made.append(self._open(store)[0])

        self.ranks.in_turn(take_up)
        return made[0]

    @property
    def _pinned(self) -> bool:
        return self.problem.device.type == "cuda"

    def _open(self, store: str | os.PathLike[str]) -> tuple[EnsembleWriter, bytes]:
        return EnsembleWriter.resume(
            store,
            expect=self.record,
            rank=self.ranks.index,
            num_ranks=self.ranks.count,
            durability=self.durability,
            pinned=self._pinned,
        )

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
            state_bytes=0 if store is None else checkpoint.capacity(self._started, self.generators),
            num_ranks=self.ranks.count,
            parameters=self.parameters,
            durability=self.durability,
            pinned=self._pinned,
        )


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
