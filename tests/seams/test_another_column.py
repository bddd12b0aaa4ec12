"Another number in the tables is one column: it shows in the text, on the page, in the CSV and in the rows."
import torch
from torch import nn

from hessnb.boundary.columns import COLUMNS, Column
from hessnb.boundary.compare import compare_minima


def test_another_column(tmp_path):
    X, y = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    models = {name: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)) for name in ("one", "two")}
    pairs_found = Column("n_pairs", "pairs found", "eigenpairs that the measure took", lambda e: len(e.resolved.pairs),
                         "d")
    table = compare_minima(models, (X, y), k=3, pairs=5, columns=[*COLUMNS, pairs_found])
    assert [row["n_pairs"] for row in table.rows()] == [5, 5]
    assert "pairs found" in repr(table) and "eigenpairs that the measure took" in table._repr_html_()
    assert table.to_csv(tmp_path / "minima.csv").read_text().splitlines()[0].endswith(",n_pairs")
