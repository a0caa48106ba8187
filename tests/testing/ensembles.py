"""Ensembles of given images, and runs that stop in the middle, for the tests of whatever reads and resumes them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from potentia.inference import Sampler
from potentia.io import Ensemble, EnsembleWriter
from potentia.io import _schema as schema


def ensemble_of(
    images: Tensor,
    path: Path | None = None,
    *,
    stop: int | None = None,
    block: int | None = None,
    stats: Callable[[int], Mapping[str, Any]] = lambda k: {"lp": float(k)},
    closing: Mapping[str, object] | None = None,
    **options: Any,
) -> Ensemble:
    """The first ``stop`` draws of images (chain, draw, C, H, W), in blocks of ``block`` draws."""
    chains, draws, *event = images.shape
    limit = schema._CHUNK_BYTES if block is None else block * images[0, 0].nbytes
    with mock.patch.object(schema, "_CHUNK_BYTES", limit):
        writer = EnsembleWriter.create(
            path, num_chains=chains, num_draws=draws, event_shape=event, is_complex=images.is_complex(),
            dtype="float64" if images.dtype in (torch.float64, torch.complex128) else "float32", **options,
        )  # fmt: skip
    for k in range(draws if stop is None else stop):
        writer.append(images[:, k], stats(k))
        if writer.ready_to_commit:
            writer.commit()
    return writer.close(**(closing or {}))


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def stops_after(sampler: Sampler, steps: int) -> Iterator[None]:
    """Samplers of this kind are interrupted, as by Ctrl-C, at the step after so many."""
    calls = 0
    step = type(sampler).step

    def failing(self: Any, posterior: Any, state: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise KeyboardInterrupt
        return step(self, posterior, state)

    with mock.patch.object(type(sampler), "step", failing):
        yield
