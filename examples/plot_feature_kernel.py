"""
Elasticity that decays with distance
====================================

With a kernel of classes and time the LE-SDE is linear: gaps between classes grow exponentially and never
stop. In a network the influence of a sample on another one depends on their features. A ``FeatureKernel``
says how. Here samples push others of their class with a strength that falls off with the squared distance
``r2``, and at small distances it is just that of the linear model.
"""

# %%
# Two models
# ----------
#
# ``s`` is 1 for two samples of one class and 0 for two of different classes. The constant kernel is the
# limit of a long range.

import matplotlib.pyplot as plt
import numpy as np

import lesde

sizes = {"n_classes": 3, "n_features": 2, "n_per_class": 40, "noise": 0.25}
ranges = {"constant": None, "range 4": 4.0, "range 2": 2.0}
kernels = {
    name: lesde.TwoLevel(1.5, -0.5)
    if length is None
    else lesde.FeatureKernel(
        "(1.5*s - 0.5*(1 - s)) * exp(-r2/(2*l**2))", parameters={"l": length}
    )
    for name, length in ranges.items()
}
models = {name: lesde.LESDE(kernel, **sizes) for name, kernel in kernels.items()}

# %%
# The drift is derived from the same rule of a single step. It is no longer linear, so there are no modes
# and no closed form, and the derivation says so.

print(models["range 2"].derive().text())

# %%
# Simulation
# ----------
#
# Every step sums over all pairs of samples, in tiles. The constant kernel is run through the same
# integrator for comparison, though it would have an exact law.

times = np.linspace(0, 5, 26)
means = np.array([[0.5, 0.1], [-0.2, 0.45], [-0.2, -0.4]])
paths = {
    name: lesde.simulate(
        model, times, initial=means, replicates=32, engine="torchsde", dt=0.02, seed=1
    )
    for name, model in models.items()
}

# %%
# What the range changes
# ----------------------
#
# At first all three grow alike. Once classes are farther apart than the range they no longer feel each
# other; a class then still pulls its own samples outward until its distance to itself, and the pull of
# the few samples near by, is all that is left. The collapse of the classes, measured by NC1, slows down with it.

figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.9), layout="constrained")
for name, run in paths.items():
    metrics = lesde.neural_collapse(run, ["nc1"])
    centres = run.features.groupby("label").mean()
    gap = np.sqrt(((centres.sel(label=0) - centres.sel(label=1)) ** 2).sum("feature"))
    axes[0].plot(times, gap.mean("replicate"), label=name)
    axes[1].plot(times[1:], metrics.nc1.mean("replicate")[1:], label=name)
axes[0].set(xlabel="time", ylabel="gap of two class means", yscale="log")
axes[1].set(xlabel="time", ylabel="NC1", yscale="log")
axes[0].legend(frameon=False)
plt.show()
