"Models and data as other libraries have them: mappings with attributes, their collators and loaders, tokens, halves."
import copy
import warnings
from collections import OrderedDict, UserDict
from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from conftest import F64, build, randn, seeded
from hessnb.boundary.examine import examine
from hessnb.curvature.cross_entropy import TokenLoss
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.params import WithOffset
from hessnb.curvature.top import top_eigenpairs

VOCABULARY, LENGTH, WIDTH, PAD = 11, 6, 4, 0


# --- stand-ins: what the real ones were read to do ---------------------------------------------------
class BatchEncoding(UserDict):
    "Of tokenisers: a mapping that is no dict, its items also as attributes, rows by number."
    def __getitem__(self, item):
        if isinstance(item, str): return self.data[item]
        raise KeyError("Indexing with integers is not available when using Python based tokenizers")

    def __getattr__(self, item):
        try: return self.__dict__["data"][item]
        except KeyError: raise AttributeError(item) from None


class ModelOutput(OrderedDict):
    "An ordered dict that is a dataclass, holds what is not None, and is indexed by number, too."
    def __post_init__(self):
        for f in fields(self):
            if getattr(self, f.name) is not None: self[f.name] = getattr(self, f.name)

    def __getitem__(self, k): return dict(self.items())[k] if isinstance(k, str) else tuple(self.values())[k]


@dataclass
class CausalLMOutput(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: tuple | None = None


class TinyLM(nn.Module):
    "Embedding, one causal mixing of the places before, a head; a loss of its own if it is given labels."
    def __init__(self, causal=True):
        super().__init__()
        self.causal, self.wte = causal, nn.Embedding(VOCABULARY, WIDTH)
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        h = self.wte(input_ids) * mask[..., None]
        past = (h.cumsum(1) if self.causal else h.sum(1, keepdim=True)) / input_ids.shape[1]
        logits = self.head(torch.tanh(self.mix(past) + h))
        return CausalLMOutput(None if labels is None else self.own_loss(logits, labels), logits, (past, past))

    @staticmethod
    def own_loss(logits, labels):
        return F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))


class Classifier(TinyLM):
    "`...ForSequenceClassification`."
    def forward(self, input_ids=None, attention_mask=None, labels=None):
        return CausalLMOutput(logits=super().forward(input_ids, attention_mask).logits[:, -1, :3])


class TextData:
    "A `datasets.Dataset`: no class of torch; rows are dicts in its format, slices and columns by name."
    def __init__(self, columns, kind=None): self.columns, self.kind = columns, kind
    def __len__(self): return len(next(iter(self.columns.values())))
    def with_format(self, kind): return TextData(self.columns, kind)

    def formatted(self, v):
        if self.kind != "torch" or isinstance(v, str) or isinstance(v, list) and isinstance(v[0], str): return v
        try: return torch.tensor(v)
        except ValueError: return [torch.tensor(row) for row in v]  # of several lengths

    def __getitem__(self, key):
        if isinstance(key, str): return self.formatted(self.columns[key])
        pick = (lambda c: [c[i] for i in key]) if isinstance(key, list) else lambda c: c[key]
        return {name: self.formatted(pick(c)) for name, c in self.columns.items()}

    def __getitems__(self, keys):
        batch = self[keys]
        return [{name: c[i] for name, c in batch.items()} for i in range(len(keys))]


class SeedableRandomSampler(RandomSampler):
    "Of accelerate: another order in every epoch."
    epoch = 0
    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.epoch)
        yield from super().__iter__()
        self.epoch += 1


class BatchSamplerShard(BatchSampler):
    "Of accelerate: every second batch, for one of two processes."
    def __init__(self, batch_sampler): self.batch_sampler, self.batch_size = batch_sampler, batch_sampler.batch_size
    def __iter__(self): yield from list(self.batch_sampler)[::2]
    def __len__(self): return (len(self.batch_sampler) + 1) // 2


