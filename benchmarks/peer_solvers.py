"""Solvers: (problem, model, X, y, seed) -> vectors `(k, P)`, number of products.

`plain` ones are what somebody writes in twenty lines: products through a graph that is kept, and SciPy or a Lanczos
loop around them. `compiled` is `torch.compile` over the product as torch.func has it, which is what curvlinops' users
do; it is asked twice, and the second time counts, so that compiling is in `cold` only.
"""
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from peer_problems import Problem, kept_product, vector
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from hessnb.curvature.entry import CURVATURES
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import Operator
from hessnb.curvature.top import top_eigenpairs

Found = tuple[Tensor, int]


def ours(problem: Problem, model, X, y, seed: int, **kwargs) -> Found:
    op = CURVATURES[problem.curvature](Objective(model, (X, y)))
    generator = torch.Generator().manual_seed(seed)
    pairs = top_eigenpairs(op, problem.k, tol=problem.tol, generator=generator, **kwargs)
    return pairs.vectors, op.n_matvecs


@contextmanager
def tf32() -> Iterator[None]:
    "In this block a GPU may round the operands of float32 products to ten bits, as none of the others may."
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try: yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Coarse(Operator):
    "An operator's products with operands in TF32; `noise`, their relative error, is measured on a random vector."
    def __init__(self, make: Callable[[], Operator], exact: Operator):
        super().__init__(exact.shape[0], exact.dtype, exact.device)
        self.exact = exact
        with tf32(): self.rounded = make()
        v = torch.randn(exact.shape[0], generator=torch.Generator().manual_seed(0)).to(exact.device, exact.dtype)
        w, rough = exact.matvec(v), self.apply(v)
        self.noise = ((rough - w).norm() / w.norm()).item()
    def apply(self, v):
        self.exact.n_matvecs += 1
        with tf32(): return self.rounded.matvec(v)


def tf32_search(problem: Problem, model, X, y, seed: int) -> Found:
    "A trial: our search on products in TF32, corrected and confirmed in float32, as float64 is by float32."
    class Mixed(CURVATURES[problem.curvature]):
        def in_single(self): return Coarse(lambda: CURVATURES[problem.curvature](self.objective, verify=False), self)
    op = Mixed(Objective(model, (X, y)))
    pairs = top_eigenpairs(op, problem.k, tol=problem.tol, generator=torch.Generator().manual_seed(seed))
    return pairs.vectors, op.n_matvecs


def arpack(problem: Problem, product: Callable, n: int, seed: int) -> Found:
    "SciPy's solver on a product of NumPy vectors."
    count, dtype = [0], np.dtype(problem.dtype)
    def counted(v):
        count[0] += 1
        return product(v.reshape(-1))
    v0 = np.random.default_rng(seed).standard_normal(n).astype(dtype)
    _, V = eigsh(LinearOperator((n, n), matvec=counted, dtype=dtype), k=problem.k, which="LA", tol=problem.tol, v0=v0)
    return torch.from_numpy(V.T.copy()), count[0]


def on_host(product: Callable, device) -> Callable:
    "A product of tensors as one of NumPy vectors."
    return lambda v: product(torch.from_numpy(v).to(device)).cpu().numpy()


def plain_arpack(problem: Problem, model, X, y, seed: int) -> Found:
    product, n = kept_product(problem, model, X, y)
    return arpack(problem, on_host(product, X.device), n, seed)


def plain_lanczos(problem: Problem, model, X, y, seed: int) -> Found:
    "Full reorthogonalisation, and a look every five steps; no check whether an eigenvalue has copies."
    product, n = kept_product(problem, model, X, y)
    start = torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(X.device, getattr(torch, problem.dtype))
    Q, alpha, beta = [start / start.norm()], [], []
    while True:
        w = product(Q[-1])
        alpha.append((w @ Q[-1]).item())
        basis = torch.stack(Q)
        for _ in range(2): w = w - basis.T @ (basis @ w)
        beta.append(w.norm().item())
        m = len(alpha)
        if m >= problem.k and m % 5 == 0:
            T = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
            values, S = np.linalg.eigh(T)
            values, S = values[::-1][:problem.k].copy(), S[:, ::-1][:, :problem.k].copy()
            if (beta[-1] * abs(S[-1]) <= problem.tol * abs(values)).all():
                return torch.from_numpy(S.T).to(basis) @ basis, m
        Q.append(w / beta[-1])


