r"""
The phase transition at c = K/2
===============================

Let the elasticity gap die out as :math:`\alpha - \beta = c/t`. In the I-model with K balanced classes
the gap of two class means then grows as :math:`t^{c/K}`, and the spread within a class as
:math:`t^{1/2}`. So there is a critical constant: with :math:`c > K/2` the classes come apart, with
:math:`c < K/2` noise buries them. Zhang, Wang and Su (arXiv 2110.05960) show that classes separate for
:math:`\alpha - \beta = \omega(1/t)` and do not for :math:`o(1/t)`; this is the border between the two,
with its constant.

Nearly everything here is computed from the exact law of the model, and needs no simulation.
"""

# %%
# The critical constant, derived
# ------------------------------

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy.optimize import brentq
from scipy.stats import linregress, norm

import lesde
from lesde.analysis import separation_function

K, n, sigma, start_gap = 2, 50, 1.0, 2.0
means = np.array([[start_gap / 2, 0.0], [-start_gap / 2, 0.0]])


def model_of(c):
    """The I-model with α − β = c/t; β = −α, so that the grand mean does not grow."""
    kernel = lesde.TwoLevel(alpha="c/(2*t)", beta="-c/(2*t)", parameters={"c": c})
    return lesde.LESDE(kernel, K, 2, n, noise=sigma)


print("critical constant:", lesde.derive(model_of(1.0)).critical_constant)

# %%
# The phase diagram
# -----------------
#
# The probability that all samples of one class lie beyond all samples of the other, over c and time.
# Paths start at t = 1, where the kernel is finite, with every sample at its class mean.

constants = np.round(np.arange(0.4, 1.81, 0.05), 2)
times = np.concatenate([[1.0], np.geomspace(1.5, 1e10, 40)])
runs = [lesde.predict_separation(model_of(c), times, initial=means) for c in constants]
data = xr.concat([run.probability for run in runs], xr.IndexVariable("c", constants)).to_dataset()
data.attrs["n_classes"] = K

# %%
# The speed at which the picture sharpens is known too. Two samples of n standard normals each separate
# with probability 1/2 when their means are :math:`a_n` apart. The gap over the spread is
# :math:`(\Delta_0/\sigma)\, t^{c/K} / \sqrt{t-1}`, so it passes :math:`a_n` at
#
# .. math:: \frac{c}{K} = \frac{\log(a_n \sigma \sqrt{t-1}/\Delta_0)}{\log t}
#           \;\approx\; \frac12 + \frac{\log(a_n \sigma/\Delta_0)}{\log t} .
#
# At any finite time the line P = 1/2 is off K/2 by a term that falls as slowly as 1/log t. A transition
# read off an experiment at one time is misplaced by that much.

a_n = brentq(lambda gap: separation_function(gap, n, n).probability - 0.5, 0.0, 20.0)
later = data.time.values > 1.0
half = np.full(len(times), np.nan)
half[later] = K * np.log(a_n * sigma * np.sqrt(times[later] - 1) / start_gap) / np.log(times[later])
data["transition"] = ("time", half)
# At t = 1 every sample is at its class mean; the figure starts one time later.
lesde.plot.phase_diagram(data.isel(time=slice(1, None)))

# %%
# White: where the probability is 1/2. Dashed: the formula above. Dotted: the critical line c = K/2, to which
# both tend as t grows. A regression of the crossing on 1/log t finds the limit:

crossing = []
for t in times[-15:]:
    at = data.probability.sel(time=t).values
    crossing.append(np.interp(0.5, at, constants))
line = linregress(1 / np.log(times[-15:]), crossing)
print(
    f"P = 1/2 extrapolated to infinite time: c = {line.intercept:.3f}, to compare with K/2 = {K / 2:g}"
)

# %%
# The limit itself is not a step
# ------------------------------
#
# Above the critical constant the probability does not tend to 1. The noise of the class means in the
# first moments is amplified by the same factor :math:`t^{c/K}` as the gap. In the limit the gap is
# normal with mean :math:`\Delta_0` and variance :math:`2\sigma^2/(n(2c/K-1))` in units of that factor, and
# so (with :math:`t_0 = 1`)
#
# .. math:: P(\infty) = \Phi\!\left(\frac{\Delta_0}{\sigma}\sqrt{\frac{n\,(2c/K-1)}{2}}\right)
#           \qquad\text{for } c > K/2 .
#
# In the remaining cases the classes come apart as well, in the opposite order: early noise has turned
# the gap around. Below the critical constant the gap over the spread keeps a fluctuation of variance
# :math:`2/(n(1-2c/K))` about zero, and the probability is small but not zero:
# :math:`P(\infty) = \mathbb{E}\,F(R)`, with F the separation function and R normal. Both sides meet at
# 1/2 where c = K/2, and the step becomes sharp as n grows.


def limit(c):
    ratio = 2 * c / K
    if ratio > 1:
        return norm.cdf(start_gap / sigma * np.sqrt(n * (ratio - 1) / 2))
    # The samples' own mean noise, 2/n, is part of F already.
    return separation_function(0.0, n, n, extra_variance=2 / n * ratio / (1 - ratio)).probability


print("     c    P at t = 1e10    P at t = 1e40    P at infinity")
for c in (0.9, 0.99, 1.01, 1.05, 1.2, 1.5):
    P = lesde.predict_separation(model_of(c), [1.0, 1e10, 1e40], initial=means).probability
    print(f"{c:6.2f}    {float(P[1]):13.6f}    {float(P[2]):13.6f}    {float(limit(c)):13.6f}")

# %%
# Near the critical constant even :math:`t = 10^{40}` is not late: there the exponent c/K − 1/2 is small. Away
# from it the limit is reached and agrees with the formula.

fine = np.linspace(0.4, 1.8, 141)
fine = fine[np.abs(fine - K / 2) > 1e-9]
with lesde.plot.style():
    figure, ax = plt.subplots()
    for t, shade in zip(times[[10, 20, 40]], ("0.75", "0.5", "0.2"), strict=True):
        ax.plot(constants, data.probability.sel(time=t), color=shade, label=f"t = {t:.0e}")
    ax.plot(fine, [limit(c) for c in fine], color="#0072B2", label="limit")
    ax.axvline(K / 2, color="#D55E00", linestyle=":")
    ax.set(xlabel="c", ylabel="P(separated)")
    ax.legend()

# %%
# Turned around, not overlapping
# ------------------------------
#
# Above the transition the missing probability is that of the opposite order. To see it, take few
# samples and a small initial gap, so that it is large, and simulate. The exact engine jumps to
# t = 10⁸ in one step.

n, start_gap, c = 5, 1.0, 1.8
means = np.array([[start_gap / 2, 0.0], [-start_gap / 2, 0.0]])
paths = lesde.simulate(
    model_of(c), [1.0, 1e8], initial=means, replicates=2048, dtype="float64", seed=4
)
for words, options in (
    ("along the initial gap", {"direction": [1.0, 0.0]}),
    ("along each path's own gap", {"direction": "own"}),
):
    end = lesde.separation_probability(paths, **options).isel(time=-1)
    print(
        f"separated {words}: {float(end.probability):.3f} "
        f"[{float(end.lower):.3f}, {float(end.upper):.3f}]"
    )
print(f"limit by the formula: {float(limit(c)):.3f}")
