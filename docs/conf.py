"""Sphinx's settings. ``make docs`` builds the site into docs/_build/html, without network."""

import inspect
import os
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
# The pages describe the checkout, whatever is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
os.environ.setdefault("MPLBACKEND", "Agg")

from docutils.nodes import SkipNode  # noqa: E402
from docutils.utils.math.latex2mathml import tex2mathml  # noqa: E402
from gallery_options import with_little_data  # noqa: E402

import gpuclf  # noqa: E402

project = "gpuclf"
author = "the gpuclf developers"
project_copyright = author
version = release = gpuclf.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "notebooks", "**/*.ipynb", "**/*.py"]
templates_path = ["_templates"]
smartquotes = False  # what errors say has code in it, to be copied
default_role = "literal"  # a single backtick means code, in examples and docstrings alike
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ------------------------------------------------------------------------------ reference
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say it
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # the templates list the members
numpydoc_class_members_toctree = False


def directive_of(value):
    """Return the directive that documents a name."""
    if hasattr(value, "__origin__"):
        return "py:data"  # an alias of types, which autodoc takes for a class
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, Exception) else "autoclass"
    return "autofunction" if inspect.isroutine(value) else "autodata"


def names_of(module):
    """Return a public module's names that have no page of their own, and those that have."""
    own, elsewhere = [], []
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if getattr(gpuclf, name, None) is value:
            elsewhere.append(name)
        else:
            own.append((directive_of(value), name))
    return own, elsewhere


MODULES = {
    module.__name__: names_of(module)
    for name in gpuclf.__all__
    if isinstance(module := getattr(gpuclf, name), ModuleType)
}
autosummary_context = {
    "documented": {name: own for name, (own, _) in MODULES.items()},
    "elsewhere": {name: elsewhere for name, (_, elsewhere) in MODULES.items()},
}


def skip(app, what, name, member, is_skipped, options):
    """Leave out what a class only inherits from other libraries."""
    home = getattr(member, "__module__", None) or getattr(
        getattr(member, "fget", None), "__module__", ""
    )
    if what == "class" and home and not home.startswith("gpuclf"):
        return True
    return is_skipped


# -------------------------------------------------------------------------------- gallery
sphinx_gallery_conf = {
    "examples_dirs": ["../examples", "notebooks"],
    "gallery_dirs": ["gallery", "learn"],
    "filename_pattern": "",
    "reset_argv": with_little_data,
    "plot_gallery": "True",
    "parallel": True,  # as many processes as the -j of make docs
    "abort_on_example_error": True,
    "backreferences_dir": "reference/backreferences",
    "doc_module": ("gpuclf",),
    "ignore_repr_types": r"matplotlib\.axes",
    "inspect_global_variables": False,
    "within_subsection_order": "FileNameSortKey",
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,  # a time of a shared machine says nothing
    "write_computation_times": False,
    "remove_config_comments": True,
}

# ----------------------------------------------------------------------------------- look
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"gpuclf {version}"
html_theme_options = {
    "navigation_depth": 2,
    "show_toc_level": 2,
    "header_links_before_dropdown": 5,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {page: [] for page in ("own_images", "searching", "ci")}  # without pages below
html_show_sourcelink = False
html_copy_source = False


def point_to_gallery(app, path, parent, content):
    """Let the links of included files lead to the examples' pages."""
    content[0] = re.sub(r"\]\(examples/(\w+)\.py\)", r"](gallery/\1.rst)", content[0])


def visit_math(translator, node):
    """Write formulas as MathML, which browsers draw by themselves: no script from the network."""
    is_block = node.tagname == "math_block"
    formula = tex2mathml(node.astext(), as_block=is_block)
    translator.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise SkipNode


def setup(app):
    """Register what is ours."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("include-read", point_to_gallery)
    app.connect("autodoc-skip-member", skip)
