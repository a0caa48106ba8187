"""The docstrings' own style, for Sphinx.

``Shapes: x (*batch, C, H, W)`` becomes a field beside its name, and the characters that reStructuredText would take for
markup, such as the star of ``(*batch, ...)`` and the bars of ``||x||``, stand for themselves.
"""

import re
from itertools import groupby

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

FIELDS = ("Shapes", "Units", "Scales", "Names", "Raises", "Warns", "Source")

# At the start of a line, or after the end of a sentence. With nothing behind it, it is a section: napoleon reads those.
_START = re.compile(rf"(?:^|\n|(?<=[.;)]) )[ ]*({'|'.join(FIELDS)}):[ ]+(?=\S)")
# A line of a list's entry that stands no further in than its bullet.
_SLACK = re.compile(r"(?m)^(?=[^\s-])")
_SECTION = re.compile(r"\w+:$")
_LITERAL = re.compile(r"(``.+?``)", flags=re.DOTALL)
_MARKUP = re.compile(r"[*|`\\]|(?<=\w)_(?!\w)")


def escaped(text: str) -> str:
    """Escape what is markup outside of ``literals``."""
    parts = _LITERAL.split(text)
    return "".join(part if at % 2 else _MARKUP.sub(r"\\\g<0>", part) for at, part in enumerate(parts))


def paragraph(text: str) -> list[str]:
    """Give a paragraph in reStructuredText: its words, then its fields as a list."""
    indent = text[: len(text) - len(text.lstrip())]
    words, *fields = _START.split(text)
    if words.startswith("- "):
        words = _SLACK.sub("  ", words)
    lines = escaped(words).split("\n") if words.strip() else []
    if fields and lines:
        lines.append("")
    for name, said in zip(fields[::2], fields[1::2], strict=True):
        lines.append(f"{indent}:{name}: {escaped(' '.join(said.split()))}")
    return lines


def rendered(lines: list[str]) -> list[str]:
    """Give a docstring in reStructuredText; what stands further in is a formula, but for sections."""
    found: list[str] = []
    flush = ""  # the last line that stands at the margin
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        block = list(group)
        if blank:
            found += block
        elif block[0].startswith("    ") and not _SECTION.match(flush):
            found += block if flush.endswith("::") else ["::", "", *block]
        else:
            found += paragraph("\n".join(block))
        flush = next((line for line in reversed(block) if line[:1].strip()), flush)
    return found


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    # As a function, whatever it is: of a property, napoleon would take the words before a colon for its type.
    lines[:] = GoogleDocstring(rendered(lines), Config(), what="function").lines()


def setup(app: Sphinx) -> dict[str, bool]:
    """Read the docstrings that autodoc finds."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
