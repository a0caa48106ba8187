"""Cost of one ALPS step against the bare network evaluation, and against the published loop's step.

    python benchmarks/step.py [--side 64 --batch 8 --repeats 15 --json FILE]

Three things are timed in turn, over and over, in one process: (a) the network's forward pass and one vector-Jacobian
product, with frozen parameters; (b) one step of ``inference.ALPS`` on an inpainting posterior with that network as
prior; (c) the same step as the published code takes it, which keeps the graph of the gradient. Ratios are medians over
the rounds; memory is the peak of what torch allocates within the call, from its own profiler.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from potentia import annealers, energies, inference, likelihoods
from potentia._random import chain_generators

SIGMA = 0.3


class Block(nn.Module):
    """Two convolutions with a residual connection, modulated by the noise scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.scale = nn.Linear(16, width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x))) + self.scale(code)[:, :, None, None]
        return x + self.conv2(nn.functional.silu(self.norm2(h)))


class UNet(nn.Module):
    """A small U-Net of about a million parameters, conditioned on sigma."""

    def __init__(self, channels: int = 1, width: int = 56) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width), Block(2 * width)])
        self.shrink = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.middle = nn.ModuleList([Block(2 * width), Block(2 * width)])
        self.grow = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.up = Block(width)
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        self.register_buffer("frequencies", torch.linspace(0.5, 4.0, 8))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        phase = sigma.log()[:, None] * self.frequencies
        code = torch.cat([phase.sin(), phase.cos()], dim=1)
        high = self.down[0](self.enter(x), code)
        low = self.down[1](self.shrink(high), code)
        for block in self.middle:
            low = block(low, code)
        return x - sigma[:, None, None, None] * self.leave(self.up(self.grow(low) + high, code))


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak of what torch holds on the CPU above what it held before the call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        kept = call()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.manual_seed(0)
    net = UNet().eval()
    side, batch = options.side, options.batch
    mask = (torch.rand(side, side) < 0.3).float()
    y = mask * torch.rand(1, side, side)
    noise_std = 0.05
    prior = energies.Denoiser(net, scales=(0.01, 10.0))
    posterior = prior + likelihoods.Gaussian(y, likelihoods.Mask(mask), noise_std)
    sampler = inference.ALPS(annealers.Constant(SIGMA, 2), steps_per_level=500)
    x = torch.randn(batch, 1, side, side)
    state = sampler.init(posterior, x, chain_generators(0, range(batch)))

    frozen = UNet().eval().requires_grad_(False)
    frozen.load_state_dict(net.state_dict())
    sigma = torch.full((batch,), SIGMA)

    def bare() -> Tensor:
        z = x.detach().requires_grad_(True)
        p = frozen(z, sigma)
        (v,) = torch.autograd.grad(p, z, (z - p).detach())
        return v

    def ours() -> Tensor:
        nonlocal state
        state, _ = sampler.step(posterior, state)
        return state.x

    precision = mask / noise_std**2 + 1 / SIGMA**2
    drift = mask * y / noise_std**2
    net_with_gradients = net.requires_grad_(True)

    def published() -> Tensor:
        z = x.clone().detach().requires_grad_(True)
        p = net_with_gradients(z, sigma)
        r = z - p
        energy = 0.5 * (r.abs() ** 2).sum(dim=(1, 2, 3))
        (v,) = torch.autograd.grad(p, z, r / SIGMA, create_graph=True)
        score = r - v * SIGMA
        mean = (drift + (z - score).detach() / SIGMA**2) / precision
        out = mean + torch.randn_like(mean) * precision.rsqrt()
        del energy
        return out

    calls = {"network forward + vjp": bare, "ALPS step": ours, "published step": published}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(options.repeats + 2):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if round_ >= 2:
                times[name].append(time.perf_counter() - begun)
    memory = {name: peak_bytes(call) for name, call in calls.items()}

    def ratio(a: str, b: str) -> float:
        return statistics.median(p / q for p, q in zip(times[a], times[b], strict=True))

    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, batch {batch} of {side} x {side}, {torch.get_num_threads()} threads")
    print(f"{'':24}{'median ms':>12}{'peak MB':>12}")
    for name in calls:
        print(f"{name:24}{1e3 * statistics.median(times[name]):12.1f}{memory[name] / 1e6:12.1f}")
    rows = {
        "ALPS / bare, time": (ratio("ALPS step", "network forward + vjp"), 1.10),
        "ALPS / published, time": (ratio("ALPS step", "published step"), 0.95),
        "ALPS / published, memory": (memory["ALPS step"] / memory["published step"], 0.30),
    }
    for name, (value, limit) in rows.items():
        print(f"{name:28}{value:8.3f}   (at most {limit:.2f}: {'met' if value <= limit else 'NOT met'})")
    if options.json:
        options.json.write_text(json.dumps({name: value for name, (value, _) in rows.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
