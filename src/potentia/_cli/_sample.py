"""``potentia sample``: a user's own image or k-space file."""

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from potentia import annealers, energies, inference, likelihoods
from potentia._cli._mri import Prepared, prepare_scan
from potentia._cli._options import SampleOptions
from potentia._cli._processes import process_group
from potentia._cli._report import print_rows
from potentia._potential import Energy, Potential
from potentia._validate import shape_text
from potentia.io import Ensemble, check_target, read_array, read_image

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz")
SIGMA_MAX = 10.0
SIGMA_MIN = 0.02


def run_sample(options: SampleOptions) -> Ensemble:
    """Read, compose, sample, and say what was written.

    Processes that torchrun started share the chains out.
    """
    with process_group() as (rank, local_rank):
        if options.device == "cuda" and local_rank is not None:
            options = replace(options, device=f"cuda:{local_rank}")
        return _run_sample(options, speaks=rank == 0)


def _run_sample(options: SampleOptions, *, speaks: bool) -> Ensemble:
    if not options.resume:
        check_target(options.store, overwrite=options.overwrite)
    built, told = _described(options)
    if speaks:
        print_rows(repr(built.posterior), told)
    try:
        ensemble = inference.sample(
            built.posterior,
            built.sampler,
            num_chains=options.chains,
            num_draws=options.draws,
            seed=options.seed,
            store=options.store,
            resume=options.resume,
            overwrite=options.overwrite,
            durability=options.durability,
            device=options.device,
            dtype=options.dtype,
            constant_data=built.constant_data,
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"potentia: {options.store}: what was committed is kept; --resume goes on from there\n")
        raise
    if speaks:
        _report(options, ensemble, built.constant_data.get("truth"))
    return ensemble


def _report(options: SampleOptions, ensemble: Ensemble, truth: Tensor | None) -> None:
    """Say what was written, and draw it if asked to."""
    rows = [("written", f"{options.store}: {options.chains} chains of {options.draws} draws")]
    if truth is not None:
        rows.append(("90 % interval holds the truth", f"{ensemble.coverage(truth, 0.9):.3f} of the pixels"))
    if options.plot is not None:
        ensemble.plot(options.plot)
        rows.append(("picture", str(options.plot)))
    if options.page is not None:
        from potentia.report import write_report

        rows.append(("report", str(write_report(options.store, options.page, overwrite=options.overwrite))))
    print_rows("", rows)


def build_reconstruction(options: SampleOptions) -> inference.Reconstruction:
    """The posterior that the files and options describe, how to sample it, and the truth to keep with it.

    Raises: ValueError, FileNotFoundError.
    """
    return _described(options)[0]


def _described(options: SampleOptions) -> tuple[inference.Reconstruction, list[tuple[str, str]]]:
    """The reconstruction, and what was done to the data, for people."""
    prepared = build_likelihood(options)
    likelihood, constant = prepared.likelihood, prepared.constants
    posterior = build_prior(options, likelihood) + likelihood
    if options.truth is not None:
        constant = {**constant, "truth": _load(options.truth, options)}
    built = inference.Reconstruction(posterior, build_sampler(options, posterior), constant_data=constant)
    return built, prepared.told


