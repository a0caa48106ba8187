"""Cost of one ALPS step against the bare network evaluation, and against the published loop's step.

    python benchmarks/step.py [--side 64 --batch 8 --repeats 15] [--device cpu] [--quick] [--draw]
        [--out benchmarks/results/step]

Three things are timed in turn, over and over, in one process: (a) the network's forward pass and one vector-Jacobian
product, with frozen parameters; (b) one step of ``inference.ALPS`` on an inpainting posterior with that network as
prior; (c) the same step as the published code takes it, which keeps the graph of the gradient. Ratios are medians over
the rounds; memory is the peak of what torch allocates within the call, from its own profiler on the CPU.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from _record import about, parsed, parser, peak_memory, publish, redraw, seconds, sentence, table, verdict
from torch import Tensor, nn

from potentia import annealers, energies, inference, likelihoods
from potentia._random import chain_generators

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def peak_bytes(call: Callable[[], object], device: str) -> float:
    """Peak of what torch holds above what it held before the call."""
    if torch.device(device).type == "cuda":
        with peak_memory(device) as held:
            call()
        return held.bytes
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


NAMES = ("network forward + vjp", "ALPS step", "published step")
TARGETS = {
    "ALPS / bare, time": ("seconds", 1, 0, 1.10),
    "ALPS / published, time": ("seconds", 1, 2, 0.95),
    "ALPS / published, memory": ("bytes", 1, 2, 0.30),
}


def calls_of(options: argparse.Namespace) -> tuple[dict[str, Callable[[], object]], int]:
    """The three calls, by name, and how many parameters their network has."""
    torch.manual_seed(0)
    net = UNet().to(options.device).eval()
    side, batch = options.side, options.batch
    mask = (torch.rand(side, side) < 0.3).float().to(options.device)
    y = mask * torch.rand(1, side, side).to(options.device)
    noise_std = 0.05
    prior = energies.Denoiser(net, scales=(0.01, 10.0))
    posterior = prior + likelihoods.Gaussian(y, likelihoods.Mask(mask), noise_std)
    sampler = inference.ALPS(annealers.Constant(SIGMA, 2), steps_per_level=500)
    x = torch.randn(batch, 1, side, side).to(options.device)
    state = sampler.init(posterior, x, chain_generators(0, range(batch), options.device))

    frozen = UNet().to(options.device).eval().requires_grad_(False)
    frozen.load_state_dict(net.state_dict())
    sigma = torch.full((batch,), SIGMA, device=options.device)

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

    return dict(zip(NAMES, (bare, ours, published), strict=True)), sum(p.numel() for p in net.parameters())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a round, bytes at the most, and parameters."""
    calls, parameters = calls_of(options)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(options.repeats + 2):
        for name, call in calls.items():
            spent = seconds(call, options.device)
            if round_ >= 2:
                times[name].append(spent)
    memory = {name: [peak_bytes(call, options.device)] for name, call in calls.items()}
    return {"parameters": parameters, "seconds": times, "bytes": memory}


def ratios(content: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Each target's ratio, the median over the rounds, and its limit."""
    found = {}
    for label, (what, a, b, limit) in TARGETS.items():
        pairs = zip(content[what][NAMES[a]], content[what][NAMES[b]], strict=True)
        found[label] = statistics.median(p / q for p, q in pairs), limit
    return found


def report(content: dict[str, Any]) -> str:
    settings = content["settings"]
    rows = [
        [n, f"{1e3 * statistics.median(content['seconds'][n]):.1f}", f"{content['bytes'][n][0] / 1e6:.1f}"]
        for n in NAMES
    ]
    lines = ["# A step", "", sentence(content["about"]), ""]
    lines.append(
        f"{content['parameters'] / 1e6:.2f} M parameters, batch {settings['batch']} of {settings['side']} x "
        f"{settings['side']}. CPU seconds (GPU: wall time), medians."
    )
    lines += ["", *table(["", "ms", "peak MB"], rows), ""]
    lines += [f"- {n}: {value:.3f} ({verdict(value, limit)})" for n, (value, limit) in ratios(content).items()]
    return "\n".join(lines)


def figure(content: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    made = Figure(figsize=(8, 2.2), layout="constrained")
    for axis, what in zip(made.subplots(1, 2, sharey=True), ("seconds", "bytes"), strict=True):
        axis.barh(NAMES, [statistics.median(content[what][n]) for n in NAMES])
        axis.set(xlabel=f"{what} a step")
    axis.invert_yaxis()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "step")
    made.add_argument("--side", type=int, default=64)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--repeats", type=int, default=15)
    options = parsed(made, arguments)
    if options.draw:
        print(redraw(options.out, report, figure))
        return
    if options.quick:
        options.side, options.batch, options.repeats = 16, 2, 2
    settings = {"side": options.side, "batch": options.batch, "repeats": options.repeats}
    content = {"about": about(options.device), "settings": settings, **measure(options)}
    print(publish(options.out, content, report, figure))


if __name__ == "__main__":
    main()
