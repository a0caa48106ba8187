"""The XML header of raw data, as of ISMRMRD and fastMRI files."""

from collections.abc import Iterable, Iterator, Mapping
from xml.etree import ElementTree

MOST_BYTES = 16 * 2**20
MOST_DEEP = 64


def read_header(where: str, content: bytes | str) -> dict[str, str]:
    """Flatten a header to text by dotted path, as ``encoding.encodedSpace.matrixSize.x``; a repeated path gets [1].

    Raises: ValueError for what is no such header, is larger than 16 MiB, or declares a document type, by which
        entities would be expanded or other files fetched.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{where}: header has {len(content)} bytes, expected at most {MOST_BYTES}")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError(f"{where}: header declares a document type or entities, expected none")
        root = ElementTree.fromstring(text)
    except (UnicodeError, ElementTree.ParseError) as err:
        raise ValueError(f"{where}: header cannot be read as XML: {err}") from err
    if _bare(root.tag) != "ismrmrdHeader":
        raise ValueError(f"{where}: header is <{_bare(root.tag)}>, expected <ismrmrdHeader>")
    found: dict[str, str] = {}
    repeats: dict[str, int] = {}
    for path, value in _leaves(where, root):
        again = repeats.get(path, 0)
        repeats[path] = again + 1
        found[f"{path}[{again}]" if again else path] = value
    return found


def _bare(tag: str) -> str:
    return tag.rpartition("}")[2]


def _leaves(where: str, root: ElementTree.Element) -> Iterator[tuple[str, str]]:
    # No recursion: the depth is the file's to say.
    waiting: list[tuple[tuple[str, ...], ElementTree.Element]] = [((), child) for child in reversed(root)]
    while waiting:
        above, element = waiting.pop()
        path = (*above, _bare(element.tag))
        if len(path) > MOST_DEEP:
            raise ValueError(f"{where}: header nests elements {len(path)} deep, expected at most {MOST_DEEP}")
        if len(element):
            waiting.extend((path, child) for child in reversed(element))
        else:
            yield ".".join(path), (element.text or "").strip()


def numbers(header: Mapping[str, str], path: str, names: Iterable[str] = "xyz") -> tuple[float, ...] | None:
    """Read the numbers that stand under a path, one a name, or None where any is missing, no number or not above 0."""
    try:
        found = tuple(float(header[f"{path}.{name}"]) for name in names)
    except (KeyError, ValueError):
        return None
    return found if all(0 < value < 1e9 for value in found) else None
