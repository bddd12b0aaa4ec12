"Write hessnb/__init__.pyi from the table in nbs/names.ipynb."
from pathlib import Path

import nbformat

root = Path(__file__).resolve().parent.parent
cells = nbformat.read(root / "nbs/names.ipynb", as_version=4).cells
made = {}
exec(next(c.source for c in cells if c.source.startswith("HOME = {")), made)
(root / "hessnb/__init__.pyi").write_text(made["stub"](made["HOME"]), encoding="ascii")
