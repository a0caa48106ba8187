"""Settings of the documentation: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Potentia"
author = "Potentia contributors"
release = version = installed_version("potentia")
copyright = author  # noqa: A001 - Sphinx's own word for it

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "myst_parser",
    "sphinx_copybutton",
    "dark_pictures",
    "linked_names",
    "mathml",
    "plain_docstrings",
    "reference",
]
exclude_patterns = ["_build"]

# Pages are written for two readers, this site and GitHub: only what both understand is switched on.
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # an override that says nothing new is shown where it is said
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 110
toc_object_entries_show_parents = "hide"

html_math_renderer = "mathml"
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"Potentia {release}"
html_static_path = ["_static"]
html_css_files = ["potentia.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
