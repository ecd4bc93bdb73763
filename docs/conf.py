"""Configuration of the documentation: python -m sphinx -W --keep-going -n docs build/docs"""

import re
from typing import Any

import gcsa_ext

project = "gcsa_ext"
author = "The gcsa_ext authors"
version = release = gcsa_ext.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # so that links to sections are checked

html_theme = "furo"
html_title = "gcsa_ext"
html_show_copyright = False

default_role = "code"  # docstrings put names between single backticks
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
napoleon_use_rtype = False

nitpick_ignore_regex = [
    # Names of other packages, whose documentation is not fetched, so that the build needs no network.
    ("py:.*", r"(?!gcsa_ext\.).*"),
    # Private base classes, and the tuples in which operators pass their arguments to the backends.
    ("py:.*", r"gcsa_ext\.(.*\._|backends\.operands\.).*"),
]


def escape_stars(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """In docstrings (*batch, freq, time) is a shape and norm2_... a group of names, not markup."""
    lines[:] = [re.sub(r"(?<=\()\*(?=\w)", r"\\*", line).replace("_...", r"\_...") for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_stars, priority=100)  # before napoleon, at 500
