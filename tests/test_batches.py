"Data as people have it, with small stand-ins for the libraries: the value of plain torch, or plain words."
import dataclasses
import random
import warnings
from collections import UserDict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from conftest import F64, build, quiet, randn, untouched
from hessnb.boundary.alignment import align
from hessnb.curvature.batches import Whole
from hessnb.curvature.example_grads import example_grads
from hessnb.curvature.gauss_newton import GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.trace import trace

N, D, C = 22, 3, 4
X, Y, SIZES = randn(N, D, seed=1), torch.arange(N) % C, (8, 8, 5, 1)


class Net(nn.Module):
    "A model called by name, with a mask."
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(D, 5), nn.Linear(5, C)
    def forward(self, x, mask=None):
        h = torch.tanh(self.a(x))
        return self.b(h if mask is None else h * mask[:, None])


def net(): return build(Net)


def dense(model, value):
    "The Hessian by plain autograd."
    params = list(model.parameters())
    flat = lambda gs: torch.cat([g.reshape(-1) for g in gs])
    grad = flat(torch.autograd.grad(value, params, create_graph=True))
    options = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.stack([flat(torch.autograd.grad(g, params, **options)) for g in grad])


def agrees(model, data, value, **kwargs):
    "Value and Hessian are those of plain torch."
    with untouched(model), quiet(): objective = Objective(model, data, **kwargs)
    assert objective.value() == pytest.approx(value.item(), rel=1e-12)
    with quiet():
        assert_close(HessianOperator(objective).to_dense(), dense(model, value), rtol=1e-9, atol=1e-12)
    return objective


EXPECTED = lambda model: F.cross_entropy(model(X), Y)
PARTS = list(zip(X.split(SIZES), Y.split(SIZES)))


class Encoding(UserDict):
    "As tokenisers give it: a mapping that moves, with attributes."
    def to(self, device): return self
    def __getattr__(self, name):
        if name == "data": raise AttributeError(name)
        return self.data[name]


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    labels: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    labels: torch.Tensor
    x: torch.Tensor


