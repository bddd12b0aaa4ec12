"The zoo: every entry is whole, fits its data as its card says, and stands in for one plan and no other."
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from conftest import quiet
from hessnb.paper import zoo
from hessnb.paper.data import checkerboard, gaussian_mixture
from hessnb.paper.minima import Plan, train_minimum
from hessnb.paper.networks import mlp
from hessnb.paper.training import Recipe
from hessnb.paper.zoo import ZOO, find_minimum, load_weights, save_weights, zoo_entries, zoo_plans

PLANS, ENTRIES = zoo_plans(), zoo_entries()


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(zoo, "train_minimum", lambda *a, **k: pytest.fail("trained"))


def find(plan, **options):
    "`find_minimum` by a plan."
    given = {name: getattr(plan, name) for name in Plan.__dataclass_fields__}
    return find_minimum(given.pop("kind"), given.pop("data"), **given, **options)


def test_it_is_small_and_readable():
    files = list(ZOO.iterdir())
    assert sum(f.stat().st_size for f in files) < 3e6 and {f.suffix for f in files} == {".safetensors"}
    assert {f.stem for f in files} == set(ENTRIES) and set(PLANS) <= set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_whole(name):
    entry = ENTRIES[name]
    weights = entry.weights()
    assert weights and all(t.isfinite().all() for t in weights.values())
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float32}
    assert {"torch", "python", "hessnb", "processor"} <= set(entry.made_with) and entry.facts.get("recipe")
    assert 0 < entry.numbers["loss"] < 1 and entry.numbers["accuracy"] > .9
    with safe_open(entry.path, "pt") as file: assert json.loads(file.metadata()["card"])["numbers"] == entry.numbers


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_finds_its_network(name, no_training):
    "Without a warning: loss and accuracies of the weights are those on the card, whatever the processor."
    with quiet(): minimum = find(PLANS[name])
    plan, entry = PLANS[name].complete(), ENTRIES[name]
    assert minimum.zoo == name and minimum.reached and minimum.train_accuracy == 1
    assert plan.loss_target / 2 <= minimum.train_loss <= plan.loss_target
    assert minimum.train_loss == pytest.approx(entry.numbers["loss"], rel=1e-3)  # of float32 against that of float64
    assert (minimum.kind, minimum.data, minimum.seed) == (plan.kind, plan.data.name, plan.seed)
    for key, t in minimum.model.state_dict().items(): assert torch.equal(t, entry.weights()[key])
    assert not minimum.model.training and all(p.requires_grad and p.grad is None for p in minimum.model.parameters())
    assert [len(s.losses) - 1 for s in minimum.stages] == [s.epochs for s in minimum.stages]
    assert all(s.accuracy == 1 and s.reached for s in minimum.stages)
    assert minimum.stages[-1].recipe == plan.recipe and minimum.stages[-1].loss == minimum.train_loss


def test_what_training_gives_comes_back(tmp_path, monkeypatch):
    "Field by field, for a network that is trained and saved here."
    plan = Plan("noisy_init", checkerboard(n_per_class=20), model=mlp(2, 2, (20,)), loss_target=1e-2)
    trained = train_minimum(plan)
    zoo._save_minimum("one", plan, trained, tmp_path)
    loaded = zoo._load_minimum(zoo_entries(tmp_path)["one"], plan.complete())
    for field in ("kind", "data", "seed", "train_loss", "train_accuracy", "test_accuracy"):
        assert getattr(loaded, field) == getattr(trained, field)
    for p, q in zip(loaded.model.parameters(), trained.model.parameters()): assert torch.equal(p, q)
    for a, b in zip(loaded.stages, trained.stages, strict=True):
        assert torch.equal(a.losses, b.losses) and a.losses.dtype == torch.float64
        assert replace(a, losses=None).__dict__ == replace(b, losses=None).__dict__
    assert loaded.zoo == "one" and trained.zoo is None


