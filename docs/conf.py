"""Sphinx's configuration: ``make docs`` builds docs/_build/html."""

from wholebatch import __version__

project = "wholebatch"
author = "the wholebatch authors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"wholebatch {release}"
