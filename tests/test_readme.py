"README: its order, its links and pictures, and its tour on data of more than two features."
import json
import re

import pytest
import torch
from PIL import Image
from torch import nn

from conftest import HERE
from hessnb.paper.data import ClassificationData
from hessnb.paper.training import Recipe, train

ROOT = HERE.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CELLS = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]


def test_order():
    heads = re.findall(r"^## (.+)$", README, flags=re.M)
    wanted = ["Two commands", "A tour in a dozen lines", "What is certified", "Speed"]
    assert [h for h in heads if h in wanted] == wanted and heads[0] == wanted[0] and heads[-1] == wanted[-1]
    assert README.index("nbs/images/moving.gif") < README.index("## Two commands")


def test_links_and_pictures_are_there():
    links = [t for t in re.findall(r"\]\(([^)\s]+)\)", README) if not re.match(r"\w+:|#", t)]
    assert "nbs/images/workbook.png" in links and not [t for t in links if not (ROOT / t.partition("#")[0]).exists()]
    ours = re.findall(r"github\.com/hessnb/hessnb/blob/main/([\w./-]+)", README)
    assert ours and not [t for t in ours if not (ROOT / t).exists()]


def test_the_moving_picture_moves_and_is_small():
    path = ROOT / "nbs/images/moving.gif"
    image = Image.open(path)
    assert image.n_frames > 60 and path.stat().st_size <= 1_000_000 and min(image.size) > 300


@pytest.mark.parametrize("shape", [(4,), (1, 5, 5)])
def test_the_tour_works_for_more_than_two_features(shape):
    "Its code as it stands, with other data and another network."
    X = torch.randn(60, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    X[:, ..., 0] += 3 * y.view(-1, *[1] * (len(shape) - 1))
    data = ClassificationData("mine", X, y, X, y, 3, ("a", "b", "c"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), 8), nn.Tanh(), nn.Linear(8, 3))
    train(model, X, y, recipe=Recipe(.05, .9, epochs=600), loss_target=.02)
    tour = next("".join(c["source"]) for c in CELLS if "scan_plane(" in "".join(c["source"]))
    figure = next("".join(c["source"]) for c in CELLS if "plot_slice" in "".join(c["source"]))
    tour = re.sub(r"^(data|model) = .*$", "", tour, flags=re.M).replace("k=25", "k=5")
    names = {"data": data, "model": model.eval(), "print": lambda *a, **k: None}
    exec(tour, names)
    exec("import matplotlib\nmatplotlib.use('agg')\n" + figure, names)
    assert names["plane"] is not None and names["margin"].verified and names["scan"].cosines.shape[0] == 2
    assert "input units" in names["axes"][0].get_xlabel()
