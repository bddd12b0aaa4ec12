"The operator's check of its derivatives: no false alarms over many architectures, and no planted fault missed."
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import hessnb.curvature.verify as verify_room
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.verify import WrongDerivative
from hessnb.paper.zoo import find_minimum, zoo_plans

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.SELU, nn.Hardswish, nn.Mish,
               nn.ReLU6, nn.PReLU, nn.Hardtanh, nn.Softsign, nn.CELU, nn.Sigmoid]

class Then(nn.Module):
    "A function as a module."
    def __init__(self, fn, *parts):
        super().__init__()
        self.fn, self.parts = fn, nn.ModuleList(parts)
    def forward(self, x): return self.fn(x, *self.parts)

def pick(options): return options[int(torch.randint(len(options), ()))]
def act(): return pick(ACTIVATIONS)()
def vectors(): return torch.randn(48, 6)
def images(): return torch.randn(24, 2, 12, 12).clamp_min(0)  # with corners that are exactly zero
def tokens(): return torch.randint(0, 11, (32, 7))
def sequences(): return torch.randn(24, 5, 6)
def last(x, layer): return layer(x)[0][:, -1]

def mlp(): return nn.Sequential(nn.Linear(6, 40), act(), nn.Linear(40, 30), act(), nn.Linear(30, 3)), vectors()
def wide_relu():
    return nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 200), nn.ReLU(), nn.Linear(200, 3)), vectors()
def normed():
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), act(), nn.BatchNorm1d(16), nn.Linear(16, 3)), vectors()
def zero_start():
    net, X = mlp()
    for p in [net[0].bias, net[2].bias, net[4].weight]: nn.init.zeros_(p)
    X[::3] = 0
    return net, X
def residual():
    block = lambda: Then(lambda x, a, f, b: x + b(f(a(x))), nn.Linear(12, 12), act(), nn.Linear(12, 12))
    return nn.Sequential(nn.Linear(6, 12), block(), block(), nn.Linear(12, 3)), vectors()
def conv(pool=nn.MaxPool2d):
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), act(), pool(2), nn.Conv2d(6, 8, 3), act(),
                         nn.AdaptiveAvgPool2d(2),
                         nn.Flatten(), nn.Linear(32, 3)), images()
def conv_average(): return conv(nn.AvgPool2d)
def conv_norm():
    norm = pick([lambda: nn.GroupNorm(2, 6), lambda: nn.BatchNorm2d(6), lambda: nn.InstanceNorm2d(6, affine=True)])
    return nn.Sequential(nn.Conv2d(2, 6, 3), norm(), act(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(150, 3)), images()
def conv_up():
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), act(), nn.ConvTranspose2d(4, 3, 3, stride=2), act(),
                         nn.Upsample(scale_factor=2), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)), images()
def words():
    return nn.Sequential(nn.Embedding(11, 8), Then(lambda x: x.mean(1)), nn.Linear(8, 12), act(),
                         nn.Linear(12, 3)), tokens()
def cosine():
    return nn.Sequential(nn.Linear(6, 9), act(), Then(lambda x: F.normalize(x, dim=1)), nn.Linear(9, 3)), vectors()
def recurrent():
    layer = pick([nn.GRU, nn.LSTM, nn.RNN])(6, 8, batch_first=True, bidirectional=pick([False, True]))
    return nn.Sequential(Then(last, layer), nn.LazyLinear(3)), sequences()
def attention():
    layer = nn.TransformerEncoderLayer(6, 2, 16, dropout=0., batch_first=True, norm_first=pick([False, True]),
                                       activation=pick(["relu", "gelu"]))
    return nn.Sequential(layer, Then(lambda x: x.mean(1)), nn.Linear(6, 3)), sequences()
def heads():
    layer = nn.MultiheadAttention(6, 3, batch_first=True)
    return nn.Sequential(Then(lambda x, m: m(x, x, x)[0], layer), nn.Flatten(), nn.Linear(30, 3)), sequences()
def gated():
    return nn.Sequential(nn.Linear(6, 24), nn.GLU(), nn.Linear(12, 12), nn.Softmax(1), nn.Linear(12, 3)), vectors()
def maxout():
    return nn.Sequential(nn.Linear(6, 24), Then(lambda x: x.view(len(x), 8, 3).amax(2)), nn.Linear(8, 3)), vectors()
def bilinear():
    return nn.Sequential(Then(lambda x, m: m(x, x), nn.Bilinear(6, 6, 10)), act(), nn.Linear(10, 3)), vectors()
