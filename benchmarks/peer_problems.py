"Networks, briefly trained, their data, and what a benchmark asks of them."
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessnb.paper.data import load_data
from hessnb.paper.networks import cnn, lenet5, mlp, resnet18

# float32 products are not exact enough for a smaller true residual, whoever computes
FLOOR = {"float32": 1e-4, "float64": 0.}


@dataclass(frozen=True)
class Problem:
    "A network at given parameters, its data, and what is asked."
    network: str  # one of NETWORKS
    n: int  # examples
    k: int = 10  # pairs
    tol: float = 1e-3
    dtype: str = "float32"
    device: str = "cpu"
    curvature: str = "hessian"  # or "ggn"

    @property
    def key(self) -> str:
        place = f"-{self.device}" if self.device != "cpu" else ""
        kind = f"-{self.curvature}" if self.curvature != "hessian" else ""
        return f"{self.network}-N{self.n}-k{self.k}-tol{self.tol:g}-{self.dtype}{kind}{place}"
    @property  # worst true relative residual; ARPACK's own estimates are that exact
    def goal(self) -> float: return max(1.5 * self.tol, FLOOR[self.dtype])


# networks and data


class Encoder(nn.Module):
    "A transformer encoder of four layers for sequences of 32 symbols."
    def __init__(self, width: int = 128, length: int = 32, n_symbols: int = 200, n_classes: int = 10):
        super().__init__()
        self.table, self.place = nn.Embedding(n_symbols, width), nn.Parameter(.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 5 * width, dropout=0., batch_first=True, activation="gelu")
        self.layers, self.out = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(width, n_classes)
    def forward(self, x: Tensor) -> Tensor: return self.out(self.layers(self.table(x) + self.place).mean(1))


@functools.cache
def digits(name: str, n: int) -> tuple[Tensor, Tensor]:
    "The first `n` images of a fixed order of all that there are."
    data = load_data(name, n_per_class=500 if name == "mnist10" else 300)
    X, y = torch.cat([data.X_train, data.X_test]), torch.cat([data.y_train, data.y_test])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:n]
    return X[order].float(), y[order]


def drawn(shape: tuple, n: int, symbols: int = 0) -> tuple[Tensor, Tensor]:
    "Random images or sequences, and random labels of ten classes."
    g = torch.Generator().manual_seed(0)
    X = torch.randint(0, symbols, (n, *shape), generator=g) if symbols else torch.randn(n, *shape, generator=g)
    return X, torch.randint(0, 10, (n,), generator=g)


def gauss(n: int) -> tuple[Tensor, Tensor]:
    data = load_data("gauss", n_per_class=2 * n // 3)
    return data.X_train[:n].float(), data.y_train[:n]


def encoder() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder()


# model, data of n examples, steps of full-batch Adam before the measurement
NETWORKS: dict[str, tuple[Callable, Callable, int]] = {
    "mlp": (lambda: mlp(2, 3), gauss, 200),
    "cnn": (lambda: cnn(3), lambda n: digits("mnist017", n), 40),
    "lenet": (lambda: lenet5(10, 1, 28), lambda n: digits("mnist10", n), 40),
    "resnet": (lambda: resnet18(10), lambda n: drawn((3, 32, 32), n), 20),
    "encoder": (encoder, lambda n: drawn((32,), n, symbols=200), 10),
}


def build(problem: Problem, folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    "The model, briefly trained on its data (once; then read from a file), and the data, in the problem's precision."
    make, data, steps = NETWORKS[problem.network]
    model, (X, y) = make().eval().to(problem.device), (t.to(problem.device) for t in data(problem.n))
    path = folder / f"{problem.network}-{problem.n}.pt"
    if path.exists(): model.load_state_dict(torch.load(path, map_location=problem.device))
    else:
        adam = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(steps):
            adam.zero_grad()
            F.cross_entropy(model(X), y).backward()
            adam.step()
        adam.zero_grad()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    dtype = getattr(torch, problem.dtype)
    return model.to(dtype), X.to(dtype) if X.is_floating_point() else X, y


# products, as plainly as they can be written


def vector(parts) -> Tensor: return torch.cat([p.reshape(-1) for p in parts])


def kept_product(problem: Problem, model: nn.Module, X: Tensor, y: Tensor) -> tuple[Callable[[Tensor], Tensor], int]:
    "Products with the matrix through a graph that is kept, and its size."
    params = [p for p in model.parameters() if p.requires_grad]
    z, n = model(X), sum(p.numel() for p in params)
    if problem.curvature == "hessian":
        g = vector(torch.autograd.grad(F.cross_entropy(z, y), params, create_graph=True))
        return lambda v: vector(torch.autograd.grad(g, params, v, retain_graph=True)), n
    u, p = torch.zeros_like(z, requires_grad=True), z.detach().softmax(1)
    back = vector(torch.autograd.grad(z, params, u, create_graph=True, materialize_grads=True))  # J^T u, linear in u
    def product(v):
        along, = torch.autograd.grad(back, u, v, retain_graph=True)  # J v
        inner = p * (along - (p * along).sum(1, keepdim=True)) / len(z)
        return vector(torch.autograd.grad(z, params, inner, retain_graph=True))
    return product, n
