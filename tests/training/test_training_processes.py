"""Two processes under torchrun, joined by gloo, train what one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import atexit, os, sys
from pathlib import Path
import torch
@atexit.register  # before the training registers anything, so that it is called last
def write_threads_left():
    threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    (Path(sys.argv[1]).parent / f"threads.{os.environ.get('RANK', 0)}").write_text("\\n".join(threads))
torch.set_num_threads(1)
from potentia import energies
from potentia.training import Distillation, LogUniform, Settings, fit
from potentia.training._augment import Augment
from potentia.training._runner import make_fabric

def tiny(seed):
    torch.manual_seed(seed)
    return energies.EDM(energies.UNet(1, widths=(8, 8), embedding=8), 0.5)

images = 0.5 * torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(1))
settings = Settings(steps=int(sys.argv[2]), batch=8, warmup=2, ema=0.5, noise=LogUniform(0.1, 2.0))
objective = Distillation(energies.Denoiser(tiny(0), (0.1, 2.0)), tiny(1), 0.5)
for _ in range(2):
    done = fit(
        objective, images, settings, folder=Path(sys.argv[1]), augment=Augment(flip=True), resume=True, stop_after=4,
        fabric=make_fabric("cpu", "32-true"), progress=False, measure=lambda net: {"rank": os.environ.get("RANK")},
        measure_every=4,
    )
    if int(sys.argv[2]) == 1:
        break
"""


def run(folder: Path, processes: int, steps: int = 8) -> dict[str, torch.Tensor]:
    script = folder / "train.py"
    folder.mkdir()
    script.write_text(SCRIPT, encoding="utf-8")
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    alone = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    environment = {k: v for k, v in os.environ.items() if k not in alone}
    out = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder / "run"), str(steps)],
        check=False, capture_output=True, text=True, timeout=300, env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    state: dict[str, torch.Tensor] = torch.load(folder / "run" / "checkpoint.pt", weights_only=True)
    return state


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    assert one["step"] == two["step"] == 8
    # Gradients are summed in another order, and Adam divides small ones by small ones.
    for kept in ("trained", "average"):
        for name, value in one[kept].items():
            torch.testing.assert_close(two[kept][name], value, rtol=0, atol=2e-5, msg=f"{kept}: {name}")
    lines = (tmp_path / "two" / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2, "one rank measures, not both"
    assert all('"rank": "0"' in line for line in lines)
    for rank in range(2):  # a thread of gloo's that outlives Python aborts the process, now and then
        assert "gloo" not in (tmp_path / "two" / f"threads.{rank}").read_text()
    start = run(tmp_path / "start", 1, steps=1)
    moved = max(float((one["trained"][k] - v).abs().max()) for k, v in start["trained"].items())
    assert moved > 100 * 2e-5, "what is compared must have moved by far more than the tolerance"