def parametrised():
    kind = pick([orthogonal, spectral_norm])
    return nn.Sequential(kind(nn.Linear(6, 6)), act(), nn.Linear(6, 3)), vectors()
def series():
    return nn.Sequential(nn.Conv1d(5, 8, 3, padding=1), act(), nn.MaxPool1d(2), nn.Flatten(),
                         nn.Linear(24, 3)), sequences()
def saturated():
    net, X = mlp()
    with torch.no_grad(): net[4].bias.copy_(torch.tensor([float(pick([12., 25., 55.])), 0., 0.]))
    return net, X

BUILDERS = [mlp, wide_relu, normed, zero_start, residual, conv, conv_average, conv_norm, conv_up, words, cosine,
            recurrent,
            attention, heads, gated, maxout, bilinear, parametrised, series, saturated]

def built(builder, seed, dtype=torch.float32):
    "An objective: the network of a builder with random running statistics, and random labels."
    torch.manual_seed(seed)
    net, X = builder()
    net(X[:2])
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(.5, 2)
    y = torch.zeros(len(X)).long() if builder is saturated else torch.randint(0, 3, (len(X),))
    return Objective(net.eval(), (X, y), dtype=dtype)

def no_alarm(builder, seed, dtype):
    objective = built(builder, seed, dtype)
    for kind in (HessianOperator, GGNOperator):
        verified = kind(objective).verified
        assert verified.passed or builder is saturated, (kind, verified)
    return verified

@pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.__name__)
def test_no_false_alarm(builder): no_alarm(builder, 0, torch.float32)

@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("variant", range(3))
@pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.__name__)
def test_no_false_alarm_in_many(builder, variant, dtype):
    "60 architectures (the builders draw activations and kinds), each with 3 seeds."
    for seed in range(3): no_alarm(builder, 100 * variant + seed, dtype)

# --- planted faults -----------------------------------------------------------------------------

class WrongGradient(torch.autograd.Function):
    "The identity, with a backward pass that is off by a share of `cos x`: a gradient that is none."
    @staticmethod
    def forward(ctx, x, size):
        ctx.save_for_backward(x)
        ctx.size = size
        return x.clone()
    @staticmethod
    def backward(ctx, g): return g * (1 + ctx.size * torch.cos(ctx.saved_tensors[0])), None

class WrongSecond(torch.autograd.Function):
    "tanh, whose backward pass keeps a share of its slope as a constant: the second derivative is off by that share."
    @staticmethod
    def forward(ctx, x, size):
        ctx.save_for_backward(x)
        ctx.size = size
        return x.tanh()
    @staticmethod
    def backward(ctx, g):
        slope = 1 - ctx.saved_tensors[0].tanh() ** 2
        return g * ((1 - ctx.size) * slope + ctx.size * slope.detach()), None

class WrongLinear(torch.autograd.Function):
    "A linear layer, whose backward pass takes a share of the weights for constant."
    @staticmethod
    def forward(ctx, x, w, size):
        ctx.save_for_backward(x, w)
        ctx.size = size
        return x @ w.T
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        kept = (1 - ctx.size) * w + ctx.size * w.detach()
        return g @ kept, g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]), None

class Planted(nn.Module):
    "A layer with a fault."
    def __init__(self, kind, size, width):
        super().__init__()
        self.kind, self.size = kind, size
        if kind is WrongLinear: self.weight = nn.Parameter(torch.randn(width, width) / width ** .5)
    def forward(self, x):
        return self.kind.apply(x, self.weight, self.size) if self.kind is WrongLinear else self.kind.apply(x, self.size)

def planted(kind, size, place, seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 20), act(), nn.Linear(20, 20), nn.LayerNorm(20), act(), nn.Linear(20, 20)]
    layers.insert(place, Planted(kind, size, 6 if place == 0 else 20))
    return nn.Sequential(*layers, nn.Linear(20, 3)).eval(), (torch.randn(64, 6), torch.randint(0, 3, (64,)))

