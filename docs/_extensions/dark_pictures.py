"""A picture ``name.png`` that has a neighbour ``name-dark.png`` is shown in the variant that suits the page."""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class DarkPictures(SphinxTransform):
    """Put the dark variant beside every picture that has one; the theme's classes show one of the two."""

    default_priority = 10

    def apply(self) -> None:
        """Change the page's pictures."""
        folder = Path(self.env.doc2path(self.env.docname)).parent
        for image in list(self.document.findall(nodes.image)):
            path = Path(image["uri"])
            if not (folder / path.with_stem(path.stem + "-dark")).is_file():
                continue
            dark = image.deepcopy()
            dark["uri"] = path.with_stem(path.stem + "-dark").as_posix()
            image["classes"] = [*image["classes"], "only-light"]
            dark["classes"] = [*dark["classes"], "only-dark"]
            image.parent.insert(image.parent.index(image) + 1, dark)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(DarkPictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