def compiled(problem: Problem, model, X, y, seed: int) -> Found:
    from torch.func import functional_call, grad, jvp, vjp
    shapes = {name: p.shape for name, p in model.named_parameters()}
    flat = vector(list(model.parameters())).detach()
    def named(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items())}
    def outputs(theta): return functional_call(model, named(theta), (X,))
    def hessian(v): return jvp(grad(lambda theta: F.cross_entropy(outputs(theta), y)), (flat,), (v,))[1]
    def ggn(v):
        z, along = jvp(outputs, (flat,), (v,))
        _, back = vjp(outputs, flat)
        return back(jvp(grad(lambda z: F.cross_entropy(z, y)), (z,), (along,))[1])[0]
    product = COMPILED.setdefault(problem.key, torch.compile(ggn if problem.curvature == "ggn" else hessian))
    return arpack(problem, on_host(product, X.device), len(flat), seed)


COMPILED: dict[str, Callable] = {}  # of this process


def curvlinops(problem: Problem, model, X, y, seed: int) -> Found:
    import curvlinops as peer
    kind = {"hessian": peer.HessianLinearOperator, "ggn": peer.GGNLinearOperator}[problem.curvature]
    params = [p for p in model.parameters() if p.requires_grad]
    H = kind(model, nn.CrossEntropyLoss(), params, [(X, y)], check_deterministic=False).to_scipy()
    return arpack(problem, lambda v: H @ v, H.shape[0], seed)


def backpack(problem: Problem, model, X, y, seed: int) -> Found:
    from backpack.hessianfree.hvp import hessian_vector_product
    params = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(X), y)
    grads = torch.autograd.grad(loss, params, create_graph=True)
    sizes = [p.numel() for p in params]
    def product(v):
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), params)]
        return vector(hessian_vector_product(loss, params, parts, grad_params=grads))
    return arpack(problem, on_host(product, X.device), sum(sizes), seed)


def eigenthings(problem: Problem, model, X, y, seed: int, steps: int | None = None) -> Found:
    "Its tolerance does not drive the iteration: the number of steps is given from outside, see `enough_steps`."
    import hessian_eigenthings as peer
    op = peer.HessianOperator(model, [(X, y)], peer.supervised_loss(nn.CrossEntropyLoss()))
    result = peer.lanczos(op, k=problem.k, max_iter=steps, tol=problem.tol, which="LA", reorthogonalize=True, seed=seed)
    return result.eigenvectors, result.iterations


def pyhessian(problem: Problem, model, X, y, seed: int) -> Found:
    import pyhessian  # noqa: F401
    peer, count = sys.modules["pyhessian.hessian"], [0]  # the package has a class of the same name
    product = peer.hessian_vector_product
    def counted(*args):
        count[0] += 1
        return product(*args)
    peer.hessian_vector_product = counted
    torch.manual_seed(seed)
    try:
        found = peer.hessian(model, nn.CrossEntropyLoss(), data=(X, y), cuda=X.is_cuda)
        _, vectors = found.eigenvalues(maxIter=100, tol=problem.tol, top_n=problem.k)
    finally: peer.hessian_vector_product = product
    model.zero_grad(set_to_none=True)
    return torch.stack([vector(v) for v in vectors]).detach(), count[0]


class Columns:
    "A product of vectors as skerch wants it: a matrix that can be multiplied from either side."
    def __init__(self, product: Callable, n: int): self.product, self.shape, self.count = product, (n, n), 0
    def __matmul__(self, V):
        self.count += 1 if V.ndim == 1 else V.shape[1]
        return self.product(V) if V.ndim == 1 else torch.stack([self.product(v) for v in V.T], 1)
    def __rmatmul__(self, V): return (self @ V.T).T


def skerch(problem: Problem, model, X, y, seed: int, steps: int | None = None) -> Found:
    "A sketch is as exact as it is wide: the width is given from outside, as the steps of `eigenthings`."
    from skerch.algorithms import seigh
    product, n = kept_product(problem, model, X, y)
    op, dtype = Columns(product, n), getattr(torch, problem.dtype)
    values, Q = seigh(op, X.device, dtype, outer_dims=steps, seed=479915 + 1000 * seed, by_mag=False)
    order = values.real.argsort(descending=True)[:problem.k]
    return Q[:, order].T.contiguous(), op.count


TF32 = "hessnb, TF32 search"  # on a GPU only
SOLVERS = {
    "hessnb": ours, "hessnb, no probe": lambda *args: ours(*args, miss_probability=1),
    "plain ARPACK": plain_arpack, "plain Lanczos": plain_lanczos, "compiled + SciPy": compiled,
    "curvlinops + SciPy": curvlinops, "BackPACK + SciPy": backpack, "hessian-eigenthings": eigenthings,
    "PyHessian": pyhessian, "skerch": skerch, TF32: tf32_search,
}
LADDER = {"hessian-eigenthings": (1, 1.5, 2, 3, 4, 6, 8, 12, 16),  # times (k + 10), tried from the first
          "skerch": (1.5, 3, 6, 12, 24)}
OF_GGN = ("hessnb", "hessnb, no probe", TF32, "plain ARPACK", "plain Lanczos", "compiled + SciPy", "curvlinops + SciPy",
          "skerch")
