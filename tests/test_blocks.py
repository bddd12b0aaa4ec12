"The top pairs of every diagonal block, kept and recomputed: against the loop over `params=` and dense blocks."
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from conftest import F64, blobs, build, mlp, randn, seeded, untouched
from hessnb.curvature import blocks as rooms
from hessnb.curvature import objective as objectives
from hessnb.curvature import verify
from hessnb.curvature.blocks import Blocks, Part, block_traces, squared_gradients
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.layer_pairs import layer_eigenpairs
from hessnb.curvature.layers import group_params
from hessnb.curvature.objective import Objective
from hessnb.curvature.sampling import sampling_error
from hessnb.curvature.top import top_eigenpairs

X, Y = blobs()


class Language(nn.Module):
    "A language model whose embedding is its read-out, too: tokens `(N, T)` in, scores of the next ones `(N, 7, T)`."
    def __init__(self, width=6):
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, width), nn.Linear(width, 7, bias=False)
        self.out.weight, self.scale = self.embed.weight, nn.Parameter(torch.ones(()))
    def forward(self, x):
        h = self.embed(x).cumsum(1) * self.scale
        return self.out(self.norm(h + torch.tanh(self.mix(h)))).transpose(1, 2)


def language():
    tokens = torch.randint(0, 7, (9, 5), generator=seeded(3))
    return build(Language), [(tokens[:4, :-1], tokens[:4, 1:]), (tokens[4:, :-1], tokens[4:, 1:])]


def cnn():
    "Convolutions with batch normalisation in evaluation mode, and uneven batches."
    model = build(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(),
                                        nn.Linear(18, 4), nn.Linear(4, 3)))
    with torch.no_grad(): model[1].running_mean += .1
    inputs, y = randn(11, 1, 4, 4), torch.arange(11) % 3
    return model, [(inputs[:6], y[:6]), (inputs[6:8], y[6:8]), (inputs[8:], y[8:])]


CASES = {"cnn": cnn, "language": language, "mlp": lambda: (mlp(), (X, Y))}


def loop(model, data, layers, k, **kwargs):
    found = {}
    for layer, names in layers.items():
        op = HessianOperator(Objective(model, data, params=names))
        found[layer] = top_eigenpairs(op, min(k, op.shape[0]), **kwargs)
    return found


def agree(layered, found, tol):
    for layer, pairs in found.items():
        scale = pairs.values.abs().max().item()
        assert_close(layered[layer].values, pairs.values, rtol=0, atol=tol * scale)
        own = layered[layer]
        assert len(own) == len(pairs) and (own.converged | (own.values.abs() < 1e-9 * scale)).all()
        assert str(own.verified).startswith("derivatives agree")


@pytest.mark.parametrize("case, by", [("cnn", "module"), ("language", "parameter"), ("mlp", "parameter")])
def test_equal_to_the_loop(case, by):
    model, data = CASES[case]()
    layers = group_params(dict(model.named_parameters()), by)
    with untouched(model):
        agree(layer_eigenpairs(model, 3, by=by, data=data), loop(model, data, layers, 3), 1e-9)


@pytest.mark.parametrize("case", ["cnn", "language"])
def test_equal_to_the_loop_in_single_precision(case):
    model, data = CASES[case]()
    model, layers = model.float(), group_params(dict(model.named_parameters()))
    single = lambda t: t.float() if t.is_floating_point() else t
    data = [tuple(map(single, batch)) for batch in (data if isinstance(data, list) else [data])]
    agree(layer_eigenpairs(model, 2, data=data, tol=1e-3), loop(model, data, layers, 2, tol=1e-3), 2e-4)


@pytest.mark.parametrize("which", ["SA", "LM", "BE"])
def test_every_end_of_the_spectrum(which):
    model, data = cnn()
    objective = Objective(model, data)
    layered = layer_eigenpairs(objective, 4, which=which, n_probes=0, fisher=False)
    for layer, names in group_params(objective.params).items():
        values = torch.linalg.eigvalsh(HessianOperator(Objective(model, data, params=names)).to_dense()).flip(0)
        values = {"SA": values.flip(0)[:4], "LM": values[values.abs().argsort(descending=True)][:4],
                  "BE": values if len(values) < 4 else torch.cat([values[:2], values[-2:]])}[which]
        assert_close(layered[layer].values.abs(), values[:len(layered[layer])].abs(), rtol=1e-6, atol=1e-8)