gauss = gaussian_mixture()
moved = gauss.X_train + .01 * (torch.arange(150) == 7)[:, None]
wrong = torch.where(torch.arange(150) == 7, (gauss.y_train + 1) % 3, gauss.y_train)
OTHERS = {
    "seed": Plan("normal", gauss, 77), "kind": Plan("large_norm", gauss, 77),
    "target": Plan("normal", gauss, loss_target=2e-3), "recipe": Plan("normal", gauss, recipe=Recipe(.05, .91)),
    "a point moved": Plan("normal", replace(gauss, X_train=moved)),
    "a test point moved": Plan("normal", replace(gauss, X_test=gauss.X_test + .01)),
    "order": Plan("normal", replace(gauss, X_train=gauss.X_train.flip(0), y_train=gauss.y_train.flip(0))),
    "a label": Plan("normal", replace(gauss, y_train=wrong)), "name": Plan("normal", replace(gauss, name="mine")),
    "size": Plan("normal", gaussian_mixture(n_per_class=98)), "draw": Plan("normal", gaussian_mixture(seed=1)),
    "initial weights": Plan("normal", gauss, model=mlp(2, 3, seed=1)),
    "width": Plan("normal", gauss, model=mlp(2, 3, (100, 99))),
    "precision": Plan("normal", gauss, model=mlp(2, 3).double()),
    "random recipe": Plan("adversarial", gauss, random_recipe=Recipe(.011, .995)),
    "random target": Plan("adversarial", gauss, random_loss_target=.04),
    "what is fitted first": Plan("noisy_init", checkerboard(), init_data=checkerboard("noisy", seed=1)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_plan_trains(what, monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "train_minimum", lambda plan, **_: asked.append(plan))
    find(OTHERS[what])
    assert len(asked) == 1 and asked[0].recipe is not None
    find(Plan("normal", gauss))
    assert len(asked) == 1


def test_last_bits_do_not_matter(no_training):
    "Inputs and initial weights one unit in the last place away, as on another processor."
    up = lambda t: torch.nextafter(t, torch.full_like(t, math.inf))
    data, model = replace(gauss, X_train=up(gauss.X_train), X_test=up(gauss.X_test)), mlp(2, 3)
    with torch.no_grad():
        for p in model.parameters(): p.copy_(up(p))
    with quiet(): assert find(Plan("normal", data, model=model)).zoo == "gauss-normal-0"


def test_retrain(monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "train_minimum", lambda plan, progress: asked.append((plan.kind, progress)))
    find(Plan("normal", gauss), retrain=True, progress=True)
    assert asked == [("normal", True)]


def test_a_given_network_is_not_touched(no_training):
    model = mlp(2, 3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    minimum = find(Plan("normal", gauss, model=model))
    assert minimum.zoo and model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_weights_of_ones_own(tmp_path):
    model, other, points = mlp(2, 3, (4,)), mlp(2, 3, (4,), seed=1), (gauss.X_train, gauss.y_train)
    entry = save_weights(model, "mine", *points, recipe="none", folder=tmp_path)
    assert oct(entry.path.stat().st_mode)[-3:] == "644" and entry.facts == {"recipe": "none"}
    with quiet(): assert load_weights(other.train(), "mine", *points, folder=tmp_path) is other and other.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))
    with pytest.warns(UserWarning, match="does not fit these data"):
        load_weights(other, "mine", 3 * gauss.X_train, gauss.y_train, folder=tmp_path)
    with pytest.raises(ValueError, match="there are mine"): load_weights(other, "yours", *points, folder=tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"): load_weights(mlp(2, 3), "mine", *points, folder=tmp_path)


def test_build(tmp_path, capsys):
    zoo.build_zoo("intro1d-normal-1-gap0.5", tmp_path)
    assert list(zoo_entries(tmp_path)) == ["intro1d-normal-1-gap0.5"] and "intro1d" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(3))
def test_kinds_differ_as_the_pages_say(seed):
    "On the weights that ship: the adversarial start costs test accuracy with two of three seeds."
    normal, adversarial = (find_minimum(kind, gauss, seed=seed) for kind in ("normal", "adversarial"))
    assert normal.zoo and adversarial.zoo
    assert (adversarial.test_accuracy < normal.test_accuracy) == (seed != 1)
