"""Damaged, truncated, foreign and hostile files end in a ValueError that names them, and change nothing."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scan_files import complex_normal, header, lines_of, noise_lines, write_dicom, write_fastmri, write_ismrmrd

from potentia.io import read_image, read_scan, write_cfl
from potentia.io._mrd_header import read_header

KSPACE = complex_normal((2, 3, 12, 16))
NAMES = ["fastmri.h5", "ismrmrd.h5", "a.npz", "a.npy", "a.cfl", "a.dcm", "a.nii"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One valid file of each format, written when it is asked for."""
    folder = tmp_path_factory.mktemp("whole")

    def write(name: str) -> Path:
        path = folder / name
        if name.endswith(".h5"):
            pytest.importorskip("ismrmrd")
        if name == "fastmri.h5":
            extra = {"mask": np.ones(16), "reference": np.abs(KSPACE[:, 0])}
            return write_fastmri(path, KSPACE, xml=header((16, 12)), **extra)
        if name == "ismrmrd.h5":
            return write_ismrmrd(path, noise_lines(complex_normal((3, 99))) + lines_of(KSPACE), header((12, 16)))
        if name == "a.npz":
            np.savez(path, kspace=KSPACE, noise=KSPACE[0, :, 0])
        elif name == "a.npy":
            np.save(path, KSPACE)
        elif name == "a.cfl":
            write_cfl(path, KSPACE)
        elif name == "a.dcm":
            pytest.importorskip("pydicom")
            write_dicom(path, np.arange(192, dtype="u2").reshape(12, 16), RescaleSlope=2)
        else:
            nibabel = pytest.importorskip("nibabel")
            nibabel.save(nibabel.Nifti1Image(np.abs(KSPACE[:, 0]), np.eye(4)), path)
        return path

    return write


def read(path: Path) -> Any:
    return read_image(path, index=0) if path.suffix in (".dcm", ".nii") else read_scan(path)


def damaged(content: bytes, seed: int) -> bytes:
    """Cut off, some bytes changed anywhere or at the beginning, or eight overwritten alike, by turns."""
    rng = np.random.default_rng(seed)
    data = np.frombuffer(content, np.uint8).copy()
    if seed % 4 == 0:
        return data[: rng.integers(len(data))].tobytes()
    if seed % 4 == 3:
        at = rng.integers(len(data) - 8)
        data[at : at + 8] = rng.choice([0, 127, 255])
    else:
        places = rng.integers(0, len(data) if seed % 4 == 1 else min(len(data), 2000), rng.integers(1, 12))
        data[places] = rng.integers(0, 256, len(places))
    return data.tobytes()


@pytest.mark.filterwarnings("ignore")  # nibabel's and numpy's own, of what they mend
@pytest.mark.parametrize("name", NAMES)
def test_damage(tmp_path: Path, whole: Callable[[str], Path], name: str) -> None:
    content = whole(name).read_bytes()
    refused = 0
    path = tmp_path / name
    if name == "a.cfl":
        (tmp_path / "a.hdr").write_bytes(whole(name).with_suffix(".hdr").read_bytes())
    for seed in range(120):
        path.write_bytes(damaged(content, seed))
        before = path.read_bytes()
        try:
            read(path)
        except ValueError as err:
            refused += 1
            assert str(err).startswith(str(path))  # noqa: PT017
        assert path.read_bytes() == before
    assert refused >= 25  # what is cut off, at the least; damage to mere samples cannot be told


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_random_bytes_empty_files_and_files_of_another_format(
    tmp_path: Path, whole: Callable[[str], Path], name: str
) -> None:
    own = whole(name)
    foreign = [whole(other).read_bytes() for other in NAMES if Path(other).suffix != own.suffix and other != "a.cfl"]
    contents = [b"", *(np.random.default_rng(seed).bytes(1 + 200 * seed) for seed in range(20)), *foreign]
    if name == "a.cfl":
        (tmp_path / "a.hdr").write_bytes(own.with_suffix(".hdr").read_bytes())
    for content in contents:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read(tmp_path / name)


