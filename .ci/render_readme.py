"Write README.md from nbs/index.ipynb, figures beside it in nbs/images, without Quarto."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

root = Path(__file__).resolve().parent.parent
nb = nbformat.read(root / "nbs/index.ipynb", as_version=4)
nb.metadata["language_info"] = {"name": "python"}
alts = []
for cell in nb.cells:
    directives = [line[2:].strip() for line in cell.source.split("\n") if line.startswith("#|")]
    cell.metadata["tags"] = [d for d in directives if d in ("hide", "hide_input")]
    alts += [d.removeprefix("fig-alt:").strip() for d in directives if d.startswith("fig-alt:")]
    cell.source = "\n".join(line for line in cell.source.split("\n") if not line.startswith("#|"))
exporter = MarkdownExporter()
hide = TagRemovePreprocessor(remove_cell_tags={"hide"}, remove_input_tags={"hide_input"})
exporter.register_preprocessor(hide, enabled=True)
body, resources = exporter.from_notebook_node(nb, resources={"output_files_dir": "nbs/images", "unique_key": "index"})
body = re.sub(r"!\[png\]", lambda _: f"![{alts.pop(0)}]", body)
body = re.sub(r"^<!--.*-->\n", "", body, flags=re.M)  # places that the site fills
body = re.sub(r"\]\((?!\w+:|#|nbs/)", "](nbs/", body)  # links are as seen from the notebook
images = root / "nbs/images"
images.mkdir(exist_ok=True)
for path in images.glob("index_*.png"): path.unlink()  # of cells that have moved
for name, data in resources["outputs"].items(): (root / name).write_bytes(data)
note = "<!-- Rendered from nbs/index.ipynb by `make readme`; edit that. -->\n\n"
(root / "README.md").write_text(note + body.strip() + "\n", encoding="utf-8")
