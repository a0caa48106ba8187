"""Denoisers of other libraries as priors: any function, deepinv's, and the diffusion models of diffusers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potentia._potential import Scales
from potentia._validate import real_number, shape_text
from potentia.energies._denoiser import Net, ScoreModel, label
from potentia.energies._shared import scale_range

Timesteps = Literal["continuous", "nearest"]
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
# A scale this close to one of the table's is that one, rounded to single precision.
_SAME = 4 * torch.finfo(torch.float32).eps


def from_function(fn: Net, scales: Scales, *, shape: Sequence[int] | None = None) -> ScoreModel:
    """A score-only prior made of any denoiser D(x, s).

    ``fn`` takes noisy images and one scale an image to clean images. A module, or a method of one, moves and is saved
    with the prior; what a plain function holds stays where it is. ``.denoiser`` of the result is a module, which also
    serves as a teacher.

    Shapes: fn takes (N, C, H, W) and (N,), returns (N, C, H, W). ``shape`` (C, H, W) that it takes; None: any.
    Units: images and scales share one unit.
    Raises: TypeError if fn is not callable; ValueError if scales are not 0 < low <= high, and, when it is called, if fn
        returns another shape.
    """
    return ScoreModel(Outside(fn, "from_function"), scales, shape=shape)


def from_deepinv(
    denoiser: Callable[..., Tensor],
    scales: Scales,
    *,
    shape: Sequence[int] | None = None,
    data_range: tuple[float, float] = (0.0, 1.0),
    image_range: tuple[float, float] = (-1.0, 1.0),
) -> ScoreModel:
    """A score-only prior made of a denoiser of deepinv, or of one called like those: ``denoiser(x, sigma)``.

    It works on images in ``data_range``, the prior on images in ``image_range``, and scales in the image's unit: both
    are converted. A scale that all images share is passed as a number, which every deepinv denoiser takes; scales that
    differ as a tensor (N,), which its networks take.

    Shapes: x (N, C, H, W), real. ``shape`` (C, H, W) that it takes; None: any that the denoiser takes.
    Units: scales and shape's images in the unit of image_range.
    Raises: TypeError if the denoiser is not callable; ValueError if scales are not 0 < low <= high or a range not
        low < high, and, when it is called, for complex images, and for channels that the denoiser refuses.
    Source: the protocol of deepinv.models.Denoiser, and its convention of images in [0, 1]; deepinv is not imported.
    """
    return ScoreModel(Rescaled(denoiser, data_range, image_range), scales, shape=shape)


def from_diffusers(
    unet: Callable[..., Any],
    scheduler: Any,
    *,
    shape: Sequence[int] | None = None,
    timesteps: Timesteps = "continuous",
) -> ScoreModel:
    """A score-only prior made of an unconditional ``UNet2DModel`` and the scheduler that it was trained with.

    The scheduler's ``alphas_cumprod`` and ``config.prediction_type`` are read, nothing else: predictions of clean
    images are not clipped, since a clipped one is no posterior mean. Its noise levels are the scales of the prior; for
    scales in between, timesteps are interpolated in the logarithm of the scale, or, if ``timesteps`` is "nearest",
    rounded. The network's mode is left alone: ``unet.eval()`` is the caller's, where it has dropout.

    Shapes: x (N, C, H, W), real, C the network's. ``shape`` (C, H, W) that it takes; None: any that the network takes.
    Units: x in the unit that the network was trained in, [-1, 1] for those of diffusers, and so are scales.
    Raises: TypeError if the scheduler has no ``alphas_cumprod``, as flow matching and variance-exploding ones have
        none; ValueError for an unknown prediction or timesteps, a table that does not decrease within 0 and 1, a
        network with classes, text or an embedding of time that does not fit; and, when it is called, for complex
        images, other channels, and scales outside of the table.
    Source: Ho et al. 2020; Salimans and Ho 2022 (v); Karras et al. 2022, table 1, for the change of variables. The
        scheduler's class is not looked at; diffusers is not imported.
    """
    net = VariancePreserving(unet, scheduler, timesteps)
    return ScoreModel(net, net.scales, shape=shape)


class Outside(nn.Module):
    """A denoiser D(x, s) from elsewhere, as a module that owns the parameters behind it.

    Shapes: x (N, C, H, W), sigma (N,) -> the shape of x.
    Raises: TypeError if fn is not callable, or returns no tensor; ValueError if it returns another shape.
    """

    fn: Callable[..., Any]

    def __init__(self, fn: Callable[..., Any], where: str) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"{where}: expected a callable, got {type(fn).__name__}")
        self.where = where
        # A method of a module: the module is registered, so that its parameters move along, and so does the method.
        owner = getattr(fn, "__self__", None)
        self.method = str(getattr(fn, "__name__", "")) if isinstance(owner, nn.Module) else None
        self.fn = owner if isinstance(owner, nn.Module) else fn

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.like(x, self.call(x, sigma))

    def call(self, *args: Any) -> Any:
        """Call what was given, as it was given."""
        return self.fn(*args) if self.method is None else getattr(self.fn, self.method)(*args)

    def like(self, x: Tensor, out: object) -> Tensor:
        """The output, if it is a tensor in the shape of x."""
        if not isinstance(out, Tensor):
            raise TypeError(f"{self.where}: {label(self.fn)} returned {type(out).__name__}, expected a tensor")
        if out.shape != x.shape:
            got, want = shape_text(tuple(out.shape)), shape_text(tuple(x.shape))
            raise ValueError(f"{self.where}: {label(self.fn)} returned shape {got}, expected {want}, like its input")
        return out

    def real(self, x: Tensor) -> None:
        """Refuse complex images."""
        if x.is_complex():
            raise ValueError(f"{self.where}: x has dtype {x.dtype}, but {label(self.fn)} takes real images")

    def extra_repr(self) -> str:
        return label(self.fn)


class Rescaled(Outside):
    """A denoiser that works on images in another range than ours.

    Shapes: x (N, C, H, W), sigma (N,) -> the shape of x.
    Raises: ValueError for complex images, and for channels that the denoiser refuses.
    """

    def __init__(
        self, fn: Callable[..., Any], data_range: tuple[float, float], image_range: tuple[float, float]
    ) -> None:
        super().__init__(fn, "from_deepinv")
        self.low, high = _range(self.where, "data_range", data_range)
        self.image_low, image_high = _range(self.where, "image_range", image_range)
        self.factor = (high - self.low) / (image_high - self.image_low)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.real(x)
        z, s = (x - self.image_low) * self.factor + self.low, sigma * self.factor
        shared = s[:1].expand_as(s)
        level = float(s[0]) if s.numel() and torch.equal(s, shared) else s
        try:
            out = self.call(z, level)
        except RuntimeError as err:
            if "channel" not in str(err):
                raise
            got = f"x has shape {shape_text(tuple(x.shape))}"
            raise ValueError(f"{self.where}: {got}, {label(self.fn)} takes other channels: {err}") from err
        return (self.like(x, out) - self.low) / self.factor + self.image_low


class VariancePreserving(Outside):
    """The denoiser of a diffusion model that was trained to keep the variance: D(x, s) for x = clean + s n.

    With alpha = 1 / (1 + s^2) the network sees z = sqrt(alpha) x and the timestep at which it saw that alpha in
    training. D is x - s eps, z sqrt(alpha) - s sqrt(alpha) v, or the output itself, by what it predicts.

    Shapes: x (N, C, H, W), sigma (N,) -> the shape of x.
    Raises: ValueError for complex images, other channels than the network's, and scales outside of the training's.
    """

    def __init__(self, unet: Callable[..., Any], scheduler: Any, timesteps: Timesteps) -> None:
        super().__init__(unet, "from_diffusers")
        if timesteps not in ("continuous", "nearest"):
            raise ValueError(f"{self.where}: timesteps is {timesteps!r}, expected 'continuous' or 'nearest'")
        self.continuous = timesteps == "continuous"
        self.prediction = str(_setting(scheduler, "prediction_type"))
        if self.prediction not in _PREDICTIONS:
            raise ValueError(
                f"{self.where}: {type(scheduler).__name__} has prediction_type {self.prediction}, "
                f"expected one of {', '.join(_PREDICTIONS)}"
            )
        _check_network(self.where, self.fn, continuous=self.continuous)
        self.channels: int | None = _setting(self.fn, "in_channels")
        # No buffer: tables follow neither the device nor the precision of the network.
        self.log_sigmas = _log_sigmas(self.where, scheduler)

    @property
    def scales(self) -> Scales:
        """Noise levels of the first and the last timestep."""
        return scale_range(self.where, (math.exp(float(self.log_sigmas[0])), math.exp(float(self.log_sigmas[-1]))))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.real(x)
        if self.channels is not None and x.shape[-3] != self.channels:
            got = shape_text(tuple(x.shape))
            raise ValueError(f"{self.where}: x has shape {got}, the network takes {self.channels} channels")
        s = sigma.to(x).reshape(-1, 1, 1, 1)
        root = (1 + s.square()).rsqrt()
        z = x * root
        out = self._predict(z, self.timestep(sigma).to(x.device))
        if self.prediction == "epsilon":
            return x - s * out
        return z * root - s * root * out if self.prediction == "v_prediction" else out

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep of each scale, whole at the scales of the training: (N,) -> (N,), on the CPU.

        Raises: ValueError for scales outside of the training's.
        """
        table = self.log_sigmas
        logs = sigma.detach().cpu().double().log()
        least, greatest = float(table[0]), float(table[-1])
        if not bool(((logs >= least - 1e-6) & (logs <= greatest + 1e-6)).all()):
            low, high = self.scales
            got = ", ".join(f"{float(s):g}" for s in sigma.detach().cpu().unique())
            raise ValueError(f"{self.where}: sigma is {got}, expected {low:g} to {high:g}, as in training")
        upper = torch.searchsorted(table, logs).clamp(1, table.numel() - 1)
        t = upper - 1 + ((logs - table[upper - 1]) / (table[upper] - table[upper - 1])).clamp(0, 1)
        nearest = t.round().long()
        if not self.continuous:
            return nearest
        return torch.where((logs - table[nearest]).abs() <= _SAME, nearest.double(), t).float()

    def _predict(self, z: Tensor, t: Tensor) -> Tensor:
        """The network's output, in its own precision; the half of it that is no variance, where it predicts both."""
        out = self.call(z.to(_dtype(self.fn, z)), t)
        prediction = getattr(out, "sample", out)
        if isinstance(prediction, Tensor) and prediction.shape[1:2] == (2 * z.shape[1],):
            prediction = prediction[:, : z.shape[1]]
        return self.like(z, prediction).to(z.dtype)

    def extra_repr(self) -> str:
        low, high = self.scales
        return f"{label(self.fn)}, predicts {self.prediction}, scales {low:g} to {high:g}"


