"""The recorder as a callback of Lightning, where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lesde
from lesde.networks import LightningRecorder, mlp, open_records

INSTALLED = importlib.util.find_spec("lightning") is not None
needs_lightning = pytest.mark.skipif(
    not INSTALLED, reason="lightning is not installed: pip install '.[lightning]'"
)
LAYERS = ["model.hidden1", "penultimate"]


def test_without_lightning():
    code = (
        "import sys\n"
        "for name in ('lightning', 'lightning.pytorch', 'pytorch_lightning'):\n"
        "    sys.modules[name] = None\n"
        "from lesde.networks import LightningRecorder\n"
        "try:\n"
        "    LightningRecorder('fc', None, every=1)\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "lesde[lightning]"' in done.stdout
    assert "lesde.Recorder serves a loop of your own" in done.stdout


@pytest.fixture
def fit(data, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self, halving=True):
            super().__init__()
            self.model = mlp(64, (12, 8), 4)
            self.halving = halving

        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.cross_entropy(self(x), y)

        def configure_optimizers(self):
            optimiser = torch.optim.SGD(self.parameters(), lr=0.2)
            if not self.halving:
                return optimiser
            halved = torch.optim.lr_scheduler.StepLR(optimiser, step_size=5, gamma=0.5)
            return [optimiser], [{"scheduler": halved, "interval": "step"}]

    class TwoSteps(Classifier):
        """Two optimisers, a step of each in every batch."""

        automatic_optimization = False

        def training_step(self, batch, index):
            for optimiser in self.optimizers():
                optimiser.zero_grad()
                self.manual_backward(super().training_step(batch, index))
                optimiser.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=rate) for rate in (0.2, 0.1)]

    def run(callbacks, epochs, checkpoint=None, halving=True, two=False, again=0, **options):
        """Epochs of four batches, and ``again`` more in a second fit."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = (TwoSteps if two else Classifier)(halving)
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        x, y = torch.tensor(data.train_x), torch.tensor(data.train_y)
        loader = DataLoader(TensorDataset(x, y), batch_size=30)
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, **options,
        )  # fmt: skip
        trainer.fit(model, loader, ckpt_path=checkpoint)
        if again:
            trainer.fit_loop.max_epochs = epochs + again
            trainer.fit(model, loader)
        return trainer, model

    return run


@needs_lightning
@pytest.mark.filterwarnings("ignore")
def test_records_of_a_fit(fit, data, tmp_path):
    path = tmp_path / "features.zarr"
    recorder = LightningRecorder(LAYERS, data, every=3, store=path)
    _, model = fit(recorder, 3)
    paths = recorder.paths("penultimate")
    np.testing.assert_array_equal(paths.iteration, [0, 3, 6, 9, 12])
    # Steps 1 to 5 at 0.2, 6 to 10 at 0.1, the rest at 0.05.
    np.testing.assert_allclose(paths.time, [0, 0.6, 1.1, 1.4, 1.6])
    last = lesde.record(model, "penultimate", data)
    np.testing.assert_array_equal(paths.features[:, -1], last.features[:, 0])
    np.testing.assert_array_equal(paths.weights[:, -1], last.weights[:, 0])
    assert open_records(path, "model.hidden1").sizes["feature"] == 12
    assert "nc3" in lesde.neural_collapse(paths)


@needs_lightning
@pytest.mark.filterwarnings("ignore")
def test_accumulated_gradients_count_once(fit, data):
    recorder = LightningRecorder("logits", data, every=1)
    fit(recorder, 2, accumulate_grad_batches=2)
    np.testing.assert_array_equal(recorder.paths("logits").iteration, [0, 1, 2, 3, 4])


@needs_lightning
@pytest.mark.filterwarnings("ignore")
def test_going_on_from_a_checkpoint(fit, data, tmp_path):
    whole = LightningRecorder(LAYERS, data, every=3)
    fit(whole, 3)
    path = tmp_path / "features.zarr"
    trainer, _ = fit(LightningRecorder(LAYERS, data, every=3, store=path), 2)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = LightningRecorder(LAYERS, data, every=3, store=path, resume=True)
    fit(again, 3, checkpoint=tmp_path / "model.ckpt")
    found, wanted = again.paths("penultimate"), whole.paths("penultimate")
    np.testing.assert_array_equal(found.iteration, wanted.iteration)
    xr.testing.assert_allclose(found.load(), wanted)


def of_different_networks(paths):
    """Whether no two records in a row are of the same network."""
    return bool((paths.features.diff("time") != 0).any(["sample", "feature"]).all())


@needs_lightning
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stored", [False, True])
def test_a_second_fit_records_on(fit, data, tmp_path, stored):
    store = {"store": tmp_path / "features.zarr"} if stored else {}
    recorder = LightningRecorder("penultimate", data, every=3, **store)
    fit(recorder, 2, again=2)
    paths = recorder.paths("penultimate")
    np.testing.assert_array_equal(paths.iteration, [0, 3, 6, 9, 12, 15])
    # Its own scheduler begins anew: 0.2 again after step 8.
    np.testing.assert_allclose(paths.time, [0, 0.6, 1.1, 1.5, 2.1, 2.5])
    assert of_different_networks(paths)


@needs_lightning
@pytest.mark.filterwarnings("ignore")
def test_going_on_without_the_clock(fit, data, tmp_path):
    """The checkpoint, after 8 steps, was saved without the recorder."""
    trainer, _ = fit([], 2)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    # The times of this list that are past by then are not due.
    recorder = LightningRecorder("penultimate", data, times=[0, 1.0, 1.44, 2.0])
    with pytest.raises(ValueError, match=r"at step 8, must hold the clock"):
        fit(recorder, 3, checkpoint=tmp_path / "model.ckpt")
    recorder.load_state_dict({"iteration": 8, "time": 1.3})
    fit(recorder, 3, checkpoint=tmp_path / "model.ckpt")
    paths = recorder.paths("penultimate")
    np.testing.assert_array_equal(paths.iteration, [9])  # 10 steps end at 1.5, 12 at 1.6
    np.testing.assert_allclose(paths.time, [1.4])


@needs_lightning
@pytest.mark.filterwarnings("ignore")
def test_a_store_ahead_of_the_fit_is_refused(fit, data, tmp_path):
    path = tmp_path / "features.zarr"
    fit(LightningRecorder("penultimate", data, every=3, store=path), 3)
    with pytest.raises(ValueError, match=r"up to iteration 12, but the fit begins at step 0"):
        fit(LightningRecorder("penultimate", data, every=3, store=path, resume=True), 3)
    assert open_records(path, "penultimate").sizes["time"] == 5


@needs_lightning
@pytest.mark.filterwarnings("ignore")
def test_several_steps_in_a_batch_make_one_record(fit, data):
    recorder = LightningRecorder("penultimate", data, every=1)
    fit(recorder, 1, two=True)
    paths = recorder.paths("penultimate")
    np.testing.assert_array_equal(paths.iteration, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(paths.time, [0, 0.3, 0.6, 0.9, 1.2])
    assert of_different_networks(paths)


@needs_lightning
def test_refusals(data):
    with pytest.raises(TypeError, match="sets learning_rate, model itself"):
        LightningRecorder("logits", data, every=1, model=3, learning_rate=0.1)
    with pytest.raises(ValueError, match="nothing is recorded before the fit starts"):
        LightningRecorder("logits", data, every=1).paths("logits")