def test_one_look_one_check_one_linearisation(monkeypatch):
    "However many blocks there are: one validation, one verification, and each micro-batch differentiated once."
    model, data = cnn()
    counts = dict(grads=0, checks=0, looks=0)
    def counting(name, fn):
        def call(*args, **kwargs):
            counts[name] += 1
            return fn(*args, **kwargs)
        return call
    monkeypatch.setattr(rooms.Linearisation, "map", counting("grads", rooms.Linearisation.map))
    monkeypatch.setattr(verify, "verify", counting("checks", verify.verify))
    monkeypatch.setattr(objectives.Objective, "_validate", counting("looks", objectives.Objective._validate))
    layered = layer_eigenpairs(model, 2, by="parameter", data=data)
    assert len(layered) == 8 and counts == dict(grads=1 + 3, checks=1, looks=1)


def test_as_many_products_as_the_loop():
    model, data = cnn()
    layers = group_params(dict(model.named_parameters()))
    found = loop(model, data, layers, 3)
    assert layer_eigenpairs(model, 3, data=data).n_matvecs == sum(p.n_matvecs + p.n_certify for p in found.values())


def test_a_block_near_the_loss_walks_less():
    model = build(lambda: nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(6))))
    blocks = Blocks(Objective(model, (randn(8, 4), torch.arange(8) % 4)))
    n = [blocks.operator([f"{i}.0.weight"]).kept.n_operations for i in range(6)]
    assert n == sorted(n, reverse=True) and n[0] > 2 * n[-1]


@pytest.mark.parametrize("curvature, kind", [("ggn", GGNOperator), ("fisher", FisherOperator)])
def test_other_curvatures(curvature, kind):
    model, data = cnn()
    objective = Objective(model, data)
    layered = layer_eigenpairs(objective, 2, curvature=curvature)
    assert layered.title == kind.title
    dense, start = kind(objective).to_dense(), 0
    for layer, size in zip(layered.names, layered.sizes.tolist()):
        if layer != "4":  # of which others agree as well, and which is the largest
            block = dense[start:start + size, start:start + size]
            assert_close(layered[layer].values, torch.linalg.eigvalsh(block).flip(0)[:2], rtol=1e-6, atol=1e-9)
        start += size


@pytest.mark.parametrize("examples", [0, 8])
def test_data_that_do_not_fit(examples):
    "Then products compute again what is not kept, for the block alone; the numbers are the same."
    model, data = cnn()
    free = Objective(model, data)
    tight = Objective(model, data, memory_budget=examples * free.cost.per_example)
    blocks, all_kept, v = Blocks(tight), Blocks(free), randn(free.n_params)
    assert blocks.shared is None
    for names in group_params(free.params).values():
        op = blocks.operator(names)
        v_b = randn(op.shape[0])
        assert_close(op.matvec(v_b), all_kept.operator(names).matvec(v_b))
    if examples: assert op.n_kept == free.n_examples  # the last layer keeps next to nothing of an example
    assert_close(blocks.whole()(v), all_kept.whole()(v))
    assert_close(*(layer_eigenpairs(o, 1, by=["5.*"], n_probes=2).values for o in (free, tight)))


def test_on_another_device(gpu):
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5., .5]))
    here, there = (layer_eigenpairs(mlp().to(device), 3, by=["*.bias", "2.weight"], data=(X, Y), loss=loss)
                   for device in ("cpu", gpu))
    assert there.pairs[0].vectors.device == gpu == there.whole("*.bias").device
    for host in (there.values, there.share, there.fisher): assert host.device.type == "cpu"
    assert_close(there.values, here.values, rtol=1e-9, atol=1e-12)
    assert_close(there.share, here.share)
    assert_close(there.fisher, here.fisher)


def test_weight_decay_is_in_every_block():
    plain, decayed = Objective(mlp(), (X, Y)), Objective(mlp(), (X, Y), weight_decay=.1)
    a, b = layer_eigenpairs(plain, 2), layer_eigenpairs(decayed, 2)
    assert_close(b.values, a.values + .1, rtol=0, atol=1e-8)
    shift = [(t.value - u.value) / n for t, u, n in zip(b.traces, a.traces, a.sizes.tolist())]
    assert_close(shift, [.1, .1], rtol=.02, atol=0)


