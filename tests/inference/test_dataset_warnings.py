"""``sample_dataset`` brings what workers warn of back to the caller, by item."""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import pytest
import torch

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia.inference import _cluster as cluster_of
from potentia.inference import _dataset as dataset
from potentia.inference._dataset import FailedItemsWarning, Reconstruction, sample_dataset
from potentia.inference._twisted import EFFECTIVE
from potentia.io._collection import Collection, open_collection

# Workers cannot import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHAPE = (1, 6, 5)
PORT = {"dashboard_address": "127.0.0.1:0"}  # none is shown, but without a free port for it Dask warns


class Fails(RuntimeError):
    """What a build raises."""


def posterior(item: int) -> pt.Potential:
    y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(item))
    return energies.Gaussian(torch.zeros(SHAPE), 1.0) + likelihoods.Gaussian(y, likelihoods.Identity(), 0.5)


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    """One worker of two threads, within this process."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, scheduler_kwargs=PORT
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as own,
    ):
        yield own


@pytest.fixture(scope="module")
def processes() -> Iterator[distributed.Client]:
    """Two workers, each a process of its own."""
    with cluster_of.connected(None, 2, 1, 2) as own:
        yield own


def run(root: Path, client: Any, build: Callable[[Any], Any], items: dict[str, Any]) -> Collection:
    sampler = inference.Langevin(step_size=0.5)
    with inference.without_diagnostics():
        return sample_dataset(
            items, build, sampler, root=root, client=client, num_chains=2, num_draws=12, seed=3, progress=False
        )


def test_diagnostics_are_told_once_with_the_items_name(client: distributed.Client, tmp_path: Path) -> None:
    slow = inference.Langevin(step_size=1e-3, steps_per_draw=1)
    with pytest.warns(inference.DiagnosticWarning, match=r"2 of 2 items are suspect, such as x: .*(R-hat|ESS)"):
        collection = sample_dataset(
            {"x": 0, "y": 1}, posterior, slow, root=tmp_path / "r", num_chains=4, num_draws=40, client=client
        )
    assert all(collection.states[name].concerns for name in "xy")


class Weighed(inference.Langevin):
    """Says that its weights were worth a share of the particles."""

    def step(self, posterior: pt.Potential, state: inference.State) -> tuple[inference.State, inference.Info]:
        new, info = super().step(posterior, state)
        return new._replace(memory={EFFECTIVE: torch.tensor(0.01)}), info


def test_warnings_of_items_come_back(processes: distributed.Client, tmp_path: Path) -> None:
    def build(kind: str) -> Reconstruction:
        if kind == "plain":
            warnings.warn("plain is\nold", FutureWarning, stacklevel=2)
        for _ in range(3):
            warnings.warn("the scan is short", stacklevel=2)
        if kind == "broken":
            warnings.warn("overflow", RuntimeWarning, stacklevel=2)
            raise Fails("no image")
        return Reconstruction(posterior(0), Weighed(0.5) if kind == "weighed" else None)

    items = {"a": "plain", "b": "weighed", "c": "broken", "d": "plain"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collection = run(tmp_path / "root", processes, build, items=items)
    told = [(w.category, str(w.message)) for w in caught if w.category is not ResourceWarning]
    weights = "sample: the weights were worth 1.0% of the particles"
    assert told[0][0] is FailedItemsWarning
    assert told[3][1].startswith(f"sample_dataset: b: {weights}")
    assert told[1:] == [
        (UserWarning, "sample_dataset: a and 1 more: FutureWarning: plain is old"),
        (UserWarning, "sample_dataset: a and 3 more: the scan is short"),
        (inference.DiagnosticWarning, told[3][1]),
        (UserWarning, "sample_dataset: c: RuntimeWarning: overflow"),
    ]
    assert all(w.filename == __file__ for w in caught if w.category is not ResourceWarning)
    (concern,) = open_collection(tmp_path / "root").states["b"].concerns
    assert concern.startswith(weights)
    assert collection.states["a"].concerns == ()


def test_many_warnings_are_counted(client: distributed.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_MOST_WARNINGS", 2)

    def build(item: int) -> pt.Potential:
        for k in range(5):
            warnings.warn(f"number {k}", stacklevel=2)
        return posterior(item)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        run(tmp_path / "root", client, build, items={"a": 0})
    assert [str(w.message).removeprefix("sample_dataset: ") for w in caught if w.category is UserWarning] == [
        "a: number 0",
        "a: number 1",
        "items gave 3 more warnings",
    ]


def test_a_scheduler_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_of, "_CONNECT", "1s")
    with pytest.raises(OSError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        run(tmp_path / "root", "tcp://127.0.0.1:9", posterior, {"a": 0})
    assert list(tmp_path.iterdir()) == []
