"""Mathematics as MathML, which browsers draw themselves: no script, no font and no network.

The conversion is that of docutils, which Sphinx stands on.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)

_DIGITS = re.compile(r"\\([td]?frac)\s*(\d)\s*(\d)")
_PRIMES = re.compile(r"'+")
_SAME = {r"\dots": r"\ldots", r"\iff": r"\Longleftrightarrow"}
# A named function stands a thin space away from what it is of, unless that is in brackets.
_APPLIED = re.compile(r"<mo>&ApplyFunction;</mo>(?!<mo[^>]*>[(\[]|<mrow><mo[^>]*>[(\[])")
_THIN = '<mspace width="0.1667em"></mspace>'
# Bars keep the height of a letter, and no space about them, unless they are the ends of \left ... \right.
_BARS = re.compile(r'(?<!<mrow>)<mo(?: class="mathopen"| class="mathclose")?>([|‖])</mo>(?!</mrow>)')
_BAR = r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>'
_OTHERS = re.compile("|".join(re.escape(name) + r"(?![A-Za-z])" for name in _SAME))


def convert(text: str, *, block: bool) -> str:
    r"""Turn LaTeX into a <math> element.

    What docutils reads otherwise than TeX is put right: ``\frac12``, the prime, a few names, and the space in $\log p$.

    Raises: MathError for what docutils does not know.
    """
    text = _DIGITS.sub(r"\\\1{\2}{\3}", text.strip())
    text = _OTHERS.sub(lambda found: _SAME[found.group()], text)
    text = _PRIMES.sub(lambda found: "^{" + r"\prime " * len(found.group()) + "}", text)
    found = re.sub(r">\s+<", "><", tex2mathml(text, as_block=block))
    return _BARS.sub(_BAR, _APPLIED.sub(_THIN, found))


def _converted(node: nodes.Element, *, block: bool) -> str:
    try:
        return convert(node.astext(), block=block)
    except MathError as err:
        logger.warning("mathematics: %s in %r", err, node.astext(), location=node)
        return f"<code>{node.astext()}</code>"


def visit_math(writer: Any, node: nodes.math) -> None:
    """Write a formula within the text."""
    writer.body.append(_converted(node, block=False))
    raise nodes.SkipNode


def visit_math_block(writer: Any, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number if it has one."""
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})</span>')
    writer.body.append(_converted(node, block=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