class DataLoaderShard:
    "Of accelerate: not a `DataLoader`, but says so; hands on what it is asked for."
    def __init__(self, dataset, **kwargs): self.base_dataloader = DataLoader(dataset, **kwargs)
    def __getattr__(self, name):
        if name == "base_dataloader": raise AttributeError
        return getattr(self.base_dataloader, name)

    @property
    def __class__(self): return self.base_dataloader.__class__
    def __len__(self): return len(self.base_dataloader)
    def __iter__(self): yield from self.base_dataloader


def collate(rows):
    "`default_data_collator`: 'label' becomes 'labels', text is left out, everything else is stacked."
    batch = {"labels": torch.tensor([int(r["label"]) for r in rows])} if "label" in rows[0] else {}
    kept = [k for k, v in rows[0].items() if k != "label" and v is not None and not isinstance(v, str)]
    return {**batch, **{k: torch.stack([torch.as_tensor(r[k]) for r in rows]) for k in kept}}


def collate_for_lm(rows):
    "`DataCollatorForLanguageModeling(mlm=False)`: padded to the longest, labels are the tokens, -100 where padded."
    longest = max(len(r["input_ids"]) for r in rows)
    ids = torch.tensor([list(r["input_ids"]) + [PAD] * (longest - len(r["input_ids"])) for r in rows])
    return BatchEncoding(input_ids=ids, attention_mask=(ids != PAD).long(), labels=ids.where(ids != PAD, -100))


IDS = torch.randint(1, VOCABULARY, (13, LENGTH), generator=seeded(3))
LABELS = torch.arange(13) % 3
ROWS = TextData({"text": ["some words"] * 13, "input_ids": IDS.tolist(), "label": LABELS.tolist()})
RAGGED = [{"input_ids": row[:n].tolist()} for row, n in zip(IDS, [6, 6, 5, 4, 6, 2, 3, 4, 2, 2, 3, 5, 6])]
UNEVEN = [collate_for_lm(RAGGED[i:j]) for i, j in ((0, 5), (5, 6), (6, 13))]


def agrees(objective, model, loss):
    "Value, gradient and products of the Hessian are those of `loss()` by autograd."
    params, V = list(model.parameters()), randn(2, objective.n_params)
    flat = lambda parts: torch.cat([p.reshape(-1) for p in parts])
    grad = flat(torch.autograd.grad(loss(), params, create_graph=True))
    assert objective.value() == pytest.approx(loss().item(), rel=1e-12)
    assert_close(objective.grad(), grad.detach(), rtol=1e-10, atol=1e-12)
    products = torch.stack([flat(torch.autograd.grad(grad @ v, params, retain_graph=True)) for v in V])
    assert_close(HessianOperator(objective).matmat(V), products, rtol=1e-8, atol=1e-10)


# --- classification ----------------------------------------------------------------------------------
SHUFFLED = BatchSampler(SeedableRandomSampler(range(13)), 4, False)


@pytest.mark.parametrize("data", [
    ROWS, ROWS.with_format("torch"), DataLoader(ROWS, 5, collate_fn=collate),
    [BatchEncoding(input_ids=IDS[:8], labels=LABELS[:8]), BatchEncoding(input_ids=IDS[8:], labels=LABELS[8:])],
    (BatchEncoding(input_ids=IDS), LABELS),
    DataLoaderShard(ROWS, collate_fn=collate, batch_sampler=SHUFFLED),
    DataLoaderShard(ROWS, collate_fn=collate, batch_sampler=BatchSamplerShard(SHUFFLED)),
    DataLoaderShard(ROWS, collate_fn=collate, batch_sampler=BatchSampler(SequentialSampler(range(13)), 4, False)),
], ids=["rows", "rows of tensors", "collator", "encodings", "pair", "Trainer", "Trainer of two", "evaluation"])
def test_no_unpack_is_needed(data):
    model, state = build(Classifier), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective = Objective(model, data)
    agrees(objective, model, lambda: F.cross_entropy(model(input_ids=IDS).logits, LABELS))
    assert objective.n_examples == 13 and torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_put_in_order_is_read_as_it_is():
    "A sampler of some examples is somebody's choice of data; one that draws anew has to be mended."
    some = BatchSampler([1, 2, 5, 7], 3, False)
    assert Objective(build(Classifier), DataLoaderShard(ROWS, collate_fn=collate, batch_sampler=some)).n_examples == 4
    drawn = BatchSampler(RandomSampler(range(13), replacement=True), 4, False)
    with pytest.raises(RuntimeError, match="differs from pass to pass"):
        Objective(build(Classifier), DataLoaderShard(ROWS, collate_fn=collate, batch_sampler=drawn))


