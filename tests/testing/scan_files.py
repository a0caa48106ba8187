"""Scans that are made up, and files of several formats that are written from scans: for tests of the readers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ISMRMRD_XML = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation>{bandwidth}</acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace>
      <matrixSize><x>{nx}</x><y>{ny}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>{rx}</x><y>{ry}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{gx}</x><y>{gy}</y><z>{fz}</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center></kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>{trajectory}</trajectory>{parallel}
  </encoding>
</ismrmrdHeader>"""


def header(
    shape: tuple[int, int],
    *,
    fov: tuple[float, float, float] = (400.0, 200.0, 5.0),
    recon: tuple[int, int] | None = None,
    recon_fov: tuple[float, float] | None = None,
    centre: int | None = None,
    trajectory: str = "cartesian",
    calibration: str | None = None,
    bandwidth: float | None = None,
) -> str:
    """An ISMRMRD header: shape is (ny, nx), fov (x, y, z) in mm, recon (x, y) pixels."""
    (ny, nx), (rx, ry) = shape, recon or (shape[1], shape[0])
    return ISMRMRD_XML.format(
        nx=nx, ny=ny, rx=rx, ry=ry, fx=fov[0], fy=fov[1], fz=fov[2], last=ny - 1, trajectory=trajectory,
        gx=(recon_fov or fov)[0], gy=(recon_fov or fov)[1], centre=ny // 2 if centre is None else centre,
        parallel="" if calibration is None else f"""
    <parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>
    <kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
    <calibrationMode>{calibration}</calibrationMode></parallelImaging>""",
        bandwidth="" if bandwidth is None else
        f"<relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth>",
    )  # fmt: skip


def complex_normal(shape: Sequence[int], seed: int = 0, std: float = 1.0) -> np.ndarray[Any, Any]:
    """Complex noise, std in each part."""
    rng = np.random.default_rng(seed)
    return ((rng.normal(size=shape) + 1j * rng.normal(size=shape)) * std).astype(np.complex64)


def letter(shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """An F with a dot of its own height in each corner: no flip, rotation or transposition leaves it as it is."""
    height, width = shape
    image = np.zeros(shape, np.float32)
    top, left = height // 4, width // 4
    image[top : 3 * height // 4, left : left + 2] = 1
    image[top : top + 2, left : 3 * width // 4] = 1
    image[height // 2 - 1 : height // 2 + 1, left : width // 2] = 1
    image[1, 1], image[1, -2], image[-2, 1], image[-2, -2] = 2, 3, 4, 5
    return image


def smooth_maps(coils: int, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Smooth complex sensitivities of coils around the image, root sum of squares 1, (coils, y, x)."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    angles = 2 * np.pi * np.arange(coils) / coils
    cy, cx = 1.3 * np.sin(angles)[:, None, None], 1.3 * np.cos(angles)[:, None, None]
    maps = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2 + 1j * (angles[:, None, None] + 0.7 * (y * cx - x * cy)))
    return (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)


def ellipse(shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A smooth object with structure, within an ellipse of 0.7 of the field of view: (y, x), complex, up to 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = 1 / (1 + np.exp(40 * (np.hypot(x / 0.62, y / 0.7) - 1)))
    texture = 0.7 + 0.2 * np.cos(9 * x) * np.cos(7 * y) + 0.1 * np.exp(-((x - 0.2) ** 2 + y**2) / 0.02)
    return (inside * texture * np.exp(0.6j * x)).astype(np.complex64)


def write_fastmri(
    path: Path,
    kspace: np.ndarray[Any, Any],
    *,
    xml: str | None = None,
    name: str = "rss",
    **arrays: np.ndarray[Any, Any],
) -> Path:
    """Write a fastMRI file; arrays such as mask or reference (written as reconstruction_NAME)."""
    import h5py

    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if xml is not None:
            file.create_dataset("ismrmrd_header", data=xml.encode(), dtype=h5py.special_dtype(vlen=bytes))
        for key, array in arrays.items():
            file[f"reconstruction_{name}" if key == "reference" else key] = array
        file.attrs["acquisition"], file.attrs["max"] = "AXT1", 0.5
    return path


def acquisition(data: np.ndarray[Any, Any], *, flags: Iterable[int] = (), **head: Any) -> Any:
    """One ISMRMRD line of (coils, samples); head holds fields of the header, and counters as idx_NAME."""
    import ismrmrd

    counters = {key.removeprefix("idx_"): head.pop(key) for key in list(head) if key.startswith("idx_")}
    head.setdefault("center_sample", data.shape[1] // 2)
    for key in ("read_dir", "phase_dir", "slice_dir", "position"):
        if key in head:
            head[key] = tuple(float(value) for value in head[key])
    line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, dtype=np.complex64), **head)
    for flag in flags:
        line.set_flag(flag)
    for key, value in counters.items():
        setattr(line.idx, key, value)
    return line


def lines_of(kspace: np.ndarray[Any, Any], rows: Iterable[int] | None = None, **head: Any) -> list[Any]:
    """The lines of k-space (slices, coils, ky, kx) as acquisitions, rows as encoding steps."""
    chosen = range(kspace.shape[2]) if rows is None else list(rows)
    fields = {"read_dir": (1, 0, 0), "phase_dir": (0, 1, 0), "slice_dir": (0, 0, 1), "sample_time_us": 5.0} | head
    return [
        acquisition(
            plane[:, row], **{"idx_kspace_encode_step_1": row, "idx_slice": at, "position": (0, 0, 6 * at), **fields}
        )
        for at, plane in enumerate(kspace)
        for row in chosen
    ]


def noise_lines(noise: np.ndarray[Any, Any], samples: int = 64, **head: Any) -> list[Any]:
    """A noise scan (coils, n) as acquisitions of some samples each."""
    import ismrmrd

    flags = (ismrmrd.ACQ_IS_NOISE_MEASUREMENT,)
    parts = (noise[:, start : start + samples] for start in range(0, noise.shape[1], samples))
    return [acquisition(part, flags=flags, **{"sample_time_us": 5.0, **head}) for part in parts]


def write_ismrmrd(path: Path, lines: Sequence[Any], xml: str, group: str = "dataset") -> Path:
    """Write acquisitions and a header."""
    import h5py
    import ismrmrd

    with ismrmrd.File(path, "w") as file:
        file[group].acquisitions = lines
    with h5py.File(path, "a") as file:
        xmls = file.create_dataset(f"{group}/xml", shape=(1,), dtype=h5py.special_dtype(vlen=bytes))
        xmls[0] = xml.encode()
    return path


def write_dicom(
    path: Path,
    pixels: np.ndarray[Any, Any],
    *,
    position: Sequence[float] | None = (0, 0, 0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    series: str = "1.2.3",
    **elements: Any,
) -> Path:
    """Write one MR image of 16-bit integers."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Modality, image.SeriesInstanceUID, image.PhotometricInterpretation = "MR", series, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.BitsAllocated, image.BitsStored, image.HighBit = 1, 16, 16, 15
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelSpacing, image.ImageOrientationPatient = [1.5, 0.5], list(orientation)
    if position is not None:
        image.ImagePositionPatient = list(position)
    image.PixelData = pixels.astype(f"<{pixels.dtype.kind}2").tobytes()
    for key, value in elements.items():
        setattr(image, key, value)
    image.save_as(path, enforce_file_format=True)
    return path
