"The callbacks in the trainers of other libraries; of an environment of their own: HESSNB_CALLBACKS_PYTHON."
import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

from conftest import HERE

START = """
import copy, pickle, sys, tempfile, warnings
import torch
from torch import nn
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
y = torch.arange(96) % 3
X = 3. * nn.functional.one_hot(y)[:, :2] + torch.randn(96, 2)
data = torch.utils.data.TensorDataset(X, y)

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(.2), nn.Linear(8, 3))

def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(s, t) for s, t in pairs)
"""

LIGHTNING = """
import lightning.pytorch as pl
from hessnb.training.callbacks import lightning_callback

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x): return self.net(x)
    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=.1, momentum=.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, .9)
        return [optimizer], [dict(scheduler=schedule, interval="step")]

def run(*callbacks, **kwargs):
    module = Module()
    pl.seed_everything(0, verbose=False)
    loader = torch.utils.data.DataLoader(data, 16, shuffle=True)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **kwargs)
    trainer.fit(module, loader)
    return module

alone, watch = run(), lightning_callback((X, y), every=6, k=2)
assert same(alone, run(watch))
assert watch.records.steps == [0, 6, 12, 18], watch.records.steps
lr = watch.records.numbers("lr")
assert torch.allclose(lr[1:], .1 * .9 ** (torch.tensor([5., 11., 17.], dtype=lr.dtype))), lr
assert watch.records[-1]["accuracy"] > .5
mixed = run(precision="bf16-mixed")
beside = lightning_callback((X, y), lambda module: module.net, every=5, background=True, k=2)
assert same(mixed, run(beside, precision="bf16-mixed"))
accumulated = lightning_callback((X, y), every=3, k=2)
run(accumulated, accumulate_grad_batches=2)
assert accumulated.records.steps == [0, 3, 6, 9], accumulated.records.steps
assert pickle.loads(pickle.dumps(watch)).tracker is None
"""

TRANSFORMERS = """
import transformers
from hessnb.training.callbacks import trainer_callback
rows = torch.randint(1, 30, (48, 7), generator=torch.Generator().manual_seed(0))
labels = (rows[:, 0] > 15).long()
examples = [dict(input_ids=r, attention_mask=torch.ones_like(r), labels=t) for r, t in zip(rows, labels)]
batches = [dict(input_ids=rows, attention_mask=torch.ones_like(rows), labels=labels)]

def run(*callbacks, **kwargs):
    transformers.set_seed(0)
    config = transformers.BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16, max_position_embeddings=8, num_labels=2)
    model = transformers.BertForSequenceClassification(config)
    args = transformers.TrainingArguments(tempfile.mkdtemp(), max_steps=8, per_device_train_batch_size=8, use_cpu=True,
                                          report_to=[], save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
                                          logging_strategy="no", seed=0, **kwargs)
    transformers.Trainer(model, args, train_dataset=examples, callbacks=list(callbacks)).train()
    return model

alone, watch = run(), trainer_callback(batches, every=4, k=2)
assert same(alone, run(watch))
assert watch.records.steps == [0, 4, 8], watch.records.steps
assert watch.records.about["optimizer"] == "AdamW" and not watch.tracker.missing, watch.tracker
assert abs(watch.records[1]["lr"] - 1e-2 * 5 / 8) < 1e-9, watch.records[1]["lr"]  # that of the fourth step
mixed, beside = run(bf16=True), trainer_callback(batches, every=4, k=2)
assert same(mixed, run(beside, bf16=True))
assert not beside.tracker.missing and beside.records[0]["loss"] == watch.records[0]["loss"]  # full precision
"""

SKORCH = """
import skorch
from sklearn.base import clone
from hessnb.training.callbacks import skorch_callback

def run(*callbacks, **kwargs):
    torch.manual_seed(0)
    settings = dict(criterion=nn.CrossEntropyLoss, max_epochs=3, batch_size=16, lr=.1, train_split=None, verbose=0)
    settings |= dict(callbacks=list(callbacks), iterator_train__shuffle=True)
    return skorch.NeuralNetClassifier(net, **settings | kwargs).fit(X.numpy(), y.numpy())

alone, watch = run(), skorch_callback(every=6, k=2)
fitted = run(watch)
assert same(alone.module_, fitted.module_)
assert watch.records.steps == [0, 6, 12, 18], watch.records.steps
assert abs(watch.records[-1]["threshold"] - 20) < 1e-9
fitted.partial_fit(X.numpy(), y.numpy())
assert watch.records.steps == [18, 24, 30, 36], watch.records.steps
clone(fitted), copy.deepcopy(fitted), pickle.loads(pickle.dumps(watch))
try: run(skorch_callback(), criterion=nn.NLLLoss)
except ValueError as e: assert "logarithm" in str(e)
else: raise AssertionError("NLLLoss was taken")
"""


def python_with(library):
    "An interpreter that has the library, or None."
    if importlib.util.find_spec(library) is not None: return sys.executable
    other = os.environ.get("HESSNB_CALLBACKS_PYTHON")
    if other and subprocess.run([other, "-c", f"import {library}, torch"], capture_output=True).returncode == 0:
        return other


SCRIPTS = [("lightning", LIGHTNING), ("transformers", TRANSFORMERS), ("skorch", SKORCH)]


@pytest.mark.parametrize("library,script", SCRIPTS)
def test_the_training_is_the_same_and_the_records_are_there(library, script, tmp_path):
    python = python_with(library)
    if python is None: pytest.skip(f"{library} is not installed, nor in HESSNB_CALLBACKS_PYTHON")
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(START + script))
    found = subprocess.run([python, file], env={**os.environ, "PYTHONPATH": str(HERE.parent)}, capture_output=True,
                           text=True, cwd=tmp_path, timeout=300)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
