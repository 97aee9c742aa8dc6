r"""
Fitting the elasticity
======================

From features to a kernel: simulate with a kernel that is known, fit it, and compare. The same call works on the
recorded features of a network, where the truth is not known; see :ref:`the example on digits
<sphx_glr_auto_examples_plot_networks.py>`.
"""

# %%
# Paths from a known kernel
# -------------------------
#
# Power laws, so that the tail indices are known: r = 0.7 for α and r = 1 for β. Paths start at t = 1.

import warnings

import matplotlib.pyplot as plt
import numpy as np

import lesde

kernel = lesde.TwoLevel(alpha="3/t**0.7", beta="-1/t")
model = lesde.LESDE(kernel, n_classes=4, n_features=6, n_per_class=60, noise=0.3)
rng = np.random.default_rng(0)
means = rng.normal(0.5, 1.0, (4, 6))
times = np.geomspace(1.0, 60.0, 41)
paths = lesde.simulate(model, times, initial=means, replicates=24, seed=3)

# %%
# The fit
# -------
#
# The class means are observed without error, so every interval between saved times is a Gaussian regression.
# Integrals A and B come with standard errors from a jackknife over replicates; α and β are smoothed from the
# rates of the intervals. Shaded: 95 % intervals. Dashed: the truth.

fit = lesde.fit_elasticity(paths)
lesde.plot.elasticity(fit, truth=kernel)

# %%
# The integrals at the last time against the truth, in standard errors:

log_t = np.log(times[-1])
truth = {"A": 3 / 0.3 * (times[-1] ** 0.3 - 1), "B": -log_t}
for name, value in truth.items():
    estimate, error = float(fit[name][-1]), float(fit[f"{name}_se"][-1])
    print(
        f"{name}: {estimate:.4f} ± {error:.4f}, truth {value:.4f} ({(estimate - value) / error:+.1f} s.e.)"
    )
print(f"noise of a sample: {float(fit.residual_scale):.4f}, truth 0.3")

# %%
# Tail indices
# ------------
#
# ``tail_index`` fits the increments of A with those of a power law. ``log_slope_index`` is 1 − d log A/d log t, the
# definition in arXiv 2110.05960. A integrates from the first saved time, so a power of t that starts at t = 1
# is not a power of t in A: the second index is off, however small the noise. It also never exceeds 1 for a
# positive rate. Use the first to decide whether r < 1.

for level in ("alpha", "beta"):
    at = fit.sel(level=level)
    print(
        f"{level:5s} tail index {float(at.tail_index):.3f} [{float(at.tail_index_lower):.3f}, "
        f"{float(at.tail_index_upper):.3f}]   by the logarithmic slope {float(at.log_slope_index):.3f}"
    )

# %%
# From the fit back to paths
# --------------------------
#
# A fit is a kernel again. Its law, started where the paths started, goes through the observed class means.

fitted = model.replace(kernel=lesde.fitted_kernel(fit), noise=float(fit.residual_scale))
lesde.plot.class_means(paths, lesde.law(fitted, times, initial=means), features=[0, 1])

# %%
# Label noise
# -----------
#
# With a share p of wrong training labels the strengths mix: α − β is multiplied by 1 − pK/(K−1). It vanishes at
# p = (K−1)/K, here 3/4, where a label says nothing about the class; beyond that the classes move
# together. The fit does not know about label noise. It sees the effective strengths.

probabilities = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
short = np.geomspace(1.0, 6.0, 9)
gaps, errors = [], []
for p in probabilities:
    noisy = model.replace(kernel=lesde.LabelNoise(kernel, float(p)))
    with warnings.catch_warnings():
        # At the transition α − β does not differ significantly from zero, so the fit warns that it has no tail index.
        warnings.filterwarnings("ignore", message="no (tail|log_slope)_index")
        one = lesde.fit_elasticity(
            lesde.simulate(noisy, short, initial=means, replicates=24, seed=4)
        )
    gaps.append(float(one.A_minus_B[-1]))
    errors.append(float(one.A_minus_B_se[-1]))

clean = 3 / 0.3 * (short[-1] ** 0.3 - 1) + np.log(short[-1])
print("   p    ∫(α−β) fitted       theory")
for p, gap, error in zip(probabilities, gaps, errors, strict=True):
    print(f"{p:5.2f}   {gap:7.3f} ± {error:.3f}   {clean * (1 - p * 4 / 3):7.3f}")

with lesde.plot.style():
    figure, ax = plt.subplots()
    ax.errorbar(probabilities, gaps, 2 * np.array(errors), fmt="o", label="fitted, ± 2 s.e.")
    ax.plot(probabilities, clean * (1 - probabilities * 4 / 3), color="black", label="theory")
    ax.axhline(0, color="0.7", linewidth=0.6)
    ax.axvline(0.75, color="#D55E00", linestyle=":", label="p = (K−1)/K")
    ax.set(xlabel="probability of a wrong label p", ylabel=r"$\int(\alpha-\beta)\,dt$")
    ax.legend()
