"""Names within the prose, such as ``energies.Gaussian(mean, std)``, lead to their entries in the reference."""

import importlib
import re

from docutils import nodes
from reference import public
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_NAME = re.compile(
    r"(?:(?:potentia|pt)\.|(?=(?:energies|likelihoods|annealers|inference|io|training|testing)\.))"
    r"((?:[A-Za-z]\w*\.)*[A-Za-z]\w*)(?:\(.*\))?$"
)


def target_of(code: str) -> str | None:
    """Where a name is documented: its class or function in the layer that it belongs to, or None for other code."""
    found = _NAME.match(code)
    if not found:
        return None
    value: object = importlib.import_module("potentia")
    for part in found[1].split("."):
        value = getattr(value, part, None)
    name, module = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
    return None if name is None or module is None else f"{public(module)}.{name}"


class LinkedNames(SphinxTransform):
    """Wrap inline code that is a public name into a reference."""

    default_priority = 10

    def apply(self) -> None:
        """Change the page's inline code."""
        for literal in list(self.document.findall(nodes.literal)):
            target = None if isinstance(literal.parent, nodes.reference | pending_xref) else target_of(literal.astext())
            if target is not None:
                options = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refdoc": self.env.docname}
                literal.replace_self(pending_xref("", literal.deepcopy(), refexplicit=True, refwarn=False, **options))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(LinkedNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
