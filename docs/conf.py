# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration; ``make docs`` builds without warnings or fails."""

from importlib.metadata import version as installed_version

project = "numpyro_amortized"
author = "The numpyro_amortized authors"
copyright = author
release = version = installed_version("numpyro_amortized")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