@pytest.mark.parametrize("dtype, size", [(torch.float64, 1e-3), (torch.float32, 1e-2)], ids=["double", "single"])
@pytest.mark.parametrize("place", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", [WrongGradient, WrongSecond, WrongLinear], ids=lambda k: k.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_fault_is_found_and_named(kind, place, seed, dtype, size):
    net, data = planted(kind, size, place, seed)
    with pytest.raises(WrongDerivative, match=f"'{place}' .Planted."):
        HessianOperator(Objective(net, data, dtype=dtype))

@pytest.mark.parametrize("place", [1, 3])
def test_gauss_newton_sees_a_wrong_jacobian(place):
    net, data = planted(WrongGradient, 1e-3, place, 0)
    with pytest.raises(WrongDerivative): GGNOperator(Objective(net, data))
    with pytest.raises(WrongDerivative): FisherOperator(Objective(net, data))

def test_turned_off_is_recorded():
    net, data = planted(WrongSecond, .5, 1, 0)
    op = HessianOperator(Objective(net, data), verify=False)
    assert op.verified.passed is None and "not verified" in str(op.verified)

class Reverse(torch.autograd.Function):
    "The gradient reversal of domain adaptation: by design no derivative of the value."
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return -g

def test_a_gradient_that_is_replaced():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), Then(Reverse.apply), nn.Linear(9, 3)).eval()
    with pytest.raises(WrongDerivative, match="'2' .Then.: the gradient"):
        HessianOperator(Objective(net, (torch.randn(60, 6), torch.randint(0, 3, (60,)))))

class WrongLoss(torch.autograd.Function):
    "The square, whose backward pass keeps it as a constant."
    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x ** 2
    @staticmethod
    def backward(ctx, g): return 2 * g * ctx.x

def test_a_loss_with_a_wrong_derivative():
    torch.manual_seed(0)
    data = torch.randn(60, 6), torch.randn(60, 3)
    with pytest.raises(WrongDerivative, match="or in the loss"):
        HessianOperator(Objective(nn.Linear(6, 3).eval(), data, lambda out, y: WrongLoss.apply(out - y).sum(1)))

@pytest.mark.parametrize("name, dim", [("weight", 0), ("weight", 1), ("bias", 0)])
def test_weight_norm_is_right(name, dim):
    torch.manual_seed(0)
    net = nn.Sequential(weight_norm(nn.Linear(4, 6), name, dim), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    X, y, given = torch.randn(30, 4).double(), torch.randint(0, 3, (30,)), dict(net.named_parameters())
    def loss(params):
        p = dict(zip(given, params))
        v, g = p[f"0.parametrizations.{name}.original1"], p[f"0.parametrizations.{name}.original0"]
        length = v.norm(dim=1 - dim, keepdim=True) if name == "weight" else v.abs()
        own = {"weight": p.get("0.weight"), "bias": p.get("0.bias"), name: g * v / length}
        return F.cross_entropy(F.linear(torch.tanh(F.linear(X, own["weight"], own["bias"])), p["2.weight"],
                                        p["2.bias"]), y)
    params = list(given.values())
    grad = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(params), params, create_graph=True)])
    rows = [torch.cat([t.reshape(-1) for t in torch.autograd.grad(e, params, retain_graph=True)]) for e in grad]
    torch.testing.assert_close(HessianOperator(Objective(net, (X, y))).to_dense(), torch.stack(rows))

class Rounds(nn.Module):
    "Computes in half precision, whatever comes."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 3)
    def forward(self, x): return self.b(self.a(x).bfloat16().to(x.dtype).tanh())

def test_half_precision_inside_is_stated():
    torch.manual_seed(0)
    op = HessianOperator(Objective(Rounds().double().eval(), (torch.randn(40, 6).double(), torch.randint(0, 3, (40,)))))
    assert 1e-4 < op.verified.product_error < .1

def test_error_of_a_product_in_float32():
    objective = built(mlp, 0)
    assert 1e-9 < HessianOperator(objective).verified.product_error < 1e-4
    assert HessianOperator(objective.to(torch.float64)).verified.product_error is None

@pytest.mark.slow
def test_the_zoo_gives_no_alarm():
    for name, plan in zoo_plans().items():
        own = dict(model=plan.model, loss_target=plan.loss_target, recipe=plan.recipe, random_recipe=plan.random_recipe)
        found = find_minimum(plan.kind, plan.data, seed=plan.seed, **own)
        objective = Objective(found.model, (plan.data.X_train, plan.data.y_train))
        for kind in (HessianOperator, GGNOperator): assert kind(objective).verified.passed, name

def test_a_row_of_padding_has_no_gradient_by_convention():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 8, padding_idx=0), Then(lambda x: x.mean(1)), nn.Linear(8, 3)).eval()
    with torch.no_grad(): net[0].weight[0].normal_()
    for kind in (HessianOperator, GGNOperator):
        assert kind(Objective(net, (tokens(), torch.randint(0, 3, (32,))))).verified.passed

# --- models without a copy in float64 ---------------------------------------------------------------

class Kernel(nn.Module):
    "A model that computes in float32 only, like a kernel of one's own."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x):
        if next(self.net.parameters()).dtype != torch.float32: raise AssertionError("this kernel takes float32")
        return self.net(x)

@pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.__name__)
def test_no_false_alarm_in_single(builder):
    for seed in (0, 100):
        objective = built(builder, seed)
        net, data = objective.model, objective.data
        for kind in (HessianOperator, GGNOperator):
            verified = kind(Objective(Kernel(net).eval(), data)).verified
            assert verified.passed and verified.dtype == torch.float32 or builder is saturated, (kind, verified)
            assert verified.compared or "not compared" in str(verified) or builder is saturated

@pytest.mark.parametrize("place", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", [WrongGradient, WrongSecond, WrongLinear], ids=lambda k: k.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_fault_is_found_in_single(kind, place, seed):
    net, data = planted(kind, .3, place, seed)
    with pytest.raises(WrongDerivative, match=f"'net.{place}' .Planted."):
        HessianOperator(Objective(Kernel(net).eval(), data))

class Rounded(nn.Module):
    "A layer that goes through float32 by a way of its own."
    def forward(self, x): return x.type("torch.FloatTensor").tanh().to(x)

@pytest.mark.parametrize("fault", [None, WrongSecond])
def test_single_precision_inside_double(fault):
    torch.manual_seed(0)
    last = Then(lambda x: fault.apply(x, .4)) if fault else nn.Tanh()
    net = nn.Sequential(nn.Linear(6, 20), Rounded(), nn.Linear(20, 20), last, nn.Linear(20, 3)).double().eval()
    objective = Objective(net, (torch.randn(64, 6).double(), torch.randint(0, 3, (64,))))
    if fault:
        with pytest.raises(WrongDerivative, match="'3' .Then."): HessianOperator(objective)
        return
    verified = HessianOperator(objective).verified
    assert verified.passed and verified.compared and verified.single and 1e-2 <= verified.unseen <= .1
    assert "may go unseen" in str(verified)

class Rounds16(nn.Module):
    def forward(self, x): return x.bfloat16().to(x.dtype).tanh()

def test_what_differences_cannot_tell_is_not_claimed():
    objective = Objective(Kernel(nn.Sequential(nn.Linear(6, 4), Rounds16(), nn.Linear(4, 3))).eval(),
                          (torch.randn(40, 6), torch.randint(0, 3, (40,))))
    verified = HessianOperator(objective).verified
    assert not verified.compared and "agree" not in str(verified) and verified.unseen == float("inf")

def large(kind=None, place=0, act=nn.Tanh, width=4800):
    "More than 22 million numbers, nearly all in one layer."
    torch.manual_seed(0)
    layers = [nn.Linear(6, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 20), nn.Linear(20, 3)]
    if kind: layers.insert(place, Planted(kind, .3, 20 if place == 5 else width))
    return Objective(nn.Sequential(*layers).eval(), (torch.randn(64, 6), torch.randint(0, 3, (64,))))

@pytest.mark.slow
@pytest.mark.parametrize("kind, place, act", [(WrongSecond, 1, nn.Tanh), (WrongSecond, 3, nn.ReLU),
                                              (WrongGradient, 4, nn.Tanh), (WrongLinear, 5, nn.GELU)])
def test_a_planted_fault_is_found_in_a_large_model(kind, place, act):
    with pytest.raises(WrongDerivative, match=f"'{place}' .Planted."): HessianOperator(large(kind, place, act))

@pytest.mark.slow
def test_a_large_model_gives_no_alarm():
    verified = HessianOperator(large(act=nn.ReLU)).verified
    assert verified.passed and verified.compared and verified.dtype == torch.float64 and verified.error < 1e-5
    assert verified.moved < .1 and "of the parameters" in str(verified)

@pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.__name__)
def test_some_of_the_parameters_are_enough(builder, monkeypatch):
    "The same architectures as if they were large: in float64, with a part of each tensor moved."
    monkeypatch.setattr(verify_room, "attempts", lambda objective: [(torch.float64, objective.n_params // 3 + 20)])
    for kind in (HessianOperator, GGNOperator):
        verified = kind(built(builder, 0)).verified
        assert verified.passed or builder is saturated, (kind, verified)

@pytest.mark.parametrize("place", [1, 3, 6])
@pytest.mark.parametrize("kind", [WrongGradient, WrongSecond, WrongLinear], ids=lambda k: k.__name__)
def test_a_planted_fault_is_found_with_some_of_the_parameters(kind, place, monkeypatch):
    monkeypatch.setattr(verify_room, "attempts", lambda objective: [(torch.float64, 300)])
    net, data = planted(kind, 1e-2, place, 0)
    with pytest.raises(WrongDerivative, match=f"'{place}' .Planted."): HessianOperator(Objective(net, data))
