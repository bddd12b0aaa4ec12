"Options, marks and the few helpers that several test files share."
import copy
import random
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn
from torch.overrides import TorchFunctionMode

# beside CUDA a pretend device breaks autograd's streams
NOT_PRETENDED = "a real GPU takes the place of the pretended one" if torch.cuda.is_available() else ""
try:
    if not NOT_PRETENDED:
        import fakegpu  # noqa: F401  here, because the device has to exist before autograd starts its threads
except ImportError: NOT_PRETENDED = f"torch {torch.__version__} has no devices made in Python"
from hessnb.curvature.operator import MatrixOperator

torch.set_num_threads(1)
settings.register_profile("hessnb", deadline=None, derandomize=True, database=None)
settings.load_profile("hessnb")

HERE = Path(__file__).resolve().parent
F64 = torch.float64


class right_weight_norm(TorchFunctionMode):
    "Inside, weight norm is `g v / |v|` by plain operations: the second derivative of torch's own is wrong."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch._weight_norm: return func(*args, **kwargs or {})
        v, g, dim = args
        return g * v / torch.linalg.vector_norm(v, dim=[i for i in range(v.ndim) if i != dim], keepdim=True)


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", default=False, help="also run the tests marked slow")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds; run with --runslow")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "pretended: needs the pretend device, which cannot be there beside a CUDA "
                                       "device")


def pytest_collection_modifyitems(config, items):
    no_gpu, gpu = pytest.mark.skip(reason="torch.cuda.is_available() is false"), pytest.mark.skip(reason=NOT_PRETENDED)
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available(): item.add_marker(no_gpu)
        if "pretended" in item.keywords and NOT_PRETENDED: item.add_marker(gpu)
    items.sort(key=lambda item: "/ui/" not in item.nodeid)  # they wait for pages while others compute
    if config.getoption("--runslow"): return
    slow = [item for item in items if "slow" in item.keywords]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]


def seeded(seed): return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=F64): return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def build(make, seed=0):
    "The module made by `make`, with weights that depend on `seed` only; float64, in evaluation mode."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double().eval()


def mlp(seed=0, D=3, C=4, hidden=5):
    return build(lambda: nn.Sequential(nn.Linear(D, hidden), nn.Tanh(), nn.Linear(hidden, C)), seed)


def blobs(N=40, D=3, C=4, seed=0): return randn(N, D, seed=seed), torch.arange(N) % C


class Formula(nn.Module):
    "Scores `(N, C)` by a function of the inputs; one parameter without effect on the classes."
    def __init__(self, fn):
        super().__init__()
        self.fn, self.scale = fn, nn.Parameter(torch.ones(1, dtype=F64))
    def forward(self, x): return self.fn(x) * self.scale


def prescribed(values, seed=0, dtype=F64):
    "A `MatrixOperator` with these eigenvalues and random eigenvectors."
    n = len(values)
    Q = torch.linalg.qr(randn(n, n, seed=seed)).Q
    A = (Q * torch.as_tensor(np.asarray(values, dtype=float))) @ Q.T
    return MatrixOperator(((A + A.T) / 2).to(dtype))


def state_of(model):
    "Everything of a model that a caller could find changed."
    tensors = {n: t.detach().clone() for n, t in [*model.named_parameters(remove_duplicate=False),
                                                  *model.named_buffers(remove_duplicate=False)]}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    flags = {n: (p.requires_grad, p.data_ptr(), p._version, p.is_leaf) for n, p in model.named_parameters()}
    modes = {n: m.training for n, m in model.named_modules()}
    attributes = {n: sorted(vars(m)) for n, m in model.named_modules()}
    return tensors, grads, flags, modes, attributes


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) or bool(torch.isnan(a).any())
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


def precisions():
    "What torch may do with the operands of float32 products; 'mixed' where old and new settings contradict each other."
    backends = torch.backends
    places = [torch.get_float32_matmul_precision, lambda: backends.cuda.matmul.allow_tf32,
              lambda: backends.cudnn.allow_tf32]
    places += [lambda b=b, n=n: getattr(b, n).fp32_precision for b, n in ((backends.cuda, "matmul"),
            *((b, n) for b in (backends.cudnn, backends.mkldnn) for n in ("matmul", "conv", "rnn")))
            if hasattr(getattr(b, n, None), "fp32_precision")]
    def read(place):
        try: return place()
        except RuntimeError: return "mixed"
    return [read(place) for place in places]


def globals_now():
    legacy = np.random.get_state()
    return dict(torch_rng=torch.get_rng_state(), numpy_rng=(legacy[0], legacy[1].tolist(), *legacy[2:]),
                python_rng=random.getstate(),
                dtype=torch.get_default_dtype(), device=torch.get_default_device(), grad=torch.is_grad_enabled(),
                threads=torch.get_num_threads(),
                deterministic=torch.are_deterministic_algorithms_enabled(), cudnn=torch.backends.cudnn.enabled,
                precisions=precisions())


@contextmanager
def untouched(*models, tensors=()):
    "Assert on leaving, by exception too, that models, tensors and every global setting are as they were."
    before = [state_of(m) for m in models], [(t.clone(), t._version) for t in tensors], globals_now()
    try: yield
    finally:
        for model, old in zip(models, before[0]):
            for what, a, b in zip(("values", "grad", "flags", "mode", "attributes"), old, state_of(model)):
                assert same(a, b), f"the model's {what} changed"
        for t, (old, version) in zip(tensors, before[1]):
            assert t._version == version and same(old, t.detach()), "a tensor of the user's was changed"
        after = globals_now()
        changed = [k for k in before[2] if not same(before[2][k], after[k])]
        assert not changed, f"global state changed: {changed}"


@contextmanager
def quiet(*containing):
    "No warnings from us leave this block, except those that contain one of these words."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of packages that use each other
        for text in containing: warnings.filterwarnings("ignore", message=f"(?s).*{text}")
        yield


def data_files():
    "Reference networks by file name: two lie in the repository; a larger set is used where it lies beside it."
    found = {p.name: p for folder in (HERE.parent.parent / "shared" / "reference", HERE / "data")
             for p in sorted(folder.glob("*.npz"))}
    return found


@pytest.fixture
def rng_draws():
    "Draw from every global generator, so that a forgotten reseed would show."
    torch.rand(3), np.random.rand(3), random.random()
    yield


__all__ = [
    "F64",
    "HERE",
    "Formula",
    "blobs",
    "build",
    "copy",
    "data_files",
    "mlp",
    "prescribed",
    "quiet",
    "randn",
    "seeded",
    "untouched",
]


DEVICES = [pytest.param("pretended", marks=pytest.mark.pretended), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def gpu(request):
    "A device that is no host: a pretended one, and a GPU where there is one."
    if request.param == "cuda":
        yield torch.device("cuda", 0)
        return
    from fakegpu import DEVICE, fake_gpu
    with fake_gpu(): yield DEVICE