def test_no_curvature_and_nothing_reached():
    "A bias after the loss's own invariance has some; one that is not reached, or that the loss is linear in, has none."
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.unused, self.shift = nn.Linear(3, 4), nn.Linear(2, 2), nn.Parameter(torch.zeros(5))
        def forward(self, x): return self.body(x) + self.shift.sum()  # which a softmax does not see
    model = build(Odd)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layered = layer_eigenpairs(model, 3, data=(X, Y))
    assert layered.names == ("(model)", "body", "unused")
    for layer in ("(model)", "unused"):
        assert layered[layer].values.abs().max() < 1e-12
        assert layered.share[layered.names.index(layer)].abs() < 1e-12
    assert layered["body"].values.min() > 0


def test_fewer_parameters_than_pairs():
    layered = layer_eigenpairs(Objective(mlp(), (X, Y)), 12, by="parameter")
    assert [len(layered[n]) for n in layered.names] == [12, 5, 12, 4]
    assert layered.values.shape == (4, 12) and layered.values.isnan().sum(1).tolist() == [0, 7, 0, 8]
    for t, n in zip(layered.traces, layered.names):  # all pairs are known: so is the trace
        if len(layered[n]) < 12: assert_close(t.value, layered[n].values.sum().item()); assert t.standard_error < 1e-9


def test_layers_that_are_not_stretches():
    "Biases and weights of all layers: vectors in the whole, traces, and what is left out."
    model = mlp()
    objective = Objective(model, (X, Y))
    layered = layer_eigenpairs(objective, 2, by=["*.bias"], n_probes=200)
    dense = HessianOperator(objective).to_dense()
    biases = torch.cat([torch.full((p.numel(),), n.endswith("bias")) for n, p in objective.params.items()])
    assert_close(layered["*.bias"].values, torch.linalg.eigvalsh(dense[biases][:, biases]).flip(0)[:2])
    V = layered.whole("*.bias")
    assert V.shape == (2, objective.n_params) and not V[:, ~biases].any()
    assert_close((V @ dense * V).sum(1), layered["*.bias"].values)
    total, own = layered.total, layered.traces[0]
    assert abs(total.value - dense.trace().item()) < 4 * total.standard_error
    assert abs(own.value - dense.diagonal()[biases].sum().item()) < 4 * own.standard_error
    assert 0 < layered.share.item() < 1


@pytest.mark.parametrize("case", ["language", "mlp"])
def test_standard_errors_of_traces_hold(case):
    model, data = CASES[case]()
    objective = Objective(model, data)
    layers, blocks = group_params(objective.params), Blocks(objective)
    exact = [blocks.operator(names).diagonal().sum().item() for names in layers.values()]
    pairs = layer_eigenpairs(objective, 1, tol=1e-3, fisher=False, n_probes=0).pairs
    found = [block_traces(blocks.whole(), objective.params, layers, pairs, 16, seeded(seed)) for seed in range(40)]
    for i in range(len(exact) + 1):  # and for the whole
        each = [traces[i] if i < len(exact) else total for traces, total in found]
        off = torch.tensor([t.value for t in each]) - (exact[i] if i < len(exact) else sum(exact))
        square = off.square().mean().item(), torch.tensor([t.standard_error for t in each]).square().mean().item()
        if not square[1]: assert not off.any()  # nothing to estimate
        else: assert off.mean().abs() < 4 * (square[1] / 40) ** .5 and .5 < square[0] / square[1] < 2


def test_gradients_of_single_examples():
    model, data = cnn()
    squares = squared_gradients(Objective(model, data))
    inputs, y = torch.cat([a for a, _ in data]), torch.cat([b for _, b in data])
    for n, p in model.named_parameters():
        each = [torch.autograd.grad(F.cross_entropy(model(inputs[i:i + 1]), y[i:i + 1]), p)[0] for i in range(len(y))]
        assert_close(squares[n], sum(g.square().sum() for g in each).item() / len(y))