# --- language models ---------------------------------------------------------------------------------
def shifted(model):
    "Mean over the labels that count and have a place before them, over all batches."
    total, n = 0., 0
    for b in UNEVEN:
        logits, y = model(b["input_ids"], b["attention_mask"]).logits[:, :-1], b["labels"][:, 1:]
        counts = y != -100
        total = total - logits.log_softmax(-1)[counts].gather(1, y[counts][:, None]).sum()
        n += int(counts.sum())
    return total / n


def test_causal_language_model():
    model = build(TinyLM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective = Objective(model, UNEVEN, "causal_lm")
    agrees(objective, model, lambda: shifted(model))
    assert "CrossEntropyLoss of the next token" in repr(objective)
    one = UNEVEN[0]
    own = model(**one).loss.item()  # what the model itself computes from labels=input_ids
    assert Objective(model, [one], "causal_lm").value() == pytest.approx(own, rel=1e-12)


def test_causal_language_model_from_a_loader():
    model, data = build(TinyLM), TextData({"input_ids": [r["input_ids"] for r in RAGGED]})
    sampler = BatchSampler(SeedableRandomSampler(range(13)), 13, False)
    loader = DataLoaderShard(data, collate_fn=collate_for_lm, batch_sampler=sampler)
    every = collate_for_lm(RAGGED)
    with torch.no_grad(): own = model(**every).loss.item()
    assert Objective(model, loader, "causal_lm").value() == pytest.approx(own, rel=1e-12)


def test_operators_of_tokens():
    "In its last layer the network is linear: the Gauss-Newton matrix is the Hessian, and the Fisher matrix, too."
    model = build(TinyLM)
    objective = Objective(model, UNEVEN, "causal_lm", params="head.*")
    H, G = HessianOperator(objective).to_dense(), GGNOperator(objective).to_dense()
    assert_close(H, G, rtol=1e-9, atol=1e-12)
    drawn = FisherOperator(objective, generator=seeded(1), n_samples=200).to_dense()
    assert (drawn - G).norm() < .2 * G.norm()
    logits, y = model(UNEVEN[0]["input_ids"], UNEVEN[0]["attention_mask"]).logits[:, :-1], UNEVEN[0]["labels"][:, 1:]
    for module in (nn.CrossEntropyLoss(label_smoothing=.1), nn.CrossEntropyLoss(torch.rand(VOCABULARY, dtype=F64))):
        own = Objective(model, UNEVEN[:1], TokenLoss(module, shifted=True), params="head.*").value()
        assert own == pytest.approx(module(logits.reshape(-1, VOCABULARY), y.reshape(-1)).item(), rel=1e-12)


def test_labels_at_their_own_place():
    model = build(lambda: TinyLM(causal=False))
    marks = torch.where(IDS % 4 == 0, -100, IDS % 3)
    objective = Objective(model, [{"input_ids": IDS, "labels": marks}], "token_cross_entropy")
    agrees(objective, model, lambda: F.cross_entropy(model(IDS).logits.reshape(-1, VOCABULARY), marks.reshape(-1)))


def test_the_identity_task_is_said():
    model = build(TinyLM)
    with pytest.warns(UserWarning, match="asks the model to repeat its input.*loss='causal_lm'"):
        Objective(model, UNEVEN, "token_cross_entropy")
    with pytest.warns(UserWarning, match="asks the model to repeat its input"):
        Objective(model, UNEVEN, lambda o, t: F.cross_entropy(o.movedim(-1, 1), t, reduction="none"))
    ahead = [{**b, "labels": F.pad(b["labels"][:, 1:], (0, 1), value=-100)} for b in UNEVEN]
    with pytest.warns(UserWarning, match="shifts them once more"): Objective(model, ahead, "causal_lm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = Objective(model, ahead, "token_cross_entropy").value()
    assert right == pytest.approx(Objective(model, UNEVEN, "causal_lm").value(), rel=1e-12)


def test_what_is_refused():
    model = build(TinyLM)
    with pytest.raises(ValueError, match="loss='causal_lm' if it is the next label, loss='token_cross_entropy' if"):
        Objective(model, UNEVEN)
    with pytest.raises(ValueError, match=r"needs outputs \(B, T, C\) and labels \(B, T\), int64"):
        Objective(build(Classifier), ROWS, "causal_lm")
    with pytest.raises(ValueError, match="labels must lie in 0..10"):
        Objective(model, [{"input_ids": IDS, "labels": IDS + 5}], "causal_lm")
    with pytest.raises(ValueError, match="no example counts"):
        Objective(model, [{"input_ids": IDS[:, :1], "labels": IDS[:, :1]}], "causal_lm")


def test_an_examination_of_tokens():
    found = examine(build(TinyLM), UNEVEN[:1], loss="causal_lm", k=3, pairs=3)
    assert "one at each place" in found.missing["alignment"] and found.pairs.converged.all()
    with pytest.raises(ValueError, match="pad all batches to one length"):
        examine(build(TinyLM), UNEVEN, loss="causal_lm", k=3, pairs=3)


# --- weights in half precision -----------------------------------------------------------------------
def halved():
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    net[1].running_mean.copy_(torch.linspace(-1, 1, 8))
    for part, dtype in ((0, torch.bfloat16), (1, torch.bfloat16), (3, torch.float32), (4, torch.float16)):
        net[part].to(dtype)
    return net


X, Y = randn(40, 3, dtype=torch.float32), torch.arange(40) % 4


@pytest.mark.parametrize("make", [halved, lambda: halved().bfloat16(), lambda: halved().half()])
def test_curvature_from_halves_is_that_of_the_converted_model(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    before, full = copy.deepcopy(model.state_dict()), copy.deepcopy(model).float()
    ours, theirs = Objective(model, (X, Y)), Objective(full, (X, Y))
    assert ours.dtype == torch.float32 and "float32 from weights in " in repr(ours) and "from" not in repr(theirs)
    assert ours.value() == theirs.value() and torch.equal(ours.grad(), theirs.grad())
    v = randn(ours.n_params, dtype=torch.float32)
    assert torch.equal(HessianOperator(ours).matvec(v), HessianOperator(theirs).matvec(v))
    a, b = (top_eigenpairs(m, 3, data=(X, Y), tol=1e-3) for m in (model, full))
    assert torch.equal(a.values, b.values) and torch.equal(a.vectors, b.vectors)
    double = Objective(model, (X, Y), dtype=F64)
    assert_close(double.grad(), Objective(full.double(), (X, Y)).grad())
    for name, t in model.state_dict().items(): assert t.dtype == before[name].dtype and torch.equal(t, before[name])


def test_inputs_in_half_precision():
    model = halved().bfloat16()
    assert Objective(model, (X.bfloat16(), Y)).value() == Objective(copy.deepcopy(model).float(),
                                                                    (X.bfloat16().float(), Y)).value()


# --- checkpointed activations ------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        h = self.norm(x)
        x = x + self.heads(h, h, h, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self, how="plain", n=3, d=8):
        super().__init__()
        self.how, self.blocks, self.head = how, nn.ModuleList(Block(d) for _ in range(n)), nn.Linear(d, 3)

    def forward(self, x):
        if self.how == "sequential": x = checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
        else:
            for block in self.blocks:
                x = block(x) if self.how == "plain" else checkpoint(block, x, use_reentrant=self.how == "reentrant")
        return self.head(x.mean(1))


@pytest.mark.parametrize("how", ["checkpointed", "sequential"])
def test_checkpointed_blocks(how):
    x, y = randn(9, 5, 8), torch.arange(9) % 3
    plain, recomputed = (Objective(build(lambda h=h: Stack(h)), (x, y)) for h in ("plain", how))
    assert recomputed.recomputes and not plain.recomputes
    assert_close(recomputed.grad(), plain.grad(), rtol=1e-12, atol=1e-14)
    v = randn(plain.n_params)
    ours, theirs = HessianOperator(recomputed).matvec(v), HessianOperator(plain).matvec(v)
    assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert recomputed.cost.per_example <= 1.5 * plain.cost.per_example  # and so the micro-batches, within the budget


def test_reentrant_checkpoints_are_refused():
    "Whether a gradient finds its way in, and then has no second one, or not, so that the blocks would look unused."
    model = build(lambda: Stack("reentrant"))
    first = build(lambda: nn.Sequential(nn.Linear(8, 8), Stack("reentrant")))
    for net, params in ((model, None), (first, None), (first, "1.*")):
        with warnings.catch_warnings(), pytest.raises(TypeError, match="use_reentrant=False"):
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            Objective(net, (randn(9, 5, 8), torch.arange(9) % 3), params=params)


# --- offsets to activations and inputs -----------------------------------------------------------------
class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.block, self.head = nn.Embedding(7, 8), Block(8), nn.Linear(8, 3)
    def forward(self, tokens): return self.head(self.block(self.words(tokens)).mean(1))


@pytest.mark.parametrize("make, X, at, side, shape", [
    (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), randn(4, 3), "", "input", None),
    (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), randn(4, 3), "0", "output", None),
    (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), randn(4, 1, 4, 4), "1",
     "output", None),
    (Attentive, torch.randint(0, 7, (4, 4), generator=seeded(5)), "words", "output", None),
    (Attentive, torch.randint(0, 7, (4, 4), generator=seeded(5)), "block.heads", "output", (8,)),
], ids=["inputs", "a layer", "pixels", "words", "all tokens alike"])
def test_curvature_of_activations(make, X, at, side, shape):
    "The Hessian for an offset is the mean of the examples' own, and the dense one of torch."
    model, y = build(make), torch.arange(4) % 3
    before = copy.deepcopy(model.state_dict())
    moved = WithOffset(model, at, X[:2], side=side, shape=shape)
    H = HessianOperator(Objective(moved, (X, y), params="offset")).to_dense()
    zero, state = torch.zeros_like(moved.offset), {n: t.detach() for n, t in moved.state_dict().items()}

    def loss(offset, inputs=X, labels=y):
        return F.cross_entropy(torch.func.functional_call(moved, {**state, "offset": offset}, (inputs,)), labels)
    with sdpa_kernel(SDPBackend.MATH): dense = torch.autograd.functional.hessian(loss, zero)
    assert_close(H, dense.reshape(H.shape), rtol=1e-8, atol=1e-10)
    own = [HessianOperator(Objective(moved, (X[i:i + 1], y[i:i + 1]), params="offset")).to_dense() for i in range(4)]
    assert_close(H, sum(own) / 4, rtol=1e-8, atol=1e-10)
    for name, t in model.state_dict().items(): assert torch.equal(t, before[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_activations_beside_parameters():
    model = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    x, y = randn(9, 3), torch.arange(9) % 3
    both = HessianOperator(Objective(WithOffset(model, "0", x), (x, y))).to_dense()
    names = [n for n, p in WithOffset(model, "0", x).named_parameters() for _ in range(p.numel())]
    at = torch.tensor([n == "offset" for n in names])
    weights = HessianOperator(Objective(model, (x, y))).to_dense()
    assert_close(both[~at][:, ~at], weights, rtol=1e-9, atol=1e-11)
    bias = torch.tensor([n == "model.0.bias" for n in names])  # an offset to a linear layer's output is its bias
    assert_close(both[at][:, at], both[bias][:, bias], rtol=1e-9, atol=1e-11)


def test_a_module_that_is_met_twice():
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="is met 2 times"): WithOffset(nn.Sequential(layer, nn.Tanh(), layer), "0",
                                                                      randn(2, 3).float())
