"""Sphinx's settings for the documentation: make docs."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.application import Sphinx

from fcnlab import __version__

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
import api_reference
import config_reference

project = "fcnlab"
author = "the authors of fcnlab"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "scripts"]
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 4

highlight_language = "text"  # of a block that names no language

html_theme = "furo"
html_title = f"fcnlab {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False

autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # those of Lightning use directives of its own
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
# Nothing is fetched, so nothing links to other packages. Docstrings also name internal modules, which have no page.
nitpick_ignore_regex = [("py:(?!obj).*", ".*"), ("py:obj", r"(?!fcnlab\.).*")]

GENERATED = {  # the text of each marker in a page
    "<!-- config reference -->": config_reference.document,
    "<!-- public names -->": api_reference.document,
}


def fill_in(app: Sphinx, docname: str, content: list[str]) -> None:
    """Replace the markers of a page by the text that is generated from conf/ and the docstrings."""
    for marker, document in GENERATED.items():
        if marker in content[0]:
            content[0] = content[0].replace(marker, document())


def leave_out_ranges(app: Sphinx, function: Any, bound_method: bool) -> None:
    """Show ``lr: float`` for ``lr: NonNegative``: the configuration reference states the ranges of settings."""
    with suppress(NameError, TypeError, AttributeError):  # names that only a type checker imports; slots
        function.__annotations__ = get_type_hints(function)


def make_accessible(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Correct what axe-core reports as serious in the HTML of Sphinx.

    What scrolls can be reached by the keyboard; headings in the sidebar have a level; the parameters of a signature are
    not half of a definition list.
    """
    navigation = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')
    body = context.get("body", "").replace("<pre>", '<pre tabindex="0">')
    body = body.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
    context["body"] = re.sub(r'<dt class="sig.*?</dt>', _without_list, body, flags=re.DOTALL)


def _without_list(signature: re.Match) -> str:
    text = signature[0].replace("<dl>", '<div class="sig-parameters">').replace("<dd>", "<div>")
    return text.replace("</dl>", "</div>").replace("</dd>", "</div>")


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", make_accessible, priority=900)  # after furo's
    app.connect("autodoc-before-process-signature", leave_out_ranges)
    app.connect("source-read", fill_in)
