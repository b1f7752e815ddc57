"""How Sphinx builds the site: `make docs`."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "_ext")]

project = "rib-harness"
author = "rib-harness contributors"
project_copyright = "rib-harness contributors, Apache-2.0"
release = version = installed("rib-harness")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    # Ours, in _ext.
    "checks",
    "components",
    "docstrings",
    "links",
    "made",
    "verbs",
]
exclude_patterns = ["_build", "_ext", "images"]

html_theme = "furo"
html_title = f"rib-harness {version}"
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# `--option` in prose stays two hyphens.
smartquotes = False

# Docstrings are Google's form without types; single backticks are code.
default_role = "code"
add_module_names = False
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Environment", "params_style")]
