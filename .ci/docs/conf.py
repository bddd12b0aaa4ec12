"Sphinx configuration of the documentation; .ci/docs/build.py writes the pages."
import re
from configparser import ConfigParser
from pathlib import Path

import matplotlib
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

root = Path(__file__).resolve().parents[2]
config = ConfigParser(delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

project, author, release = cfg["title"], cfg["author"], cfg["version"]
project_copyright = cfg["copyright"]
html_title = f"{project} {release}"
html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_show_sourcelink, html_copy_source = False, False
# has the tables that formulas need; used where the reader has no better one
math_font = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSerif.ttf")
html_static_path, html_css_files = ["hessnb.css", "excerpts.js", str(math_font)], ["hessnb.css"]
html_math_renderer = "mathml"

extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # what a cell shows as Markdown may have tables
nb_ipywidgets_js = {}  # by default these come from another host
nb_code_prompt_show, nb_code_prompt_hide = "Source", "Hide the source"
python_maximum_signature_line_length = 90
suppress_warnings = ["myst.header"]  # a notebook may skip a level of heading
pygments_style, pygments_dark_style = "default", "github-dark"

# what docutils' converter does not know, in its own words
_FOREIGN = {r"\\[dl]?dots(?![a-zA-Z])": r"\\ldots", r"°": r"^\\circ", r"\\iff(?![a-zA-Z])": r"\\Longleftrightarrow",
            r"\\bm(?![a-zA-Z])": r"\\boldsymbol", r"\\([dt]?frac)(\d)(\d)": r"\\\1{\2}{\3}",
            r"\\([bB]igg?)(?![a-zA-Z])": r"\\\1l",
            r"\\(begin|end)\{(?:align|gather|split)\*?\}": r"\\\1{aligned}", r"\\(?:begin|end)\{equation\*?\}": ""}


def _mathml(writer, node, block):
    "Formulas as MathML, which browsers draw themselves: no script is loaded."
    tex = node.astext()
    for pattern, known in _FOREIGN.items(): tex = re.sub(pattern, known, tex)
    if block and r"\\" in tex and r"\begin" not in tex: tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try: markup = tex2mathml(tex, as_block=block)
    except (MathError, SyntaxError) as e:
        logging.getLogger(__name__).warning("formula %r: %s", tex, e, location=node)
        markup = f"<code>{writer.encode(tex)}</code>"
    writer.body.append(writer.starttag(node, "div" if block else "span", "", CLASS="math notranslate nohighlight") +
                       markup + ("</div>\n" if block else "</span>"))
    raise nodes.SkipNode


def _search_alone(app, pagename, templatename, context, doctree):
    if pagename == "search": app.add_js_file("excerpts.js")


def setup(app):
    app.connect("html-page-context", _search_alone)
    app.add_html_math_renderer("mathml", (lambda w, n: _mathml(w, n, False), None),
                               (lambda w, n: _mathml(w, n, True), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