def build_likelihood(options: SampleOptions) -> Prepared:
    """The likelihood that the files and options describe, and what is to be kept with it.

    Raises: ValueError for k-space of several coils without maps, for files that do not fit, and for options that go
        with another task.
    """
    if options.task == "mri":
        for name in ("blur", "mask"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: does not go with --task mri, which takes what was measured from the scan")
        return prepare_scan(options)
    if options.task is not None:
        raise ValueError(f"--task: {options.task!r} is unknown, expected mri, or none to take the data as they are")
    for name in ("acceleration", "coils"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: goes with --task mri")
    if options.noise_std is None:
        raise ValueError("--noise-std: is missing, expected the std of the noise in the data's unit")
    return Prepared(_plain_likelihood(options, options.noise_std))


def _plain_likelihood(options: SampleOptions, noise_std: float) -> likelihoods.Gaussian:
    y = _load(options.data, options)
    mask = None if options.mask is None else _mask(options.mask, options)
    if y.is_complex() and options.blur is None:
        return likelihoods.Gaussian(y, _mri_operator(options, y, mask), noise_std)
    if options.coil_maps is not None:
        raise ValueError(f"{options.data}: real data does not go with --coil-maps, expected complex k-space")
    operator: likelihoods.Operator = likelihoods.Identity()
    if options.blur is not None:
        operator = likelihoods.GaussianBlur(options.blur, tuple(y.shape[-2:]))
    if mask is not None:
        operator = likelihoods.Mask(mask) if options.blur is None else likelihoods.Mask(mask) @ operator
    return likelihoods.Gaussian(y, operator, noise_std)


def _mri_operator(options: SampleOptions, y: Tensor, mask: Tensor | None) -> likelihoods.Operator:
    # Without a mask, what is exactly zero in every coil was not measured.
    sampled = (y != 0).any(dim=0).to(torch.float32) if mask is None else mask
    if options.coil_maps is not None:
        maps = torch.from_numpy(read_array(options.coil_maps))
        return likelihoods.Sense(maps, sampled)
    if y.shape[0] > 1:
        raise ValueError(
            f"{options.data}: k-space of shape {shape_text(tuple(y.shape))} has several coils, expected --coil-maps"
        )
    return likelihoods.Fourier(sampled)


def _load(path: str, options: SampleOptions) -> Tensor:
    name = path.split(".npz:")[0].lower()
    if name.endswith(IMAGES):
        array = read_image(path, slice_axis=options.slice_axis, index=options.index)
    else:
        array = read_array(path)
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{path}: got an array of shape {shape_text(array.shape)}, expected (H, W), (C, H, W) or (coils, H, W)"
        )
    array = array[None] if array.ndim == 2 else array
    wide = np.complex64 if np.iscomplexobj(array) else np.float32
    return torch.from_numpy(array.astype(wide))


def _mask(path: str, options: SampleOptions) -> Tensor:
    m = _load(path, options)
    if path.lower().endswith(IMAGES):
        # Readers scale pictures to [-1, 1]: black is -1.
        m = (m > 0).float()
    return m[0] if m.shape[0] == 1 else m


def build_prior(options: SampleOptions, likelihood: likelihoods.Gaussian) -> Potential:
    """The sum of priors that ``--prior`` names.

    Raises: ValueError for a name or weight that is none.
    """
    total: Potential | None = None
    for item in options.prior.split("+"):
        weight, _, name = item.strip().rpartition("*")
        term = _prior(name.strip(), options, likelihood)
        if weight.strip():
            try:
                term = float(weight) * term
            except ValueError as err:
                raise ValueError(f"--prior: weight {weight.strip()!r} in {item.strip()!r} is no number") from err
        total = term if total is None else total + term
    if total is None:
        raise ValueError(f"--prior: is empty, expected {_known_priors()}")
    return total


def _prior(name: str, options: SampleOptions, likelihood: likelihoods.Gaussian) -> Potential:
    if name == "tv":
        return energies.TotalVariation()
    if name == "wavelet":
        return energies.Sparsity()
    if name == "gaussian-field":
        return _field(options, likelihood)
    if name in energies.shipped() or name.startswith("hf://") or name.endswith(".safetensors"):
        return energies.load(name)
    raise ValueError(f"--prior: {name!r} is unknown, expected {_known_priors()}")


def _known_priors() -> str:
    return ", ".join(["gaussian-field", "tv", "wavelet", *energies.shipped(), "FILE.safetensors or hf://OWNER/NAME"])


def _field(options: SampleOptions, likelihood: likelihoods.Gaussian) -> energies.GaussianField:
    shape = likelihood.event_shape
    if options.prior_data:
        images = [_load(path, options) for path in options.prior_data]
        stacked = [i for image in images for i in (image[:, None] if shape[0] == 1 else image[None])]
        sizes = {tuple(i.shape) for i in stacked}
        if len(sizes) > 1:
            raise ValueError(f"--prior-data: images have shapes {sorted(sizes)}, expected one shape")
        batch = torch.stack(stacked)
        if likelihood.is_complex and not batch.is_complex():
            batch = batch.to(torch.complex64)
        return energies.GaussianField.fit(batch, size=(shape[1], shape[2]))
    # The spread of what is measured stands in for the spread of images.
    back = likelihood.operator.vjp(torch.zeros(shape, dtype=likelihood.linear.dtype), likelihood.y)
    std = float((back.abs().square().mean() / (2 if likelihood.is_complex else 1)).sqrt())
    mean = torch.zeros(shape[0], 1, 1, dtype=likelihood.linear.dtype)
    return energies.GaussianField.power_law(shape, std=max(std, 1e-6), mean=mean)


def build_sampler(options: SampleOptions, posterior: Potential) -> inference.Sampler:
    """The sampler that ``--sampler`` names, over scales that the posterior's priors have.

    Without a name: the calibrated recipe, or ALPS for whoever says something about its scales.

    Raises: ValueError for a name that is none.
    """
    # Scales that nobody asked for give way to those of a learned prior.
    ranges = [e.scales for e in posterior.modules() if isinstance(e, Energy) and e.scales is not None]
    low, high = max((r[0] for r in ranges), default=0.0), min((r[1] for r in ranges), default=SIGMA_MAX)
    sigma_max = min(SIGMA_MAX, high) if options.sigma_max is None else options.sigma_max
    sigma_min = max(SIGMA_MIN, low) if options.sigma_min is None else options.sigma_min
    said = [n for n in ("sigma_max", "sigma_min", "levels", "steps") if getattr(options, n) is not None]
    name = options.sampler or ("alps" if said else "calibrated")
    if name in ("calibrated", "calibrated-modes"):
        if said:
            option = said[0].replace("_", "-")
            raise ValueError(f"--{option}: the sampler {name} finds its own scales, expected --sampler alps with it")
        return inference.ALPS.calibrated(options.budget, modes=name == "calibrated-modes")
    if name == "langevin":
        return inference.Langevin(sigma=sigma_min)
    rules = {"alps": "leimkuhler-matthews", "alps-euler": "euler", "alps-published": "published"}
    if name not in rules:
        names = ", ".join(("calibrated", "calibrated-modes", *rules))
        raise ValueError(f"--sampler: {options.sampler!r} is unknown, expected {names} or langevin")
    anneal = annealers.Geometric(sigma_max, sigma_min, options.levels or 20)
    return inference.ALPS(anneal, options.steps or 5, rule=rules[name])
