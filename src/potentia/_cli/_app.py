"""The commands and their options; what they do is in the modules beside this one."""

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="potentia",
    help="Bayesian image reconstruction whose uncertainty is right: sample posteriors, keep and show ensembles.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from potentia import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.zarr and demo.png.")] = Path(),
    chains: Annotated[int, typer.Option(help="Posterior samples to draw.")] = 16,
    levels: Annotated[int, typer.Option(help="Noise scales of the annealer, five steps each.")] = 20,
    coils: Annotated[int, typer.Option(help="Receiver coils to simulate.")] = 8,
    acceleration: Annotated[float, typer.Option(help="Undersampling of k-space.")] = 4.0,
    noise_std: Annotated[float, typer.Option(help="Noise, as a fraction of the 99th percentile of the image.")] = 0.02,
    prior: Annotated[
        str,
        typer.Option(
            help="brain-t1, learned from other heads; gaussian-field, fitted to slices at least 20 mm away; or an "
            "energy in a file."
        ),
    ] = "brain-t1",
    tv: Annotated[
        float | None,
        typer.Option(
            help="Weight of total variation in the prior, in nats per unit; by default 2 beside the field, else 0."
        ),
    ] = None,
    pixel: Annotated[int, typer.Option(help="Pixel size in mm.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Reconstruct an undersampled multi-coil brain scan, with its uncertainty.

    An axial slice of the MNI152 T1 brain is measured by simulated coils, fourfold undersampled, with noise. The prior
    is a multi-scale energy learned from two other volumes, or a Gaussian field with a little total variation. Writes
    demo.zarr (all samples) and demo.png, and prints how good mean and MAP are and how often the 90 % intervals hold
    the truth.
    """
    from potentia._cli._demo import DemoOptions, run_demo

    run_demo(DemoOptions(out, chains, levels, coils, acceleration, noise_std, prior, tv, pixel, seed, device))


@app.command()
def sample(
    data: Annotated[
        str,
        typer.Option(
            help="Image (png, jpeg, tiff, npy, npz, nii) or k-space (complex npy, npz); NAME.npz:KEY picks an array. "
            "With --task mri a scan: fastMRI or ISMRMRD (h5), BART (cfl), npy, npz. "
            "A folder is a data set: an ensemble a file, or a slice of a volume."
        ),
    ],
    store: Annotated[str, typer.Option(help="Where to write the ensemble: a folder (zarr).")],
    noise_std: Annotated[
        float | None,
        typer.Option(
            help="Noise std in the data's unit; images from png, jpeg, tiff are scaled to [-1, 1]. With --task mri by "
            "default from the noise scan, or from the border of k-space."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="mri: prepare a scan first: whiten its noise, find coil maps by ESPIRiT, scale it. Without one the "
            "data are taken as they are."
        ),
    ] = None,
    acceleration: Annotated[
        float | None,
        typer.Option(help="With --task mri: keep one line in so many of a fully sampled scan, to compare with all."),
    ] = None,
    coils: Annotated[int | None, typer.Option(help="With --task mri: virtual coils to compress to.")] = None,
    mask: Annotated[
        str | None, typer.Option(help="Which pixels, or which k-space points, were measured (npy, npz, image).")
    ] = None,
    coil_maps: Annotated[
        str | None, typer.Option(help="Coil sensitivities (coils, H, W), for multi-coil k-space.")
    ] = None,
    blur: Annotated[
        float | None, typer.Option(help="Std in pixels of the Gaussian blur that the image went through.")
    ] = None,
    prior: Annotated[
        str,
        typer.Option(
            help="gaussian-field, tv, wavelet, a learned energy of the package, such as digits-28, or of a file; "
            "several joined by +, each NAME or WEIGHT*NAME."
        ),
    ] = "gaussian-field",
    prior_data: Annotated[
        list[str] | None,
        typer.Option(
            help="Images to fit the gaussian-field to (repeatable); without any, a power law as of natural images."
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="calibrated (the default), calibrated-modes (weighs several modes: 512 chains or more), alps "
            "(Leimkuhler-Matthews noise; the default where its scales are given), alps-euler, alps-published, langevin."
        ),
    ] = None,
    budget: Annotated[int, typer.Option(help="Gradient evaluations of a draw, for calibrated.")] = 100,
    sigma_max: Annotated[
        float | None, typer.Option(help="Largest noise scale, in the image's unit; by default 10, or the prior's.")
    ] = None,
    sigma_min: Annotated[
        float | None, typer.Option(help="Smallest noise scale, in the image's unit; by default 0.02, or the prior's.")
    ] = None,
    levels: Annotated[int | None, typer.Option(help="Noise scales between them, geometric; 20.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps at each scale; 5.")] = None,
    chains: Annotated[int, typer.Option(help="Chains side by side.")] = 16,
    draws: Annotated[int, typer.Option(help="Draws of each chain.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.")] = None,
    truth: Annotated[str | None, typer.Option(help="The true image, to check intervals against.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also write a picture.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Also write the page of potentia report.")] = None,
    index: Annotated[int | None, typer.Option(help="Slice to take of a NIfTI volume or of a scan.")] = None,
    slice_axis: Annotated[int, typer.Option(help="Axis along which --index counts.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted store.")] = False,
    durability: Annotated[
        str, typer.Option(help="What committed draws survive: the death of the process, or a power failure too.")
    ] = "process",
    scheduler: Annotated[
        str | None, typer.Option(help="Data sets: address of a Dask scheduler; by default a cluster on this machine.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Data sets: processes on this machine; by default one a core.")
    ] = None,
    slices: Annotated[
        str | None, typer.Option(help="Data sets: slices of volumes to take, as 10:20 or ::2, along --slice-axis.")
    ] = None,
    array: Annotated[str | None, typer.Option(help="Data sets: the array to take of each npz file.")] = None,
    retries: Annotated[int, typer.Option(help="Data sets: how often an item is tried again whose worker died.")] = 2,
) -> None:
    """Sample the posterior of your own image or k-space file, or of each in a folder, into zarr stores.

    Under torchrun, as in torchrun --nproc-per-node=2 -m potentia sample ..., processes share the chains out.
    """
    from potentia._cli._options import SampleOptions
    from potentia._cli._sample import run_sample

    options = SampleOptions(
        data=data,
        noise_std=noise_std,
        store=store,
        task=task,
        acceleration=acceleration,
        coils=coils,
        mask=mask,
        coil_maps=coil_maps,
        blur=blur,
        prior=prior,
        prior_data=tuple(prior_data or ()),
        sampler=sampler,
        budget=budget,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        levels=levels,
        steps=steps,
        chains=chains,
        draws=draws,
        seed=seed,
        device=device,
        dtype=dtype,
        truth=truth,
        plot=plot,
        page=page,
        index=index,
        slice_axis=slice_axis,
        overwrite=overwrite,
        resume=resume,
        durability=durability,
    )
    from potentia._cli._dataset import DatasetOptions, is_dataset, run_dataset

    dataset = DatasetOptions(scheduler, workers, slices, array, retries)
    if is_dataset(options, dataset):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"{data}: a data set is shared out by Dask, expected --workers or --scheduler, not torchrun"
            )
        raise typer.Exit(run_dataset(options, dataset))
    run_sample(options)


@app.command()
def show(
    store: Annotated[str, typer.Argument(help="Ensemble written by demo or sample.")],
    plot: Annotated[
        Path | None, typer.Option(help="Where to write the picture; by default beside the store, STORE.png.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="First watch a run until it is complete.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks of --follow.")] = 2.0,
    verify: Annotated[bool, typer.Option("--verify", help="Hold every file to its checksum, and do no more.")] = False,
) -> None:
    """Print what an ensemble holds and its diagnostics, and plot it."""
    from potentia._cli._show import run_show, run_verify

    if verify:
        run_verify(store)
    else:
        run_show(store, plot, follow, interval)


@app.command()
def report(
    store: Annotated[str, typer.Argument(help="Ensemble written by demo or sample.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default beside the store, with the ending .html.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing page.")] = False,
    max_megabytes: Annotated[
        float | None, typer.Option(help="How large the page may become; what is left out is said on it.")
    ] = None,
) -> None:
    """Write one page about an ensemble: estimates, uncertainty, samples, diagnostics; it opens from disk."""
    from potentia._cli._html import run_report

    run_report(store, out, force, max_megabytes)


train = typer.Typer(
    help="Train priors: a diffusion teacher, its distilled energy, and how good they are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(train, name="train")

_Recipe = Annotated[str, typer.Argument(help="A recipe of the package, such as digits-28, or a TOML file.")]
_Data = Annotated[Path, typer.Option(help="Folder that the recipe's data paths are relative to.")]
_Out = Annotated[Path | None, typer.Option(help="Folder for checkpoints, curves and weights; by default runs/NAME.")]
_Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1; under torchrun, cpu or cuda.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")]
_Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting, as in --set teacher.steps=500.")]


@train.command("teacher")
def train_teacher(
    recipe: _Recipe,
    data: _Data = Path(),
    out: _Out = None,
    device: _Device = "cpu",
    resume: _Resume = False,
    changes: _Set = None,
) -> None:
    """Train a diffusion model on images: OUT/teacher.safetensors."""
    from potentia._cli._train import run_teacher

    run_teacher(recipe, data, out, device, resume, tuple(changes or ()))


@train.command("energy")
def train_energy(
    recipe: _Recipe,
    data: _Data = Path(),
    out: _Out = None,
    teacher: Annotated[
        Path | None, typer.Option(help="The teacher's weights; by default OUT/teacher.safetensors.")
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Train on the images alone.")] = False,
    device: _Device = "cpu",
    resume: _Resume = False,
    changes: _Set = None,
) -> None:
    """Distil a teacher into an energy, or train one without: OUT/NAME.safetensors."""
    from potentia._cli._train import run_energy

    run_energy(recipe, data, out, teacher, no_teacher, device, resume, tuple(changes or ()))


@train.command("evaluate")
def train_evaluate(
    recipe: _Recipe,
    data: _Data = Path(),
    out: _Out = None,
    energy: Annotated[str | None, typer.Option(help="The energy's weights; by default OUT/NAME.safetensors.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="The teacher's weights; by default OUT/teacher.safetensors.")
    ] = None,
    strange: Annotated[
        str | None, typer.Option(help="A recipe whose images are out of distribution for this energy.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also write the result into the header of the weights.")
    ] = False,
    changes: _Set = None,
) -> None:
    """Measure an energy on validation images: denoising, gradient field, symmetry, energies of strange images."""
    from potentia._cli._train import run_evaluate

    run_evaluate(recipe, data, out, energy, teacher, strange, write, tuple(changes or ()))
