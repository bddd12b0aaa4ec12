"Pictures drawn beforehand: true numbers, kinds of models and data, pages in a browser."
import json
import re
from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn

from conftest import F64, blobs, build, mlp, randn
from hessnb import HessianOperator, Objective, top_eigenpairs
from hessnb.show.moving import MovingPictures, film, marks_html

ELSEWHERE = re.compile(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|src=\"(?!data:)")


def made(D=2, C=3, **options):
    objective = Objective(mlp(D=D, C=C), blobs(30, D, C))
    return MovingPictures(objective, top_eigenpairs(HessianOperator(objective), 2), n_frames=5, **options)


@pytest.fixture(scope="module")
def small(): return made(class_names=["a <b>", "</script>", "$c_1$"])


def test_every_frame_is_the_network_moved(small):
    network, X = small.network, small.objective
    data = blobs(30, 2, 3)[0]
    at_rest = X.predict(data).argmax(1)
    for i, frames in enumerate(small.frames):
        assert [f.amount for f in frames] == small.amounts(i) and frames[2].amount == 0 and frames[2] is small.rest
        for f in frames:
            there = X.at(X.theta + f.amount * network.lengths[i] * network.vectors[i])
            assert f.loss == pytest.approx(there.value(), rel=1e-9)
            assert f.changed == int((there.predict(data).argmax(1) != at_rest).sum())


@pytest.mark.parametrize("rise", [.05, 1.])
def test_each_side_ends_where_the_true_loss_has_risen(rise):
    pictures = made(rise=rise)
    for i, frames in enumerate(pictures.frames):
        for end, length in ((frames[0], pictures.ends[i][0]), (frames[-1], pictures.ends[i][1])):
            risen = end.loss - pictures.rest.loss
            whole = length * pictures.network.lengths[i] < .999 * pictures.found.longest
            assert rise <= risen < 1.06 * rise or not whole
            if whole:  # a little before, it has not
                step = .9 * end.amount * pictures.network.lengths[i] * pictures.network.vectors[i]
                assert pictures.objective.at(pictures.objective.theta + step).value() - pictures.rest.loss < rise
    shares = [[float(share) for share in re.findall(r"<i style=\"left:([\d.]+)%", marks_html(pictures, i))]
              for i in range(pictures.k)]
    assert all(0 < share < 100 for row in shares for share in row) and all(row[0] == 50 for row in shares)


@pytest.mark.parametrize("name", ["three features", "images", "one logit", "single precision", "twelve classes"])
def test_kinds(name):
    X, y, loss = *blobs(24, 3, 3), "cross_entropy"
    if name == "images": X, model = randn(24, 1, 4, 4), build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    elif name == "one logit":
        model, y, loss = build(lambda: nn.Linear(3, 1)), (X[:, :1] > 0).to(F64), nn.BCEWithLogitsLoss()
    elif name == "single precision": X, model = X.float(), mlp(C=3).float()
    elif name == "twelve classes": y, model = torch.arange(24) % 12, mlp(C=12)
    else: model = mlp(C=3)
    objective = Objective(model, (X, y), loss)
    pictures = MovingPictures(objective, top_eigenpairs(HessianOperator(objective), 1), k=1, n_frames=3)
    assert "slice" in pictures.caption() and len(film(pictures)["sliders"]) == 1
    assert pictures.frames[0][0].png != pictures.frames[0][2].png


def test_a_page_is_whole_and_asks_nobody(small, tmp_path):
    text = small.save_page(tmp_path / "p.html", title="A <title>").read_text(encoding="utf-8")
    assert not ELSEWHERE.search(text) and "A &lt;title&gt;" in text
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert len(data["pngs"]) == 9 and data["rest"] == 2  # 2 x 5 places, of which the trained network is one
    assert ELSEWHERE.search("<img src=\"a.png\">") and ELSEWHERE.search("p { background: url(a) }")


def test_nothing_is_replaced_unless_told(small, tmp_path):
    writers = {"p.html": small.save_page, "a.gif": partial(small.gif, which=[0], scale=.2)}
    for name, write in writers.items():
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match=f"{name} is there already: choose another name"):
            write(tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
        write(tmp_path / name, force=True)
        assert (tmp_path / name).read_bytes() != b"mine"


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_an_image_that_moves(small, tmp_path, kind):
    image = Image.open(small.gif(tmp_path / f"a.{kind}", which=[1], scale=.5))
    assert image.n_frames >= 7 and image.size == (220, 193) and image.info["loop"] == 0
    first = image.convert("RGB").tobytes()
    image.seek(2)
    assert image.convert("RGB").tobytes() != first
