"""Several processes share the chains of a run out: what they write is what one process writes."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import zarr

import potentia as pt
from potentia import annealers, energies, inference, likelihoods
from potentia._cli import run
from potentia.inference._ranks import Ranks
from potentia.io import EnsembleWriter, StoreError
from potentia.io import _schema as schema

SCRIPT = """
import sys, time, warnings
import torch
torch.set_num_threads(1)
from torch import distributed
import potentia as pt
from potentia import annealers, energies, inference, likelihoods

warnings.simplefilter("ignore")
folder = sys.argv[1]
distributed.init_process_group("gloo")
if distributed.get_rank() == 1:      # is slow to open a store: rank 0 must not go on meanwhile
    from potentia.io import _writer

    quick = _writer.committed_draws
    _writer.committed_draws = lambda *arguments: [time.sleep(0.7), quick(*arguments)][1]

y = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
posterior = energies.GaussianField.power_law((1, 8, 8)) + likelihoods.Gaussian(y, None, 0.3)
anneal = inference.ALPS(annealers.Geometric(3.0, 0.1, 3), 2)

def draw(sampler, name, **options):
    return pt.sample(posterior, sampler, num_chains=5, num_draws=6, store=f"{folder}/{name}", progress=False, **options)

whole = draw(anneal, "alps.zarr")
assert whole.num_chains == 5 and whole.num_draws == 6, whole
draw(inference.Langevin(), "langevin.zarr", num_warmup=3)
again = draw(anneal, "alps.zarr", resume=True)
assert torch.equal(again.samples(), whole.samples())
told = []
for attempt in (
    lambda: draw(anneal, "alps.zarr"),                          # exists
    lambda: draw(inference.MALA(), "mala.zarr"),                # learns from all chains
    lambda: pt.sample(posterior, anneal, num_chains=5, progress=False),
    lambda: pt.sample(posterior, anneal, num_chains=1, store=f"{folder}/one.zarr", progress=False),
):
    try:
        attempt()
        told.append("nothing")
    except (ValueError, pt.io.StoreError) as err:
        told.append(str(err))
with open(f"{folder}/rank {distributed.get_rank()}", "w") as file:
    file.write(" | ".join(told))
distributed.barrier()
distributed.destroy_process_group()
"""


def torchrun(*arguments: str, processes: int = 2) -> "subprocess.CompletedProcess[str]":
    alone = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    environment = {k: v for k, v in os.environ.items() if k not in alone}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *arguments],
        check=False, capture_output=True, text=True, timeout=300, env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def posterior() -> pt.Potential:
    y = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    return energies.GaussianField.power_law((1, 8, 8)) + likelihoods.Gaussian(y, None, 0.3)


def draw(sampler: inference.Sampler, store: Path | None = None, **options: object) -> pt.Ensemble:
    with mock.patch("potentia.inference._sample.warn_if_suspect"):
        return pt.sample(
            posterior(), sampler, num_chains=5, num_draws=6, store=store, progress=False,
            **options,  # type: ignore[arg-type]
        )  # fmt: skip


def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    out = torchrun(str(script), str(tmp_path))
    assert out.returncode == 0, out.stderr[-3000:]
    alps = inference.ALPS(annealers.Geometric(3.0, 0.1, 3), 2)
    for name, one in (("alps", draw(alps)), ("langevin", draw(inference.Langevin(), num_warmup=3))):
        two = pt.open_ensemble(tmp_path / f"{name}.zarr")
        assert torch.equal(two.samples(), one.samples())
        assert np.array_equal(two.mean(), one.mean())
        for key, values in one.tree["sample_stats"].items():
            np.testing.assert_array_equal(two.tree["sample_stats"][key], values, err_msg=f"{name}: {key}")
    assert zarr.open_group(tmp_path / "alps.zarr", mode="r")["sample_stats/lp"].chunks[0] == 3
    for rank in ("rank 0", "rank 1"):
        exists, coupled, memory, few = (tmp_path / rank).read_text().split(" | ")
        assert "a store exists there already" in exists
        assert "2 processes cannot share out the chains of MALA(" in coupled
        assert "2 processes share no memory, expected a store" in memory
        assert "1 chains leave some of 2 processes without any" in few
    assert not (tmp_path / "mala.zarr").exists()
    with pytest.raises(StoreError, match="shared out among 2 ranks, this run has 1; expected the same number"):
        draw(alps, tmp_path / "alps.zarr", resume=True)


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    np.save(tmp_path / "y.npy", torch.randn(8, 8, generator=g).numpy())
    command = ["sample", "--data", str(tmp_path / "y.npy"), "--noise-std", "0.3", "--chains", "4", "--draws", "2",
               "--levels", "2", "--steps", "2"]  # fmt: skip
    out = torchrun("-m", "potentia", *command, "--store", str(tmp_path / "two.zarr"))
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.count("written") == 1, "one process speaks, not both"
    assert run([*command, "--store", str(tmp_path / "one.zarr")]) == 0
    one, two = pt.open_ensemble(tmp_path / "one.zarr"), pt.open_ensemble(tmp_path / "two.zarr")
    assert torch.equal(one.samples(), two.samples())


def test_ranks_that_were_killed_at_different_draws_go_on(tmp_path: Path) -> None:
    images = torch.randn(6, 5, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "a.zarr"
    with mock.patch.object(schema, "_CHUNK_BYTES", 2 * 4 * 6):
        first = EnsembleWriter.create(
            path, num_chains=5, num_draws=6, event_shape=(1, 2, 3), num_ranks=2, state_bytes=8
        )
        second, state = EnsembleWriter.resume(path, rank=1, num_ranks=2)
        assert state == b""

    def feed(writer: EnsembleWriter, chains: slice, start: int, stop: int) -> None:
        for k in range(start, stop):
            writer.append(images[k, chains], {"lp": float(k)})
            if writer.ready_to_commit:
                writer.commit(f"{k}".encode())
        writer.flush()

    feed(first, slice(0, 3), 0, 4)
    feed(second, slice(3, 5), 0, 2)
    assert pt.open_ensemble(path).num_draws == 2, "readers see what all ranks have"
    assert torch.equal(pt.open_ensemble(path).samples(), images[:2].transpose(0, 1))
    first, state = EnsembleWriter.resume(path, rank=0, num_ranks=2)
    assert (first.num_committed, state) == (4, b"3")
    second, state = EnsembleWriter.resume(path, rank=1, num_ranks=2)
    assert (second.num_committed, state) == (2, b"1")
    feed(second, slice(3, 5), 2, 6)
    feed(first, slice(0, 3), 4, 6)
    first.finish()
    ensemble = second.close()
    assert torch.equal(ensemble.samples(), images.transpose(0, 1))
    np.testing.assert_allclose(ensemble.mean(), images.double().mean(dim=(0, 1)), rtol=1e-12)


def test_alone_there_is_one_rank() -> None:
    assert Ranks.of_process() == Ranks(0, 1)
    assert [list(schema.rank_chains(7, 3, r)) for r in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
