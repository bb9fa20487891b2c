"""Sphinx configuration. The build needs no network: names of other projects are not linked."""

import importlib.metadata

project = "polyserve"
author = "The polyserve developers"
copyright = "2026, The polyserve developers"
release = importlib.metadata.version("polyserve-sdk")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Fragments are parts of the changelog to come, not pages.
exclude_patterns = ["_build", "changes"]
nitpicky = True
# Everything that is ours must resolve; the standard library and other projects would need their inventories downloaded.
nitpick_ignore_regex = [("py:.*", r"(?!polyserve).*"), ("py:class", r"polyserve\..*\.T")]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# Docstrings say `name` for code, as everybody reads it.
default_role = "literal"
python_maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# A class's `Attributes:` section is its documentation; separate entries would say it twice.
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"polyserve {release}"
html_copy_source = False
