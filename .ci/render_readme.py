"Write README.md from nbs/index.ipynb, figures beside it in nbs/images, without Quarto."
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor

root = Path(__file__).resolve().parent.parent
nb = nbformat.read(root / "nbs/index.ipynb", as_version=4)
for cell in nb.cells:
    first = cell.source.split("\n", 1)[0]
    if cell.cell_type == "code" and first.startswith("#| hide"): cell.metadata["tags"] = ["hide"]
    cell.source = "\n".join(line for line in cell.source.split("\n") if not line.startswith("#| "))
exporter = MarkdownExporter()
hide = TagRemovePreprocessor()
hide.remove_cell_tags = {"hide"}
exporter.register_preprocessor(hide, enabled=True)
body, resources = exporter.from_notebook_node(nb, resources={"output_files_dir": "nbs/images", "unique_key": "index"})
images = root / "nbs/images"
images.mkdir(exist_ok=True)
for name, data in resources["outputs"].items(): (root / name).write_bytes(data)
note = "<!-- Rendered from nbs/index.ipynb by `make readme`; edit that. -->\n\n"
(root / "README.md").write_text(note + body.strip() + "\n", encoding="utf-8")
