r"""
First steps: from a kernel to a probability
===========================================

Write down how strongly training on one class moves the others, let the package derive the equations,
simulate them, and ask how often the classes end up separated. The simulated frequency, with its
confidence interval, is then compared with the probability that the exact law of the model gives.
"""

# %%
# The model
# ---------
#
# A step of SGD on a sample of class :math:`l` moves the features of class :math:`k` with strength
# :math:`E_{kl}(t)`. The two-level kernel has one strength :math:`\alpha(t)` within a class and one,
# :math:`\beta(t)`, between classes. Here the pull within a class dies out as training proceeds.

import numpy as np

import lesde

kernel = lesde.TwoLevel(alpha="2/(1+t)", beta=-0.5)
model = lesde.LESDE(kernel, n_classes=3, n_features=3, n_per_class=40, noise=0.5)
print(model)

# %%
# What follows from it
# --------------------
#
# :func:`lesde.derive` takes the microscopic rule of a single step and works out drift and
# diffusion, the modes of the class means, their closed forms, and the rates of separation and
# collapse. ``derivation.latex(document=True)`` gives the same as an article that compiles.

derivation = lesde.derive(model)
print(derivation.text())

# %%
# The most important quantities are available one by one, as SymPy expressions.

print("growth rate of the gap of two class means:", derivation.separation_rate)
print("c of α − β = c/t at which separation sets in:", derivation.critical_constant)

# %%
# Simulation
# ----------
#
# All samples of a class start at its mean. By default, paths are drawn from the exact law of the
# stochastic differential equation, at the saved times only: there is no step size to choose.

times = np.linspace(0.0, 8.0, 33)
means = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.2], [0.2, 0.0, 1.0]])
paths = lesde.simulate(model, times, initial=means, replicates=256, seed=1)
print(paths)

# %%
# One trajectory, projected on the gap of two class means: thin lines are samples, bold lines class
# means.

lesde.plot.separation_fan(paths, pair=(0, 1))

# %%
# The same trajectory in the plane of the class means, at three times.

lesde.plot.simplex(paths)

# %%
# How often are the classes separated?
# ------------------------------------
#
# Two classes count as separated when all samples of one lie beyond all samples of the other along the
# gap of the ensemble's class means. The result holds the frequency and its interval, for each pair
# and for all pairs at once.

prob = lesde.separation_probability(paths, confidence=0.95)

# %%
# The law of the model is Gaussian, so the probability can be computed without simulating. For one pair
# it is exact. For all pairs at once it is exact with two classes; with more there are an upper and a
# lower bound.

prediction = lesde.predict_separation(model, times, initial=means)

print("    t    counted over 256 [95 % interval]   predicted, classes 0 and 1")
for t in times[4::4]:
    seen, exact = prob.sel(time=t), prediction.sel(time=t)
    value, low, high = (
        float(seen[name][0, 1]) for name in ("pairwise", "pairwise_lower", "pairwise_upper")
    )
    print(
        f"{t:5.1f}    {value:.3f} [{low:.3f}, {high:.3f}]               {float(exact.pairwise[0, 1]):.3f}"
    )

# %%
# One pair:

lesde.plot.probability(prob, prediction, pair=(0, 1))

# %%
# All three pairs at once, with the bounds:

lesde.plot.probability(prob, prediction)

# %%
# Rare failures
# -------------
#
# Where nearly all replicates are separated a frequency says little, but the prediction remains
# accurate: it computes the logarithm of the failure probability.

print(f"1 − P at t = 8: {np.exp(float(prediction.log_failure[-1, 0, 1])):.3e}")
lesde.plot.probability(prob, prediction, pair=(0, 1), failure=True)
