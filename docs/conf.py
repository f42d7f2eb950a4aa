"""How Sphinx builds the site; `nkdlib.compendium.report` writes the pages that a run decides, and starts it."""

from docutils.nodes import SkipNode, math_block
from latex2mathml.converter import convert

project = "Neighbourhood Distillation and FiGS, checked"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md", "claims.md", "figures/*/*"]  # parts of other pages
suppress_warnings = ["ref.python"]  # of two targets, where an annotation names `bytes` and two classes have such
templates_path = ["_templates"]
default_role = "code"
smartquotes = False  # criteria and code read as they are written
autodoc_preserve_defaults = True

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the runner has executed them
nb_ipywidgets_js = {}  # by default scripts from elsewhere
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "code"

autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 100
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["report.css"]
html_js_files = ["report.js"]
html_math_renderer = "mathml"
html_show_sourcelink = html_copy_source = False
html_show_search_summary = False  # it fetches pages, which a browser refuses for files
html_show_copyright = html_use_index = False
html_domain_indices = []


def mathml(writer, node):
    """Write a formula as MathML, which browsers draw by themselves."""
    formula = convert(node.astext(), display="block" if isinstance(node, math_block) else "inline")
    writer.body.append(formula.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;'))  # a norm's bars do not grow
    raise SkipNode


def setup(app):
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
