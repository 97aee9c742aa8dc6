"""Configuration of the documentation; build it with ``make docs``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
# The extension that orders the gallery lives beside this file.
sys.path.insert(0, str(HERE))
# Examples are many small operations: threads would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lesde

project = "lesde"
copyright = "the lesde authors"
author = "the lesde authors"
release = version = lesde.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
# Tables that a page includes are no pages.
exclude_patterns = ["_build", "experiments"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Single backquotes in docstrings name an object; where there is none of that name they are code.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
add_module_names = False
python_use_unqualified_type_names = True

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "within_subsection_order": "gallery_order.ReadingOrder",
    "capture_repr": (),
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1,
    # An example that fails is an error of the build.
    "abort_on_example_error": True,
}

html_theme = "furo"
html_title = f"lesde {release}"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


# Stands for a colon while napoleon reads the docstring of a property.
COLON = "\ue000"


def hide_colons(app, what, name, obj, options, lines):
    """Keep napoleon from taking ``words: more words`` of a property for a type and a description."""
    if what in ("property", "attribute", "data"):
        lines[:] = [re.sub(r"(?<!:):(?!:)", COLON, line) for line in lines]


def plain_names(app, what, name, obj, options, lines):
    """Make docstrings, which are written to be read as text, into reStructuredText.

    A name that ends in an underscore (``class_``) is no reference, and emphasis may end within a word.
    """
    for i, line in enumerate(line.replace(COLON, ":") for line in list(lines)):
        lines[i] = line
        if line.lstrip().startswith((">>>", "...", ".. ")):
            continue
        parts = re.split(r"(``.*?``|`[^`]*`)", line)
        parts[::2] = [
            re.sub(r"(?<![*\w])(\*\w+\*)(?=\w)", r"\1\\ ", re.sub(r"(?<=\w)_(?!\w)", r"\\_", part))
            for part in parts[::2]
        ]
        lines[i] = "".join(parts)


def setup(app):
    # Before and after napoleon, which takes the sections apart.
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", plain_names, priority=900)