def _log_sigmas(where: str, scheduler: Any) -> Tensor:
    """Logarithms of the scheduler's noise levels, increasing, (T,); a last step without any signal is left out."""
    given = getattr(scheduler, "alphas_cumprod", None)
    if given is None:
        raise TypeError(
            f"{where}: {type(scheduler).__name__} has no alphas_cumprod, expected a variance-preserving scheduler such "
            "as DDPMScheduler; wrap other models with from_function"
        )
    alphas = torch.as_tensor(given).detach().cpu().double()
    if alphas.dim() == 1 and alphas.numel() and float(alphas[-1]) == 0:
        alphas = alphas[:-1]
    fits = alphas.dim() == 1 and alphas.numel() > 1 and bool(((alphas > 0) & (alphas < 1)).all())
    if not fits or not bool((alphas.diff() < 0).all()):
        got = shape_text(tuple(alphas.shape))
        raise ValueError(f"{where}: alphas_cumprod, shape {got}, must decrease strictly within 0 and 1")
    return 0.5 * ((1 - alphas) / alphas).log()


def _check_network(where: str, unet: object, *, continuous: bool) -> None:
    """Refuse networks that want more than an image and a time."""
    for name in ("num_class_embeds", "class_embed_type", "cross_attention_dim", "encoder_hid_dim"):
        if _setting(unet, name) is not None:
            raise ValueError(f"{where}: {label(unet)} is conditional ({name}), expected an unconditional network")
    embedding = _setting(unet, "time_embedding_type")
    known = (None, "positional") if continuous else (None, "positional", "learned")
    if embedding not in known:
        wanted = "positional" if continuous else "positional or learned"
        raise ValueError(f"{where}: {label(unet)} has time_embedding_type {embedding}, expected {wanted}")


def _setting(holder: object, name: str) -> Any:
    """An entry of the ``config`` of a network or a scheduler, None where there is none."""
    config = getattr(holder, "config", None)
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _range(where: str, what: str, given: tuple[float, float]) -> Scales:
    low, high = (real_number(where, what, v) for v in given)
    if not low < high:
        raise ValueError(f"{where}: {what} is ({low:g}, {high:g}), expected low < high")
    return low, high


def _dtype(net: object, like: Tensor) -> torch.dtype:
    """The dtype of a network's floating parameters, that of x where it has none."""
    if isinstance(net, nn.Module):
        for p in net.parameters():
            if p.is_floating_point():
                return p.dtype
    return like.dtype