Named = namedtuple("Named", "x y")
Turned = namedtuple("Turned", "labels x")
CONTAINERS = {
    "UserDict": lambda x, y: UserDict(x=x, labels=y), "encoding": lambda x, y: Encoding(x=x, labels=y),
    "dataclass": Sample, "slotted": lambda x, y: Slotted(y, x), "namedtuple": Named, "turned": lambda x,
    y: Turned(y, x),
    "label_ids": lambda x, y: dict(x=x, label_ids=y), "arrays": lambda x, y: dict(x=x.numpy(), labels=y.numpy()),
    "lists": lambda x, y: dict(x=x.tolist(), labels=y.tolist()), "list": lambda x, y: [x, y],
    "tuple of labels": lambda x, y: (x, tuple(y.tolist())),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    model = net()
    agrees(model, [CONTAINERS[name](x, y) for x, y in PARTS], EXPECTED(model))


UNPACKED = {
    "another name": (lambda x, y: {"x": x, "z": y}, lambda b: (b["x"], b["z"])),
    "ids beside": (lambda x, y: {"x": x, "labels": y, "id": ["a"] * len(x)}, lambda b: ({"x": b["x"]}, b["labels"])),
    "ids in a tuple": (lambda x, y: (["a"] * len(x), x, y, None), lambda b: (b[1], b[2])),
    "an object": (lambda x, y: SimpleNamespace(x=x, y=y, name="one"), lambda b: (b.x, b.y)),
    "an encoding": (lambda x, y: Encoding(x=x, labels=y), lambda b: (Encoding(x=b.x), b.labels)),
    "list of pairs": (lambda x, y: list(zip(x, y)), lambda b: (torch.stack([x for x, _ in b]),
                                                               torch.stack([t for _, t in b]))),
    "list of dicts": (lambda x, y: [{"x": a, "y": b} for a, b in zip(x, y)],
                      lambda b: (torch.stack([r["x"] for r in b]), torch.stack([r["y"] for r in b]))),
    "a list for a pair": (lambda x, y: (x, y), lambda b: [b[0], b[1]]),
}


@pytest.mark.parametrize("name", UNPACKED)
def test_unpacked(name):
    make, unpack = UNPACKED[name]
    model = net()
    agrees(model, [make(x, y) for x, y in PARTS], EXPECTED(model), unpack=unpack)


def test_autoencoders_have_no_target():
    model = build(lambda: nn.Linear(D, D))
    data = DataLoader(TensorDataset(X), batch_size=8)
    agrees(model, data, F.mse_loss(model(X), X), loss="mse_loss", unpack=lambda b: (b[0], b[0]))
    with pytest.raises(TypeError, match=r"got list of 1; without a target, unpack=lambda b: \(b\[0\], b\[0\]\)"):
        Objective(model, data, "mse_loss")


# --- data sets of other libraries -----------------------------------------------------------------
def as_double(v): return v if isinstance(v, str) else torch.as_tensor(v, dtype=F64 if isinstance(v, list) else None)


class Table:
    "Rows as dicts of lists and numbers, indexable, as data sets of text are; no Dataset of torch."
    def __init__(self, columns, tensors=False): self.columns, self.tensors = columns, tensors
    def __len__(self): return len(next(iter(self.columns.values())))
    def __getitem__(self, i):
        if isinstance(i, str): return self.columns[i]
        rows = {k: v[i] for k, v in self.columns.items()}
        return {k: as_double(v) for k,
                v in rows.items()} if self.tensors else rows
    def __iter__(self): return (self[i] for i in range(len(self)))
    def with_format(self, kind): return Table(self.columns, kind == "torch")
    column_names = property(lambda self: list(self.columns))


class Flow:
    "The same, to be read from the start only."
    def __init__(self, table): self.table = table
    def __iter__(self): return iter(self.table)
    def with_format(self, kind): return Flow(self.table.with_format(kind))


class Rows:
    "Something to be indexed, of another library."
    def __len__(self): return N
    def __getitem__(self, i):
        if i >= N: raise IndexError(i)
        return X[i].numpy(), int(Y[i])


class OfLists(Dataset):
    def __len__(self): return N
    def __getitem__(self, i): return {"x": X[i].tolist(), "label": int(Y[i])}


TABLE = Table({"x": X.tolist(), "labels": Y.tolist()})
DATA_SETS = {
    "table": TABLE, "table of tensors": TABLE.with_format("torch"), "flow": Flow(TABLE),
    "flow of tensors": Flow(TABLE).with_format("torch"), "rows": Rows(), "rows that are lists": OfLists(),
    "list of pairs": [(x, y) for x, y in zip(X, Y)], "list of dicts": [TABLE[i] for i in range(N)],
    "two rows": [(X[0], 0), (X[1], 1)],
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets(name):
    model, n = net(), 2 if name == "two rows" else N
    expected = F.cross_entropy(model(X[:n]), Y[:n])
    for batch_size in (None, 7):
        assert agrees(model, DATA_SETS[name], expected, batch_size=batch_size).n_examples == n


def test_a_table_in_a_loader():
    model = net()
    agrees(model, DataLoader(TABLE.with_format("torch"), batch_size=8), EXPECTED(model))
    with pytest.raises(TypeError, match=r"batch\['x'\] is a list of 3 tensors of shape \(8,\).*with_format\('torch'\)"):
        Objective(model, DataLoader(TABLE, batch_size=8))
    upright = lambda b: ({"x": torch.stack(b["x"], 1)}, b["labels"])
    agrees(model, DataLoader(TABLE, batch_size=8), EXPECTED(model), unpack=upright)


def test_text_beside_the_numbers():
    "A column of text is left out, as transformers' collators do; text in another place is named."
    table = Table({"text": ["a b"] * N, "x": X.tolist(), "label": Y.tolist()})
    model = net()
    agrees(model, table, EXPECTED(model))
    with pytest.raises(TypeError, match=r"holds str in batch\[0\]\[0\].*leave it out with unpack=.*batch\['labels'\]"):
        Objective(model, [(["a b"] * N, X, Y)])
    agrees(model, table, EXPECTED(model), unpack=lambda b: ({"x": b["x"]}, b["label"]))


def test_rows_of_different_lengths():
    ragged = [{"x": list(range(1 + i % 3)), "label": i % 2} for i in range(6)]
    with pytest.raises(ValueError, match=r"different shapes \(\(1,\), \(2,\), \(3,\)\).*collate_fn that pads"):
        Objective(net(), ragged)
    with pytest.raises(TypeError, match=r"got DatasetDict with \['train', 'test'\].*data\['train'\]"):
        Objective(net(), type("DatasetDict", (dict,), {})(train=TABLE, test=TABLE))


class Trainer:
    "What a trainer's loaders give: mappings with labels, and things for the book-keeping."
    def __init__(self, shuffle): self.shuffle = shuffle
    def loader(self):
        rows = [{"x": X[i], "labels": Y[i], "idx": i} for i in range(N)]
        collate = lambda rows: Encoding(x=torch.stack([r["x"] for r in rows]),
                                        labels=torch.stack([r["labels"] for r in rows]))
        return DataLoader(rows, batch_size=6, collate_fn=collate, sampler=RandomSampler(rows) if self.shuffle else None)


def test_the_trainers_loaders():
    model = net()
    agrees(model, Trainer(False).loader(), EXPECTED(model))
    with pytest.raises(RuntimeError, match="the DataLoader shuffles.*shuffle=False"):
        Objective(model, Trainer(True).loader())


# --- graphs -----------------------------------------------------------------------------------------
class Store:
    def __init__(self, owner, **held): self.held, self.owner = held, owner  # a circle, as graph libraries have it


class Graph:
    "Several graphs as one: nodes, edges, the number of its graph for each node; attributes from a store."
    def __init__(self, **held): self.__dict__["store"] = Store(self, **held)
    def __getattr__(self, name):
        try: return self.__dict__["store"].held[name]
        except KeyError: raise AttributeError(name) from None
    def __iter__(self): return iter(self.__dict__["store"].held.items())
    def to(self, device): return self


class GraphNet(nn.Module):
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(D, 5), nn.Linear(5, C)
    def spread(self, h, edges): return h.index_add(0, edges[1], h[edges[0]])
    def forward(self, x, edges, batch):
        h = torch.tanh(self.spread(self.a(x), edges))
        return self.b(h.new_zeros(int(batch.max()) + 1, 5).index_add(0, batch, h))


class OfGraphs(GraphNet):
    def forward(self, g): return super().forward(g.x, g.edge_index, g.batch)


def graphs(n, seed, dtype=F64):
    g, nodes = torch.Generator().manual_seed(seed), 4 * n
    batch = torch.arange(nodes) // 4
    edges = torch.stack([torch.arange(nodes), 4 * batch + torch.randint(0, 4, (nodes,), generator=g)])
    return Graph(x=randn(nodes, D, seed=seed).to(dtype), edge_index=edges, batch=batch, y=torch.arange(n) % C)


GRAPHS = [graphs(n, n) for n in (5, 5, 3, 1)]
APART = {"three tensors": (GraphNet, lambda b: ((b.x, b.edge_index, b.batch), b.y)),
         "whole": (GraphNet, lambda b: (Whole((b.x, b.edge_index, b.batch)), b.y)),
         "itself": (OfGraphs, lambda b: (b, b.y))}


@pytest.mark.parametrize("name", APART)
def test_graphs(name):
    make, unpack = APART[name]
    model = build(make)
    run = lambda g: GraphNet.forward(model, g.x, g.edge_index, g.batch)
    value = sum(F.cross_entropy(run(g), g.y, reduction="sum") for g in GRAPHS) / 14
    for kwargs in ({}, dict(memory_budget=0)):
        with warnings.catch_warnings(): objective = agrees(model, GRAPHS, value, unpack=unpack, **kwargs)
    assert objective.n_examples == 14 and [len(t) for _, t in objective.micro_batches()] == [5, 5, 3, 1]
    H = dense(model, value)
    assert trace(HessianOperator(objective), exact=True).value == pytest.approx(H.trace().item(), rel=1e-9)
    assert GGNOperator(objective).to_dense().shape == H.shape
    assert_close(objective.grad(), torch.cat([g.reshape(-1) for g in torch.autograd.grad(value,
            list(model.parameters()))]))
    inputs = unpack(GRAPHS[0])[0]
    for call in (lambda: align(objective, inputs, H[:1]), lambda: objective.predict(inputs),
                 lambda: objective.examples(),
                 lambda: example_grads(objective, inputs, GRAPHS[0].y)):
        with pytest.raises((TypeError, ValueError), match="never (to be )?cut"): call()


def test_graphs_in_another_precision():
    "The copy in double precision leaves the user's graph as it is."
    single = [graphs(5, 5, torch.float32)]
    model = build(OfGraphs).float()
    objective = Objective(model, single, unpack=lambda b: (b, b.y), dtype=F64)
    double = build(OfGraphs)
    double.load_state_dict(model.state_dict())
    single[0].store.held["x"] = single[0].x.double()
    assert objective.value() == pytest.approx(F.cross_entropy(double(single[0]), single[0].y).item(), rel=1e-12)


def test_one_graph_with_a_label_for_every_node():
    class Nodes(GraphNet):
        def forward(self, x, edges): return self.b(torch.tanh(self.spread(self.a(x), edges)))
    class Dense(Nodes):
        def forward(self, x, adjacency): return self.b(torch.tanh(adjacency @ self.a(x)))
    edges = torch.stack([torch.arange(N), torch.arange(N).flip(0)])
    adjacency = torch.zeros(N, N, dtype=F64).index_put((edges[1], edges[0]), torch.ones(N, dtype=F64)) + torch.eye(N)
    graph = SimpleNamespace(x=X, edges=edges, adjacency=adjacency, sparse=adjacency.to_sparse(), y=Y)
    model = build(Nodes)
    agrees(model, [graph], F.cross_entropy(model(X, edges), Y), unpack=lambda b: ((b.x, b.edges), b.y))
    model = build(Dense)
    for adjacency in ("adjacency", "sparse"):
        agrees(model, [graph], F.cross_entropy(model(X, graph.adjacency), Y),
               unpack=lambda b, name=adjacency: (Whole((b.x, getattr(b, name))), b.y))


def test_graphs_are_asked_for_in_words():
    with pytest.raises(TypeError, match=r"got Graph with .*unpack=lambda b: \(b, b.y\); or pass unpack="):
        Objective(build(OfGraphs), GRAPHS)
    with pytest.raises(TypeError, match=r"rows of the data set are Graph, which only their own loader.*unpack="):
        class Graphs(Dataset):
            def __len__(self): return 4
            def __getitem__(self, i): return GRAPHS[i]
        Objective(build(OfGraphs), Graphs())
    with pytest.raises(RuntimeError, match="differs from pass to pass"):
        class Sampled:
            def __iter__(self): yield graphs(5, random.randrange(10**6))
        Objective(build(OfGraphs), Sampled(), unpack=lambda b: (b, b.y))


# --- loaders ------------------------------------------------------------------------------------------
TENSORS = TensorDataset(X, Y)
EQUAL = [1 / N] * N


@pytest.mark.parametrize("make, words", [
    (lambda: DataLoader(TENSORS, 8, sampler=WeightedRandomSampler(EQUAL, N)), "its WeightedRandomSampler draws anew"),
    (lambda: DataLoader(TENSORS, 8, sampler=SubsetRandomSampler(range(N))), "its SubsetRandomSampler draws anew"),
    (lambda: DataLoader(TENSORS, batch_sampler=BatchSampler(RandomSampler(TENSORS), 8, False)),
     "its RandomSampler draws"),
    (lambda: DataLoader(TENSORS, 8, sampler=WeightedRandomSampler(EQUAL, N, generator=torch.Generator())),
     "pass to pass"),
])
def test_samplers_that_shuffle(make, words):
    with pytest.raises(RuntimeError, match=words): Objective(net(), make())


@pytest.mark.parametrize("make", [
    lambda: DataLoader(TENSORS, 8, sampler=list(range(N))), lambda: DataLoader(TENSORS, batch_sampler=[[0, 1, 2],
            list(range(3, N))]), lambda: DataLoader(TENSORS, 8, collate_fn=lambda rows: {"x": torch.stack(
                [x for x, _ in rows]), "labels": [int(t) for _, t in rows]}),
    lambda: DataLoader(TENSORS, 1), lambda: DataLoader(TENSORS, 8, generator=torch.Generator())])
def test_loaders(make):
    model = net()
    agrees(model, make(), EXPECTED(model))


def test_workers():
    model = net()
    for persistent in (False, True):
        loader = DataLoader(TENSORS, 8, num_workers=1, persistent_workers=persistent)
        first = [x for x, _ in loader]
        assert Objective(model, loader).value() == pytest.approx(EXPECTED(model).item(), rel=1e-12)
        assert all(torch.equal(a, b) for a, (b, _) in zip(first, loader))


def test_what_a_loader_leaves_out():
    model = net()
    dropping = DataLoader(TENSORS, batch_sampler=BatchSampler(SequentialSampler(TENSORS), 8, drop_last=True))
    for loader in (dropping, DataLoader(TENSORS, 8, drop_last=True)):
        with pytest.warns(UserWarning, match="drop_last=True: 6 of 22 examples are left out") as caught:
            objective = Objective(model, loader)
        assert objective.n_examples == 16 and caught[0].filename == __file__
    shared = DataLoader(TENSORS, 8, sampler=DistributedSampler(TENSORS, num_replicas=2, rank=0, shuffle=False))
    with pytest.warns(UserWarning, match="one of 2 shards"): assert Objective(model, shared).n_examples == 11


class Endless(IterableDataset):
    def __iter__(self):
        for i in range(N): yield {"x": X[i] + random.random(), "y": Y[i]}


class Table2:
    "A table with columns: as arrays it is what it holds."
    def __init__(self, values): self.values = values
    def __array__(self, dtype=None, copy=None): return np.asarray(self.values, dtype=dtype)
    def __len__(self): return len(self.values)
    def __iter__(self): return iter("abc")  # the names of the columns


def test_arrays_and_tables():
    model = net()
    for data in ((Table2(X.numpy()), Table2(Y.numpy())), (X.numpy(), Table2(Y.numpy())), (X, tuple(Y.tolist())),
                 (X.tolist(), [np.int64(t) for t in Y]), [(Table2(X.numpy()), Table2(Y.numpy()))]):
        agrees(model, data, EXPECTED(model))
    single = build(Net).float()
    assert Objective(single, (X.numpy(), Y)).value() == Objective(single, (X.float(), Y)).value()
    with pytest.raises(TypeError, match="holds Table2.*cannot be a tensor"):
        Objective(model, (Table2(np.array([["a", 1.]] * N, dtype=object)), Y))
    with pytest.raises(TypeError, match="no numbers \\('cat'\\)"): Objective(model, (X, Table2(np.array(["cat"] * N))))


@pytest.mark.parametrize("data, error, words", [
    (Endless(), RuntimeError, "differs from pass to pass"),
    (((x, y) for x, y in PARTS), TypeError, "an iterator.*read only once: pass a list of batches"),
    (zip(X, Y), TypeError, "read only once"),
    ({"x": X, "labels": Y}, TypeError, r"got dict with \['x', 'labels'\]: one batch goes into a list, \[batch\]"),
    ([(X[:0], Y[:0])], ValueError, "data is empty"),
    ([(X, None)], TypeError, r"holds NoneType.*unpack="), ([(X, Y, None)], TypeError, "unpack="),
    ([(X, None, Y)], TypeError, r"holds NoneType in batch\[1\].*unpack="),
    ([(X, Y[:5])], ValueError, r"22 inputs and labels or targets of shape \(5,\); they must agree"),
    ([((X, X[:5]), Y)], ValueError, r"agree in the first dimension, got sizes \[5, 22\].*Whole"),
    ([(X.to_sparse(), Y)], TypeError, r"sparse tensor.*to_dense\(\), or Whole"),
    ([(X, {"a": Y})], TypeError, "target of a batch must be one tensor, got dict: join its parts with unpack="),
    ([(X, (Y, Y))], TypeError, "must be one tensor, got tuple"),
    (DataLoader(TENSORS, batch_size=None), ValueError, r"of shape \(\).*single rows.*batch_size="),
    (3, TypeError, "got int"), (lambda: PARTS, TypeError, "got function"),
])
def test_plain_words(data, error, words):
    with pytest.raises(error, match=words): Objective(net(), data)


@pytest.mark.parametrize("unpack, words", [
    (lambda b: b[0], "unpack= must return .inputs, target., got Tensor"), (lambda b: (*b, 1), "got tuple of 3"),
    (lambda b: None, "got NoneType")])
def test_unpack_gives_a_pair(unpack, words):
    with pytest.raises(TypeError, match=words): Objective(net(), PARTS, unpack=unpack)


def test_batches_of_different_lengths():
    "Sums over padded batches of several lengths are right; all examples in one tensor there are none."
    class Pooled(Net):
        def forward(self, x): return super().forward(x.sum(1))
    model, data = build(Pooled), [(randn(4, 6, D), Y[:4]), (randn(5, 3, D), Y[:5])]
    value = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in data) / 9
    objective = agrees(model, data, value)
    with pytest.raises(ValueError, match=r"different shapes \(\(3, 3\), \(6, 3\)\) cannot be laid in one tensor"):
        objective.examples()


# --- classes first or last --------------------------------------------------------------------------
K = 4
TOKENS, LABELS = randn(6, K, D, seed=3), torch.arange(6 * K).reshape(6, K) % K


class Classes(nn.Module):
    def __init__(self, first, mixing=False): super().__init__(); self.first, self.f = first, nn.Linear(D, K)
    def forward(self, x): return self.f(x).movedim(-1, 1) if self.first else self.f(x)


class Fixed(Classes):
    "It takes sequences of one length only."
    def __init__(self, first): super().__init__(first); self.place = nn.Parameter(torch.ones(K, D))
    def forward(self, x): return super().forward(x + self.place)


def test_as_many_tokens_as_classes():
    model = build(lambda: Classes(True))
    agrees(model, (TOKENS, LABELS), F.cross_entropy(model(TOKENS), LABELS))
    with pytest.raises(ValueError, match=r"classes in the last axis \(one token less gives \(6, 3, 4\)\).*movedim\(-1, "
                                         r"1\)"):
        Objective(build(lambda: Classes(False)), (TOKENS, LABELS))
    for first in (True, False):
        with pytest.raises(ValueError, match="fit with the classes in axis 1.*does not tell which: say it in a "
                                             "function"):
            Objective(build(lambda: Fixed(first)), (TOKENS, LABELS))
        model = build(lambda: Fixed(first))
        said = lambda o, t: F.cross_entropy(o if first else o.movedim(-1, 1), t, reduction="none")
        agrees(model, (TOKENS, LABELS), said(model(TOKENS), LABELS).mean(), loss=said)


def test_classes_last_in_other_lengths():
    model = build(lambda: Classes(False))
    with pytest.raises(ValueError, match=r"\(6, 3\), expected \(6, 4\).*classes last.*movedim\(-1, 1\)"):
        Objective(model, (TOKENS[:, :3], LABELS[:, :3]))
    with pytest.raises(ValueError, match="sum to 1 over the last axis.*transpose"):
        Objective(model, (TOKENS[:, :3], randn(6, 3, K).softmax(-1)))
    images, marks = randn(5, 2, 3, 3), torch.arange(45).reshape(5, 3, 3) % 3
    model = build(lambda: nn.Conv2d(2, 3, 3, padding=1))
    agrees(model, (images, marks), F.cross_entropy(model(images), marks))


def test_a_graph_that_was_written_to():
    "Also inside of an object: neither the old nor the new numbers, but an error."
    held = [graphs(5, 5), graphs(3, 3)]
    objective = Objective(build(OfGraphs), held, unpack=lambda b: (b, b.y))
    held[1].x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"): objective.grad()


def test_a_model_that_writes_to_its_graph():
    class Writes(OfGraphs):
        def forward(self, g):
            g.x.mul_(2)
            return super().forward(g)
    held = [graphs(5, 5)]
    before = held[0].x.clone()
    try: Objective(build(Writes), held, unpack=lambda b: (b, b.y)).grad()
    except RuntimeError as e: assert "in place" in str(e)
    assert torch.equal(held[0].x, before)


@pytest.mark.parametrize("y", [(Y, Y), None, ["a"] * N, {"a": Y}])
def test_targets_beside_the_inputs(y):
    with pytest.raises(TypeError, match=r"data is \(X, y\) with a \w+ for y: expected one tensor or array"):
        Objective(net(), (X, y))


def test_rows_with_lists_of_words():
    rows = [{"x": X[i], "label": int(Y[i]), "tokens": ["a"] * (1 + i % 3)} for i in range(N)]
    with pytest.raises(TypeError, match=r"holds str in batch\['tokens'\]\[0\]\[0\].*unpack="): Objective(net(), rows)
    model = net()
    agrees(model, rows, EXPECTED(model), unpack=lambda b: (b["x"], b["label"]))
    with pytest.raises(ValueError, match="different numbers of parts"):
        Objective(net(), [((X[0], X[1]), 0), ((X[0],), 1)])


def test_what_cannot_be_cut_is_named():
    "Rows without an axis for examples; a graph whose tensors happen to agree."
    model, rows = build(lambda: nn.Linear(D, D)), [(x, x) for x in X]
    with pytest.raises(ValueError, match=r"not two examples cut out of it .*Single rows need a loader.*Whole\("):
        Objective(model, rows, "mse_loss")
    class Dense(Net):
        def forward(self, x, adjacency): return super().forward(adjacency @ x)
    adjacency = randn(N, N, seed=7)
    with pytest.raises(ValueError, match=r"not two examples cut out of it .*a graph.*Whole\("):
        Objective(build(Dense), ((X, adjacency), Y))
    model = build(Dense)
    agrees(model, [(X, adjacency, Y)], F.cross_entropy(model(X, adjacency), Y), unpack=lambda b: (Whole(b[:2]), b[2]))