def test_a_part_is_an_objective():
    model, data = cnn()
    whole = Objective(model, data, weight_decay=.1)
    part, alone = Part(whole, ["5.weight"]), Objective(model, data, params="5.weight", weight_decay=.1)
    theta = part.theta + .1
    assert_close(part.at(theta).grad(), alone.grad(theta))
    assert_close(part.value(theta) - part.value(), alone.value(theta) - alone.value())
    assert_close(part.to(torch.float32).grad().double(), alone.grad(), rtol=1e-5, atol=1e-6)
    pairs, op = top_eigenpairs(HessianOperator(alone), 2), Blocks(whole).operator(["5.weight"])
    assert_close(op.matvec(theta), HessianOperator(alone).matvec(theta))
    assert part.value() == whole.value() and HessianOperator(part).shape == (12, 12)
    assert_close(sampling_error(HessianOperator(part), pairs).standard_error,
                 sampling_error(HessianOperator(alone), pairs).standard_error)


def test_progress_counts_everything_and_can_stop(capsys):
    objective, told = Objective(mlp(), (X, Y)), []
    layered = layer_eigenpairs(objective, 2, by="parameter", progress=lambda n, pairs: told.append((n, pairs)))
    assert told == sorted(told) and told[-1][1] >= 6
    assert told[-1][0] <= layered.n_matvecs
    layer_eigenpairs(objective, 2, by="parameter", progress=True)
    bar = capsys.readouterr().err
    assert "4/4" in bar and bar.count("100%") == 1
    with pytest.warns(UserWarning, match="1 of 4 layers are in the result|2 of 4 layers are in the result"):
        some = layer_eigenpairs(objective, 2, by="parameter", progress=lambda n, pairs: n > 8)
    assert len(some) < 4
    with pytest.raises(TypeError, match="progress must be"): layer_eigenpairs(objective, 2, progress="yes")


@pytest.mark.parametrize("kwargs, error, message", [
    (dict(k=0), ValueError, "k must be at least 1"), (dict(k=1.5), TypeError, "k must be an int"),
    (dict(tol=2.), ValueError, "tol must be below 1"), (dict(which="XX"), ValueError, "which must be one of"),
    (dict(curvature="kfac"), ValueError, "curvature must be one of"),
    (dict(n_probes=1), ValueError, "no standard error"),
    (dict(by="nothing.*"), ValueError, "matches no parameter"), (dict(by=["*", "0.*"]), ValueError, "in two layers"),
    (dict(generator=3), TypeError, "generator must be"), (dict(start=None, nonsense=1), TypeError, "nonsense"),
])
def test_refused_before_any_work(kwargs, error, message):
    with pytest.raises(error, match=message): layer_eigenpairs(Objective(mlp(), (X, Y)), **{"k": 2, **kwargs})


def test_which_block_it_was():
    "An error in one block's search names the layer."
    objective = Objective(mlp(), (X, Y))
    with pytest.raises(ValueError) as caught: layer_eigenpairs(objective, 3, max_matvecs=2)
    assert any("layer '0'" in note for note in caught.value.__notes__)


def test_wrong_derivatives_are_found_once_for_all():
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x ** 3
        @staticmethod
        def backward(ctx, g): return 2 * ctx.saved_tensors[0] ** 2 * g
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)
        def forward(self, x): return self.b(Rounded.apply(self.a(x)))
    with pytest.raises(ValueError, match="derivatives of this model are wrong"):
        layer_eigenpairs(build(Wrong), 1, data=(X, Y))


def test_table():
    layered = layer_eigenpairs(Objective(mlp(), (X, Y)), 4)
    text = repr(layered)
    assert "2/2 blocks converged" in text and len(text.splitlines()) == 4 and "lambda_3 ..." in text
    row = layered.rows()[1]
    assert row["layer"] == "2" and row["parameters"] == 24 and len(row["values"]) == 4 and row["fisher"] > 0
    bare = layer_eigenpairs(Objective(mlp(), (X, Y)), 1, n_probes=0, fisher=False)
    assert bare.total is None and bare.share.isnan().all() and bare.fisher.isnan().all() and "nan" in repr(bare)
    with pytest.raises(KeyError, match="no layer 'x'"): layered.whole("x")
    assert layered.values.dtype == F64
