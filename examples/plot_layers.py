r"""
Collapse through the layers
===========================

Neural collapse is measured at the last hidden layer. How far have the layers before it come? Here networks with
four hidden layers learn to classify digits; every hidden layer is recorded, on images of the training set
and on images not trained on.

Two numbers say how well classes are clustered at a layer: the class-distance normalised variance (CDNV; Galanti,
György, Hutter 2022), which is small when classes are narrow compared with their distance, and the accuracy of the
nearest class centre (NCC): the share of images that lie nearest to the mean of their own class (Papyan, Han, Donoho
2020; through the layers, Ben-Shaul, Dekel 2022).
"""

# %%
# One training, two sets of images
# --------------------------------
#
# Training does not depend on which images are looked at. So the probe holds training images and held-out ones
# together, and the records are split afterwards.

import numpy as np
from scipy import stats

import lesde
from lesde.networks import (
    collect,
    digits,
    mlp,
    probe_both,
    record_ensemble,
    saving_times,
    split_records,
)

K, h = 10, 0.025
data = digits(classes=K, n_train_per_class=60, n_probe_per_class=40, probe="held_out")
data, split = probe_both(data)
layers = ("logits", "activation1", "activation2", "activation3", "penultimate")
times = saving_times(150.0, h, count=16)
records = record_ensemble(
    data, lambda: mlp(64, (64, 64, 64, 64), K), h, 8, times, layers=layers, batch_size=4, seed=0
)
parts = split_records(collect(records), split)
for part, recorded in parts.items():
    accuracy = recorded["logits"].accuracy.isel(time=-1)
    print(f"{part:9s} accuracy of the networks at the end: {float(accuracy.mean()):.3f}")

# %%
# Every layer, both sets
# ----------------------
#
# ``layer_collapse`` takes the parts and returns one dataset. The centres of the NCC rule are the class means of the
# *training* images for both parts: a rule must be judged on images it was not fitted to. CDNV takes means and
# variances of the part itself.

result = lesde.layer_collapse(parts)
last = result.isel(time=-1, learning_rate=0)
names = last.layer.values
print("medians of 8 networks at the end    " + "".join(f"{name:>13s}" for name in names))
for name in ("nc1_cdnv", "ncc_accuracy"):
    for part in last.split.values:
        values = last[name].sel(split=part).median("replicate").values
        print(f"{name:13s} {part:22s}" + "".join(f"{v:13.3f}" for v in values))

# %%
# From the first to the last hidden layer of the same network, the mean change over networks with its 95 % interval
# (Student's t). The interval allows for other networks on these images, not for other images.


def change(name, part, time=-1):
    values = result[name].sel(split=part).isel(time=time, learning_rate=0)
    values = np.log(values) if name == "nc1_cdnv" else values
    each = (values.isel(layer=-1) - values.isel(layer=0)).values
    reach = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    return each.mean() + reach * np.array([0, -1, 1])


for when, time in (("before training", 0), ("at the end", -1)):
    for part in result.split.values:
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*np.exp(change("nc1_cdnv", part, time)))
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*change("ncc_accuracy", part, time))
        print(f"{when:15s} {part:9s} CDNV times {ratio}   NCC accuracy {gain}")

# %%
# Before training, depth does harm: every random layer blurs the classes a little more. At the end CDNV falls from layer
# to layer, on the training images to about 0.4 of that of the first layer, on held-out images to about a half. With
# depth the two sets differ more and more: the deeper layers tighten the classes of the images they were fitted to more
# than those of others.

lesde.plot.layers(result, "nc1_cdnv")

# %%
# The accuracy of the nearest centre says more about held-out images. On training images it rises with depth by one or
# two in a hundred. On held-out images it does not rise; here it falls by about as much. So classes that are
# tighter on average are not easier to distinguish on new images.

lesde.plot.layers(result, "ncc_accuracy")

# %%
# Over time
# ---------
#
# All layers collapse in the same phase of training. Before it the CDNV of the deeper layers goes up for a while. It is
# a mean over pairs of classes: half of the pairs come apart steadily, but some pairs of class centres meet first.

train = parts["train"]["penultimate"]
means = train.features.isel(learning_rate=0).groupby("label").mean("sample").astype(float)
away = train.features.isel(learning_rate=0).groupby("label") - means
spread = (away**2).sum("feature").groupby("label").mean("sample").rename(label="k")
gaps = ((means.rename(label="k") - means.rename(label="l")) ** 2).sum("feature")
pairs = (spread + spread.rename(k="l")) / (
    2 * gaps.where(means.label.values[:, None] > means.label.values)
)
for t in (0, 20, 30, 50, 150):
    now = pairs.sel(time=t, method="nearest")
    middle, worst = (float(f(("k", "l")).median("replicate")) for f in (now.median, now.max))
    print(
        f"t = {float(now.time):5.1f}   CDNV of the median pair {middle:.3f}, of the worst {worst:.3f}"
    )

lesde.plot.layers_over_time(result, "nc1_cdnv")

# %%
# The last hidden layer
# ---------------------
#
# NC3 and NC4 compare the class means with the classifier on top: they are far more alike than at first, and the
# classifier mostly decides as the nearest centre does, a little less so on held-out images. The class means are no
# nearer to a simplex frame (NC2) than they were: these networks were stopped soon after the training images are
# classified correctly, and the frame comes later, if at all.

for name in ("nc1", "nc2_etf", "nc3", "nc3_duality", "nc4"):
    values = result[name].isel(learning_rate=0)
    values = values.sel(layer="penultimate") if "layer" in values.dims else values
    for part in result.split.values:
        first, end = (
            float(values.sel(split=part).isel(time=i).median("replicate")) for i in (0, -1)
        )
        print(f"{name:12s} {part:9s} {first:7.3f} → {end:7.3f}")
