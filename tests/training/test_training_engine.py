"""The training loop: it learns, it resumes to the bit, and processes change nothing."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potentia import energies
from potentia.training import Denoising, Distillation, LogUniform, Settings, fit
from potentia.training._augment import Augment
from potentia.training._engine import Trained


def tiny_denoiser(seed: int = 0, channels: int = 1) -> energies.EDM:
    torch.manual_seed(seed)
    return energies.EDM(energies.UNet(channels, widths=(8, 8), embedding=8), 0.5)


def some_images(number: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 1, 6, 6, generator=generator) * 0.5


def settings(**changed: object) -> Settings:
    given: dict[str, object] = {"steps": 12, "batch": 8, "warmup": 2, "noise": LogUniform(0.05, 2.0), "ema": 0.9}
    return Settings(**{**given, **changed})  # type: ignore[arg-type]


def train(folder: Path, seed: int = 0, **given: object) -> Trained:
    kept = given.pop("settings", settings())
    objective = given.pop("objective", None) or Denoising(tiny_denoiser(seed), 0.5)
    return fit(objective, some_images(), kept, folder=folder, progress=False, **given)  # type: ignore[arg-type]


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    augment = Augment(flip=True, shift=1.0)
    whole = train(tmp_path / "whole", augment=augment)
    for _ in range(3):
        parts = train(tmp_path / "parts", augment=augment, resume=True, stop_after=5)
    assert whole.finished
    assert parts.finished
    assert parts.steps == whole.steps == 12
    assert states_equal(whole.network, parts.network)
    ends = [torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("whole", "parts")]
    moments = [e["optimizer"]["state"] for e in ends]
    assert all(torch.equal(moments[0][k]["exp_avg_sq"], moments[1][k]["exp_avg_sq"]) for k in moments[0])


def test_a_resume_that_forgot_the_optimiser_would_be_seen(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", stop_after=6)
    path = tmp_path / "parts" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["optimizer"]["state"] = {}
    torch.save(state, path)
    assert not states_equal(whole.network, train(tmp_path / "parts", resume=True).network)


def test_every_epoch_sees_every_image_once(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def note(x: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        seen.append(x[:, 0, 0, 0])
        return x

    train(tmp_path, augment=note, settings=settings(steps=5))  # 5 batches of 8 are two epochs of 20
    values = some_images()[:, 0, 0, 0].sort().values
    pooled = torch.cat(seen)
    first, second = pooled[:20], pooled[20:]
    assert torch.equal(first.sort().values, values)
    assert torch.equal(second.sort().values, values)
    assert not torch.equal(first, second)


def test_the_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    train(tmp_path, stop_after=2)
    with pytest.raises(FileExistsError, match="holds a training already"):
        train(tmp_path)
    with pytest.raises(ValueError, match=r"another training: settings was .*'learning_rate': 0\.001"):
        train(tmp_path, resume=True, settings=settings(learning_rate=0.5))
    with pytest.raises(ValueError, match="another training: recipe"):
        train(tmp_path, resume=True, identity={"recipe": "other"})


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "strange"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    train(tmp_path, stop_after=2)
    path = tmp_path / "checkpoint.pt"
    sentinel = tmp_path / "executed"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        torch.save(Bomb(sentinel), path)
    else:
        torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: "):
        train(tmp_path, resume=True)
    assert not sentinel.exists()


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_ctrl_c_ends_after_the_step_and_resumes(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")

    def interrupt(x: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return x

    calls: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", augment=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 4
    assert states_equal(whole.network, train(tmp_path / "cut", resume=True).network)


def test_a_broken_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, stop_after=3)

    def spoil(x: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return x * float("nan")

    with pytest.raises(FloatingPointError, match=r"loss of step 3 is not finite at sigma = "):
        train(tmp_path, resume=True, augment=spoil)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


def test_measurements_are_lines_of_json(tmp_path: Path) -> None:
    train(tmp_path, measure=lambda net: {"answer": float(len(list(net.parameters())))}, measure_every=5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert all(set(line["loss"]) <= {"low", "middle", "high"} and line["loss"] for line in lines)
    assert all(line["answer"] > 0 for line in lines)


def test_weights_are_averaged(tmp_path: Path) -> None:
    objective = Denoising(tiny_denoiser(), 0.5)
    trained = train(tmp_path, objective=objective)
    assert not states_equal(trained.network, objective.trained)
    start = tiny_denoiser()
    gaps = [
        sum(float((a - b).detach().square().sum()) for a, b in zip(net.parameters(), start.parameters(), strict=True))
        for net in (trained.network, objective.trained)
    ]
    assert 0 < gaps[0] < gaps[1], "an average lags behind what it averages"


def test_the_learning_rate_rises_and_falls() -> None:
    s = Settings(steps=1000, learning_rate=2.0, warmup=9)
    assert s.rate(0) == pytest.approx(0.2)
    assert s.rate(9) == pytest.approx(2.0, rel=1e-3)
    assert s.rate(500) == pytest.approx(1.0)
    assert s.rate(999) < 1e-4


def test_a_teacher_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    teacher = tiny_denoiser(3)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    energy = energies.Denoiser(tiny_denoiser(), (0.05, 2.0))
    train(tmp_path, objective=Distillation(energy, teacher, 0.5), stop_after=3)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    names = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["trained"]
    assert set(names) == set(energy.state_dict())


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        settings(steps=0)
    with pytest.raises(ValueError, match="ema is 1"):
        settings(ema=1.0)
    with pytest.raises(ValueError, match="precision is 'half'"):
        settings(precision="half")
    with pytest.raises(ValueError, match="unknown keys speed"):
        Settings.from_spec("recipe", {"steps": 3, "speed": 2})
    with pytest.raises(ValueError, match="steps is missing"):
        Settings.from_spec("recipe", {})
    with pytest.raises(ValueError, match="no images"):
        fit(Denoising(tiny_denoiser(), 0.5), some_images(0), settings(), folder=tmp_path, progress=False)
