"""Ensembles in the formats of other tools: ArviZ, netCDF, NIfTI, folders of pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from potentia._files import written_whole

if TYPE_CHECKING:
    import xarray as xr

    from potentia.io._ensemble import Ensemble

_INTERNAL = ("writer",)  # groups that are of no use to others


def dask_tree(ensemble: "Ensemble", chunks: Any) -> "xr.DataTree":
    """The ensemble's tree with every array in Dask chunks.

    Raises: ImportError without Dask.
    """
    try:
        import dask.array  # noqa: F401
    except ImportError as err:
        raise ImportError("dask: Dask is missing, expected it for lazy arrays: pip install 'potentia[dask]'") from err
    if chunks is None:
        chunks = {"chain": 1, "draw": ensemble._layout.block}

    def chunked(data: "xr.Dataset") -> "xr.Dataset":
        return data.chunk({d: n for d, n in chunks.items() if d in data.dims})

    tree: xr.DataTree = ensemble.tree.map_over_datasets(chunked)
    return tree


def to_arviz(ensemble: "Ensemble") -> Any:
    """InferenceData of ArviZ 0.x, or the DataTree that ArviZ 1 works on.

    Raises: ImportError without ArviZ.
    """
    try:
        import arviz
    except ImportError as err:
        raise ImportError("to_arviz: ArviZ is missing: pip install 'potentia[arviz]'") from err
    tree = _outward(ensemble.tree)
    convert: Callable[[Any], Any] | None = getattr(arviz, "from_datatree", None)
    return tree if convert is None else convert(tree)


def to_netcdf(ensemble: "Ensemble", path: str | Path, *, overwrite: bool) -> Path:
    """Write the tree as one netCDF-4 file, through Dask where it is installed."""
    try:
        import h5netcdf  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as err:
        raise ImportError("to_netcdf: h5netcdf is missing: pip install 'potentia[netcdf]'") from err
    try:
        tree = dask_tree(ensemble, None)
    except ImportError:
        tree = ensemble.tree
    tree = _outward(tree).map_over_datasets(_plain)
    tree.attrs = _plain_attributes(ensemble.tree.attrs)
    return _written(
        path, (".nc", ".nc4", ".h5"), overwrite, "to_netcdf", lambda file: tree.to_netcdf(file, engine="h5netcdf")
    )


def to_nifti(ensemble: "Ensemble", path: str | Path, what: Any, affine: Any, *, overwrite: bool) -> Path:
    """Write one image as NIfTI-1."""
    try:
        import nibabel
    except ImportError as err:
        raise ImportError("to_nifti: nibabel is missing: pip install 'potentia[images]'") from err
    name, image = _image(ensemble, what)
    placed = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    if placed.shape != (4, 4) or not bool(np.isfinite(placed).all()):
        raise ValueError(f"to_nifti: affine has shape {placed.shape}, expected a finite (4, 4) matrix")
    # (C, y, x) -> (x, y, 1), and the channels as a fourth dimension where there are several
    volume = np.moveaxis(image, 0, -1).swapaxes(0, 1)[:, :, None]
    volume = volume[..., 0] if volume.shape[-1] == 1 else volume
    volume = volume.astype(np.complex64 if np.iscomplexobj(volume) else np.float32)
    made: Callable[[Any, Any], Any] = nibabel.Nifti1Image
    nifti = made(volume, placed)
    nifti.header["descrip"] = f"potentia {name}".encode()[:79]
    return _written(
        path,
        (".nii", ".nii.gz"),
        overwrite,
        "to_nifti",
        lambda file: nibabel.save(nifti, file),
    )


def _image(ensemble: "Ensemble", what: Any) -> tuple[str, NDArray[Any]]:
    """The name and the values (C, H, W) of what is to be written, complex where the images are."""
    if isinstance(what, str):
        known: dict[str, Callable[[], Any]] = {"mean": ensemble.mean, "std": ensemble.std}
        summaries = ensemble.tree["posterior_summary"].to_dataset()
        kept = {n: summaries[n] for n in summaries.data_vars if summaries[n].dims == ("channel", "y", "x")}
        if what not in known and what not in kept:
            raise ValueError(f"to_nifti: what is {what!r}, expected one of {', '.join([*known, *map(str, kept)])}")
        stored = np.asarray(known[what]().values if what in known else kept[what].values)
        if what == "std" and ensemble.is_complex:
            # the spread of both parts together
            return what, np.sqrt(np.square(stored[0::2]) + np.square(stored[1::2]))
        return what, ensemble._draws.as_sampled(stored)
    array = what.detach().cpu().numpy() if isinstance(what, Tensor) else np.asarray(what)
    if array.ndim != 3 or array.shape[1:] != ensemble.event_shape[1:]:
        raise ValueError(f"to_nifti: what has shape {array.shape}, expected (C, H, W) with {ensemble.event_shape[1:]}")
    return str(getattr(what, "name", None) or "image"), array


def _written(
    path: str | Path, endings: tuple[str, ...], overwrite: bool, where: str, write: Callable[[Path], Any]
) -> Path:
    """Write a file under a temporary name beside its own, and move it there when it is whole."""
    target = Path(path).expanduser()
    ending = next((e for e in sorted(endings, key=len, reverse=True) if target.name.lower().endswith(e)), None)
    if ending is None:
        raise ValueError(f"{where}: path is {target}, expected a name that ends in {' or '.join(endings)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{where}: the folder {target.parent} does not exist, expected one to write into")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{where}: {target} exists already; pass overwrite=True to replace it")
    with written_whole(target, replace=overwrite) as staging:
        write(staging)
    return target


def _outward(tree: "xr.DataTree") -> "xr.DataTree":
    return tree.filter(lambda node: node.name not in _INTERNAL)


def _plain(data: "xr.Dataset") -> "xr.Dataset":
    """What netCDF can hold: attributes of numbers and text, no settings of zarr."""
    made = data.drop_encoding()
    made.attrs = _plain_attributes(data.attrs)
    for name in made.variables:
        made[name].attrs = _plain_attributes(made[name].attrs)
    return made


def _plain_attributes(attrs: Any) -> dict[str, Any]:
    fit = (str, int, float, np.number, np.ndarray)
    return {
        str(k): v if isinstance(v, fit) and not isinstance(v, bool) else json.dumps(v) for k, v in dict(attrs).items()
    }
