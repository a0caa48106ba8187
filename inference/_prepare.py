"""What ``sample`` and ``map_estimate`` check and set up before they compute."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potentia._algebra import unscaled
from potentia._potential import Likelihood, Potential
from potentia._random import Generators
from potentia._validate import count, finite, same_shape, shape_text
from potentia.inference._precondition import terms
from potentia.inference._protocol import Sampler

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float32", "float64", "complex64", "complex128")
}


@dataclass(frozen=True)
class Problem:
    """A posterior on its device and in its precision, with everything about the images known."""

    posterior: Potential
    num_chains: int
    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    init: Tensor | None
    fingerprint: str

    def starts(self, sampler: Sampler, generators: Generators, chains: range | None = None) -> Tensor:
        """The starting points of the chains, or of some of them, (chains, C, H, W)."""
        chains = range(self.num_chains) if chains is None else chains
        if self.init is None:
            return sampler.start(self.posterior, (len(chains), *self.shape), self.dtype, generators)
        return self.init.expand(self.num_chains, *self.shape)[chains.start : chains.stop].clone()

    def record(self, sampler: Sampler, warmup: int, draws: int, seed: int) -> dict[str, Any]:
        """What a store keeps of a run, and what a resumed run must agree with."""
        return {
            "posterior": repr(self.posterior),
            "fingerprint": self.fingerprint,
            "sampler": repr(sampler),
            "independent_draws": sampler.independent_draws,
            "seed": seed,
            "num_chains": self.num_chains,
            "num_draws": draws,
            "num_warmup": warmup,
            "event_shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def observed(self) -> dict[str, Any]:
        """The measurements: ``y``, or ``y_<term>`` where there are several likelihoods."""
        found = _likelihoods(self.posterior)
        return {("y" if len(found) == 1 else f"y_{name}"): term.y.cpu().numpy() for name, term in found.items()}

    def constants(self) -> dict[str, Any]:
        """The tensors of the forward operators: masks, coil maps, transfer functions."""
        found = _likelihoods(self.posterior)
        arrays = {}
        for name, term in found.items():
            operator = getattr(term, "operator", None)
            for key, tensor in operator.named_buffers() if operator is not None else ():
                label = key.replace(".", "_")
                arrays[label if len(found) == 1 else f"{label}_{name}"] = tensor.cpu().numpy()
        return arrays


def _likelihoods(posterior: Potential) -> dict[str, Likelihood]:
    named = getattr(posterior, "terms", {posterior.name: posterior})
    bare = {name: unscaled(term) for name, term in named.items()}
    return {name: term for name, term in bare.items() if isinstance(term, Likelihood)}


def prepare(
    posterior: Potential,
    sampler: object,
    num_chains: int,
    init: Tensor | None,
    seed: int,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    compiled: bool = False,
) -> Problem:
    """Check the arguments and move a copy of the posterior to where it is to be computed."""
    if not isinstance(posterior, Potential):
        raise TypeError(
            f"sample: posterior is a {type(posterior).__name__}, expected a potential such as prior + likelihood"
        )
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sample: sampler is a {type(sampler).__name__}, expected one of potentia.inference, such as ALPS(...)"
        )
    chains = count("sample", "num_chains", num_chains)
    count("sample", "seed", seed, least=0)
    shape = _event_shape(posterior, init)
    real = _real_dtype(posterior, init, dtype)
    field = posterior.is_complex
    is_complex = bool(init.is_complex()) if field is None and init is not None else bool(field)
    if isinstance(dtype, torch.dtype | str) and parse_dtype(dtype).is_complex and not is_complex:
        raise ValueError(f"sample: dtype is {dtype}, but the posterior is of real images")
    place = _device(posterior, init, device)
    if init is not None:
        init = _check_init(posterior, init, chains, shape, is_complex)
    full = real.to_complex() if is_complex else real
    moved = _moved(posterior, place, real)
    if compiled:
        moved = compile_networks(moved)
    start = None if init is None else init.to(device=place, dtype=full)
    return Problem(moved, chains, shape, full, place, start, fingerprint(posterior))


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a dtype that images may have.

    Raises: ValueError that lists them.
    """
    found: torch.dtype | None = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise ValueError(f"sample: dtype is {dtype}, expected one of {', '.join(_DTYPES)}")
    return found


def _tensors(posterior: Potential) -> list[Tensor]:
    return [*posterior.parameters(), *posterior.buffers()]


def _event_shape(posterior: Potential, init: Tensor | None) -> tuple[int, int, int]:
    shape = posterior.event_shape
    if shape is None:
        if init is None:
            raise ValueError("sample: no term of the posterior fixes the image's shape; give init, of shape (C, H, W)")
        shape = tuple(init.shape[-3:])
    if len(shape) != 3:
        raise ValueError(f"sample: images have shape {shape_text(shape)}, expected (C, H, W)")
    return (shape[0], shape[1], shape[2])


def _real_dtype(posterior: Potential, init: Tensor | None, dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is not None:
        return parse_dtype(dtype).to_real()
    if init is not None:
        return parse_dtype(init.dtype).to_real()
    likelihoods = _likelihoods(posterior).values()
    measured = [term.y.dtype.to_real() for term in likelihoods]
    return torch.float64 if torch.float64 in measured else torch.float32


def _device(posterior: Potential, init: Tensor | None, device: torch.device | str | None) -> torch.device:
    if device is not None:
        try:
            place = torch.device(device)
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError) as err:
            raise ValueError(f"sample: device {device!r} is not to be had here: {str(err).splitlines()[0]}") from err
        return place
    held = [t.device for t in _tensors(posterior)] + ([] if init is None else [init.device])
    return held[0] if held else torch.device("cpu")


def _check_init(posterior: Potential, init: Tensor, chains: int, shape: tuple[int, ...], is_complex: bool) -> Tensor:
    if not isinstance(init, Tensor):
        raise TypeError(f"sample: init is a {type(init).__name__}, expected a tensor")
    if init.dim() == 4:
        same_shape("sample", "init", tuple(init.shape), (chains, *shape))
    else:
        same_shape("sample", "init", tuple(init.shape), shape)
    if init.is_complex() != is_complex:
        raise ValueError(f"sample: init has dtype {init.dtype}, expected a {'complex' if is_complex else 'real'} one")
    finite("sample", "init", init)
    return init.detach()


def _moved(posterior: Potential, device: torch.device, real: torch.dtype) -> Potential:
    held = [t for t in _tensors(posterior) if t.is_floating_point() or t.is_complex()]
    if all(t.device == device and t.dtype.to_real() == real for t in held):
        return posterior
    return copy.deepcopy(posterior).to(device=device, dtype=real)


def compile_networks(posterior: Potential) -> Potential:
    """Give a copy whose networks (the torch modules below energies that are no potentials) run compiled."""
    copied = copy.deepcopy(posterior)
    for term in terms(copied):
        for child in unscaled(term).children():
            if not isinstance(unscaled(term), Likelihood):
                child.compile()
    return copied


def fingerprint(posterior: Potential) -> str:
    """A hash of the printed posterior and every tensor in it: the same posterior, the same hash."""
    digest = hashlib.sha256(repr(posterior).encode())
    named: Sequence[tuple[str, Tensor]] = [*posterior.named_parameters(), *posterior.named_buffers()]
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else str(tensor.item()).encode()
        )
    return digest.hexdigest()
