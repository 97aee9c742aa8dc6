r"""
A model and a loop of your own
==============================

The analyses take the features of any ``torch.nn.Module``, trained in any way. `lesde.record` looks at a model once; `lesde.Recorder`
runs inside a training loop. Here a small convolutional network with batch normalisation learns six digits with Adam, a
learning rate that decays, and weight decay: nothing the package trains itself.
"""

# %%
# The model and the data
# ----------------------
#
# Plain PyTorch. Layers are known by their names, those of ``model.named_modules()``.

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lesde
from lesde.networks import digits

torch.manual_seed(0)
torch.set_num_threads(1)
K = 6
data = digits(classes=K, n_train_per_class=120, n_probe_per_class=40, probe="held_out")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(24)
        self.hidden = nn.Linear(24 * 4, 32)
        self.head = nn.Linear(32, K)

    def forward(self, x):
        x = x.view(-1, 1, 8, 8)
        x = nn.functional.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


model = Network()
x, y = torch.tensor(data.train_x), torch.tensor(data.train_y)
loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)

# %%
# One record
# ----------
#
# The features of three layers before training. The result is a dataset of paths with one time; ``"penultimate"`` is what the
# last linear layer reads, and brings that layer's weights along.

layers = ["norm1", "norm2", "penultimate"]
before = lesde.record(model, layers, data)
print(before["penultimate"])

# %%
# The loop
# --------
#
# One line is added to it: ``recorder.step()``, after the optimiser's and before the scheduler's. The two probe sets are the training
# images and images never trained on. With ``store="features.zarr"`` the records would go to disk as training goes, and survive an interrupt.

epochs = 40
optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
recorder = lesde.Recorder(
    model,
    layers,
    {"train": (x, y), "held_out": data},
    iterations=[0, 2, 4, 8, 16, 32, 64, 128, 256, 512, epochs * len(loader)],
    learning_rate=optimiser,
)
with recorder:
    for _ in range(epochs):
        for images, labels in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
            recorder.step()
            scheduler.step()

train, held_out = (recorder.paths("penultimate", name) for name in recorder.probes)
for name, paths in (("training images", train), ("held-out images", held_out)):
    print(
        f"{name}: accuracy {float(paths.accuracy[0, -1]):.3f}, loss {float(paths.loss[0, -1]):.4f}"
    )

# %%
# Neural collapse
# ---------------
#
# NC1, NC2 and NC3 of the last hidden layer, first of the training images. NC3 needs the classifier's weights, which are
# in the paths. Time is the sum of the learning rates, as the optimiser holds them. SGD with momentum μ moves the
# weights by lr/(1−μ) in the long run, which this clock ignores: to compare runs of different momentum give, in place of
# the optimiser, a function without arguments, ``learning_rate=lambda: optimiser.param_groups[0]["lr"] / (1 - 0.9)``. It
# is called at every step.

collapse = {
    name: lesde.neural_collapse(recorder.paths("penultimate", name)) for name in recorder.probes
}
print("                  training            held out")
for metric in ("nc1", "nc1_cdnv", "nc2_etf", "nc3", "nc4"):
    cells = (collapse[name][metric][0].values for name in recorder.probes)
    print(f"{metric:9s}" + "".join(f"   {one[0]:7.3f} → {one[-1]:6.3f}" for one in cells))
lesde.plot.collapse(collapse["train"], ["nc1", "nc2_etf", "nc3"])

# %%
# Through the layers, training images and held-out ones side by side: the class-distance normalised variance falls from layer to layer at the end, and a
# little less for images that were not fitted.

depth = lesde.layer_collapse(recorder.records())
lesde.plot.layers(depth, "nc1_cdnv")

# %%
# The training images of three classes in the plane of their class means: before training, midway and at the end.

lesde.plot.simplex(train.isel(sample=train.label < 3))

# %%
# Several runs
# ------------
#
# What the runs of a loop recorded is joined along ``replicate``, recorders as well as the stores they wrote. Each run has its number.

recorders = []
for run in range(3):
    torch.manual_seed(run)
    model = Network()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    recorder = lesde.Recorder(
        model, "penultimate", data, every=30, learning_rate=optimiser, replicate=run
    )
    for _ in range(4):
        for images, labels in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
            recorder.step()
    recorders.append(recorder)

runs = lesde.networks.open_records(recorders, "penultimate")
print(dict(runs.features.sizes))
print(f"accuracy at the end: {runs.accuracy[:, -1].values.round(3)}")
