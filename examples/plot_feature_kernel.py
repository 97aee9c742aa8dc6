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
# limit of a long range. A formula can also use the inner product ``g``, the cosine ``c`` and the time ``t``.

import matplotlib.pyplot as plt
import numpy as np

import lesde

sizes = {"n_classes": 3, "n_features": 2, "n_per_class": 40, "noise": 0.25}
ranges = {"constant": None, "range 4": 4.0, "range 2": 2.0}
kernels = {
    name: lesde.TwoLevel(1.5, -0.5)
    if length is None
    else lesde.FeatureKernel("(1.5*s - 0.5*(1 - s)) * exp(-r2/(2*l**2))", parameters={"l": length})
    for name, length in ranges.items()
}
models = {name: lesde.LESDE(kernel, **sizes) for name, kernel in kernels.items()}

# %%
# The drift is derived from the same rule of a single step. It is no longer linear, so there are no modes
# and no closed form, and the derivation says so.

print(lesde.derive(models["range 2"]).text())

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
        model, times, initial=means, replicates=32, engine=lesde.TorchSDE(dt=0.02), seed=1
    )
    for name, model in models.items()
}

# %%
# What the range changes
# ----------------------
#
# At first all three grow alike. Once classes are farther apart than the range they push each other less, so
# gaps grow more slowly than exponentially, and the collapse of the classes, measured by NC1, slows down
# with them: a rate fitted at the start of a run does not predict its end.

with lesde.plot.style():
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.6), layout="constrained")
    for name, run in paths.items():
        kept = lesde.statistics(run)
        gap = kept["mean"].isel({"class": 0}) - kept["mean"].isel({"class": 1})
        axes[0].plot(times, np.sqrt((gap**2).sum("feature")).mean("replicate"), label=name)
        nc1 = lesde.neural_collapse(run, ["nc1"]).nc1.mean("replicate")
        axes[1].plot(times[1:], nc1[1:], label=name)
    axes[0].set(xlabel="time", ylabel="gap of two class means", yscale="log")
    axes[1].set(xlabel="time", ylabel="NC1", yscale="log")
    axes[0].legend(frameon=False)

# %%
# The samples of two classes along the gap of their means, for the shortest range.

lesde.plot.separation_fan(paths["range 2"], pair=(0, 1))
plt.show()