class Hostile:
    """What a pickle would execute."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.dcm"])
def test_pickles_are_not_executed(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "executed", tmp_path / name
    content = np.array([[Hostile(mark)]], dtype=object)
    if name == "a.npy":
        np.save(path, content, allow_pickle=True)
    elif name == "a.npz":
        np.savez(path, allow_pickle=True, kspace=content)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read(path)
    assert not mark.exists()


@pytest.mark.parametrize(("at", "value"), [(6, 1), (8, 99)], ids=["encrypted", "unknown compression"])
def test_an_npz_that_cannot_be_unpacked(tmp_path: Path, at: int, value: int) -> None:
    np.savez(tmp_path / "a.npz", kspace=KSPACE)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[at] = content[content.index(b"PK\x01\x02") + at + 2] = value
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz:kspace: cannot be read as an array"):
        read_scan(tmp_path / "a.npz")


def test_an_npy_whose_header_ends_early(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + b"{'descr': (".ljust(117) + b"\n")
    with pytest.raises(ValueError, match=r"a\.npy: cannot be read as an array"):
        read_scan(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", ["(1000000000, 1000000)", "(100000, 100000, 100)", "(9999999999999999999999,)"])
def test_npy_of_a_huge_claimed_size(tmp_path: Path, shape: str) -> None:
    text = f"{{'descr': '<c8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + text.encode() + b"\0" * 64)
    with pytest.raises(ValueError, match=r"a\.npy: cannot be read"):
        read_scan(tmp_path / "a.npy")


class TestHDF5:
    h5py: Any = pytest.importorskip("h5py")

    def test_a_huge_claimed_size(self, tmp_path: Path) -> None:
        with self.h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("kspace", (1000, 30, 40000, 40000), "c8", chunks=(1, 1, 40, 40))
        with pytest.raises(ValueError, match="'kspace' claims 384000000000000 bytes, which the 0 that are stored"):
            read_scan(tmp_path / "a.h5")

    def test_what_lies_in_other_files_is_not_read(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        np.ones((1, 2, 3, 4), np.complex64).tofile(secret)
        write_fastmri(tmp_path / "other.h5", KSPACE)
        with self.h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("kspace", (1, 2, 3, 4), "c8", external=[(str(secret), 0, 192)])
        with self.h5py.File(tmp_path / "b.h5", "w") as file:
            file["kspace"] = self.h5py.ExternalLink("other.h5", "kspace")
        with self.h5py.File(tmp_path / "c.h5", "w") as file:
            layout = self.h5py.VirtualLayout(KSPACE.shape, "c8")
            layout[:] = self.h5py.VirtualSource(str(tmp_path / "other.h5"), "kspace", KSPACE.shape)
            file.create_virtual_dataset("kspace", layout)
        for name, words in (("a", "in other files"), ("b", "is a link"), ("c", "in other files")):
            with pytest.raises(ValueError, match=rf"{name}\.h5: 'kspace' .*{words}"):
                read_scan(tmp_path / f"{name}.h5")

    def test_texts_and_lines_of_another_kind(self, tmp_path: Path) -> None:
        write_fastmri(tmp_path / "a.h5", KSPACE)
        with self.h5py.File(tmp_path / "a.h5", "a") as file:
            file["ismrmrd_header"] = np.arange(3)
        with pytest.raises(ValueError, match="header is a Dataset of another kind, expected one text"):
            read_scan(tmp_path / "a.h5")
        pytest.importorskip("ismrmrd")
        with self.h5py.File(tmp_path / "b.h5", "w") as file:
            file["dataset/xml"], file["dataset/data"] = header((12, 16)), np.arange(3)
        with pytest.raises(ValueError, match="data has dtype int64, expected acquisitions of head, traj and data"):
            read_scan(tmp_path / "b.h5")

    def test_several_groups_are_named(self, tmp_path: Path) -> None:
        pytest.importorskip("ismrmrd")
        with self.h5py.File(write_ismrmrd(tmp_path / "a.h5", lines_of(KSPACE), header((12, 16))), "a") as file:
            file.copy("dataset", "second")
        with pytest.raises(ValueError, match=r"a\.h5: holds /dataset, /second, expected"):
            read_scan(tmp_path / "a.h5")

    def test_a_length_beyond_what_is_stored(self, tmp_path: Path) -> None:
        """HDF5 would take 16 GB for it: the entry of one line says that it has 2^32 - 1 samples."""
        pytest.importorskip("ismrmrd")
        path = write_ismrmrd(tmp_path / "a.h5", lines_of(KSPACE[:1]), header((12, 16)))
        content = bytearray(path.read_bytes())
        at = content.index((96).to_bytes(4, "little"), content.index(b"TREE"))
        while content[at + 12 : at + 16] == b"\0" * 4:  # a length, an address of eight bytes, and a number above zero
            at = content.index((96).to_bytes(4, "little"), at + 1)
        content[at : at + 4] = b"\xff" * 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.h5: /dataset/data claims an entry of length 4294967295"):
            read_scan(path)

    def test_an_endless_collection(self, tmp_path: Path) -> None:
        """HDF5 would wait forever: free space in the collection of texts that has no length."""
        path = write_fastmri(tmp_path / "a.h5", KSPACE, xml=header((16, 12)))
        content = bytearray(path.read_bytes())
        heap = content.index(b"GCOL")
        length = int.from_bytes(content[heap + 24 : heap + 32], "little")
        free = heap + 32 + -(-length // 8) * 8
        content[free + 8 : free + 16] = b"\0" * 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.h5: is damaged, has an entry of 0 bytes"):
            read_scan(path)


class TestHeader:
    def test_paths_of_values(self) -> None:
        xml = "<ismrmrdHeader><a><b>1</b><b> 2 </b></a><c/></ismrmrdHeader>"
        assert read_header("a", xml) == {"a.b": "1", "a.b[1]": "2", "c": ""}
        assert read_header("a", header((4, 6)).encode())["encoding.encodedSpace.matrixSize.x"] == "6"

    def test_bombs_and_other_documents_are_refused(self, tmp_path: Path) -> None:
        entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "x" * 10}">' for n in range(12))
        bomb = f"<!DOCTYPE z [{entities}]><ismrmrdHeader><a>&a11;</a></ismrmrdHeader>"
        secret = tmp_path / "secret"
        secret.write_text("secret")
        fetch = f'<!DOCTYPE z [<!ENTITY s SYSTEM "file://{secret}">]><ismrmrdHeader><a>&s;</a></ismrmrdHeader>'
        for xml in (bomb, fetch, bomb.encode()):
            with pytest.raises(ValueError, match=r"^a: header declares a document type or entities, expected none"):
                read_header("a", xml)
        deep = "<ismrmrdHeader>" + "<a>" * 100_000 + "</a>" * 100_000 + "</ismrmrdHeader>"
        with pytest.raises(ValueError, match="header nests elements 65 deep, expected at most 64"):
            read_header("a", deep)
        with pytest.raises(ValueError, match="header has 16777217 bytes, expected at most 16777216"):
            read_header("a", "x" * (2**24 + 1))
        for xml in (bomb.encode("utf-16"), b"\xff\xfe", "", "<a>", "<a>&b;</a>", "<ismrmrdHeader>\0</ismrmrdHeader>"):
            with pytest.raises(ValueError, match=r"^a: header cannot be read as XML"):
                read_header("a", xml)
        with pytest.raises(ValueError, match="header is <html>, expected <ismrmrdHeader>"):
            read_header("a", "<html/>")

    def test_a_bomb_in_a_file(self, tmp_path: Path) -> None:
        pytest.importorskip("h5py")
        bomb = '<!DOCTYPE z [<!ENTITY a "b">]><ismrmrdHeader>&a;</ismrmrdHeader>'
        with pytest.raises(ValueError, match=r"a\.h5: header declares a document type"):
            read_scan(write_fastmri(tmp_path / "a.h5", KSPACE, xml=bomb))
