r"""
Calibrating a kernel by maximum likelihood
==========================================

A kernel as a formula with unknown numbers in it, and paths to find them from. The class means of a model are Gaussian
between saved times, with a law that is known exactly, so the likelihood of paths is known too, and torch
differentiates it. :func:`lesde.calibrate` maximises it and takes standard errors from its curvature.
:ref:`Fitting the elasticity <sphx_glr_auto_examples_plot_fit_elasticity.py>` needs no formula for α and β: with one,
fewer numbers are estimated and each is sharper.
"""

# %%
# A kernel with open names
# ------------------------
#
# ``None`` leaves a name open. Such a model can be derived; to simulate it, give the names values with ``substitute``.

import matplotlib.pyplot as plt
import numpy as np
import torch

import lesde

kernel = lesde.TwoLevel("a/(1+t)**r", "b", parameters={"a": None, "b": None, "r": None})
model = lesde.LESDE(
    kernel, n_classes=4, n_features=4, n_per_class=20, transform="logits", noise=1.0
)
print(f"open: {', '.join(model.free_parameters)}")

truth = {"a": 3.0, "b": -0.4, "r": 0.8}
means = np.random.default_rng(0).normal(size=(4, 4))
times = np.linspace(0.0, 6.0, 13)
paths = lesde.simulate(
    model.substitute(**truth), times, initial=means, replicates=12, dtype="float64", seed=1
)

# %%
# The estimates
# -------------
#
# From a start that is far off. The size of the noise is estimated along with the names, as a factor of the model's
# σ; here it is 1.

fit = lesde.calibrate(paths, model, start={"a": 1.0, "b": 0.0, "r": 0.0})
print("       estimate   s.e.    95 % interval       truth")
for name, value in truth.items():
    at = fit.sel(parameter=name)
    print(
        f"{name}     {float(at.estimate):8.3f} {float(at.standard_error):7.3f}   "
        f"[{float(at.lower):6.3f}, {float(at.upper):6.3f}]   {value:6.2f}"
    )
print(f"factor of the noise: {float(fit.noise_scale):.3f} ± {float(fit.noise_scale_error):.3f}")

# %%
# The likelihood around them
# --------------------------
#
# The likelihood as a function of a and r, with b at its estimate. On the lines twice its logarithm is below the maximum
# by the quantiles 0.5, 0.95 and 0.99 of χ² with two degrees of freedom, from the inside out. Dashed: the same for the
# quadratic approximation behind the standard errors. The likelihood leans to one side, so at 99 % the quadratic is only
# a rough description.

observed = np.stack(
    [paths.features.values[:, :, model.labels == k].mean(2) for k in range(4)], axis=2
)
fitted = {name: float(fit.estimate.sel(parameter=name)) for name in model.free_parameters}
plain = model.replace(noise=float(fit.noise_scale))


def log_likelihood(a, r):
    values = {**fitted, "a": a, "r": r}
    law = lesde.tensor_law(plain, times, means, parameters=values)
    return float(law.log_likelihood(observed))


# With b held the covariance of a and r is the inverse of their block of the information. The grid is turned and
# stretched along it, as the estimates of a and r are correlated: a larger value of one makes up for the other.
information = np.linalg.inv(fit.covariance.values)
root = np.linalg.cholesky(np.linalg.inv(information[np.ix_([0, 2], [0, 2])]))
z = np.linspace(-3.8, 3.8, 17)
grid_a, grid_r = np.einsum("ij,jkl->ikl", root, np.stack(np.meshgrid(z, z)))
grid_a, grid_r = grid_a + fitted["a"], grid_r + fitted["r"]
with torch.no_grad():
    best = log_likelihood(fitted["a"], fitted["r"])
    fall = np.vectorize(lambda a, r: 2 * (best - log_likelihood(a, r)))(grid_a, grid_r)

levels = -2 * np.log(1 - np.array([0.5, 0.95, 0.99]))
angle = np.linspace(0, 2 * np.pi, 200)
with lesde.plot.style():
    figure, ax = plt.subplots(figsize=(3.4, 2.8))
    ax.contour(grid_a, grid_r, fall, levels=levels, colors="#0072B2", linewidths=1.0)
    for level in levels:
        x, y = np.sqrt(level) * root @ np.stack([np.cos(angle), np.sin(angle)])
        ax.plot(x + fitted["a"], y + fitted["r"], "--", color="0.55", linewidth=0.8)
    ax.plot([], [], color="#0072B2", linewidth=1.0, label="likelihood")
    ax.plot([], [], "--", color="0.55", linewidth=0.8, label="quadratic")
    ax.plot(fitted["a"], fitted["r"], "o", color="#0072B2", label="estimate")
    ax.plot(truth["a"], truth["r"], "x", color="black", label="truth")
    ax.set(xlabel="a", ylabel="r")
    ax.legend(loc="upper left")

# %%
# As functions of time
# --------------------
#
# Bands of α(t) and β(t): kernels with values drawn from the normal distribution of the estimates. Beside them the fit
# without a formula, for each interval by itself.

drawn = np.random.default_rng(2).multivariate_normal(fit.estimate, fit.covariance, size=400)
fine = np.linspace(0, 6, 61)
curves = {
    "alpha": drawn[:, :1] / (1 + fine) ** drawn[:, 2:],
    "beta": np.broadcast_to(drawn[:, 1:2], (400, 61)),
}
true_curves = {"alpha": truth["a"] / (1 + fine) ** truth["r"], "beta": np.full(61, truth["b"])}
free_fit = lesde.fit_elasticity(paths, transform="logits")

with lesde.plot.style():
    figure, axes = plt.subplots(2, 1, figsize=(3.4, 3.6), sharex=True)
    for ax, name, letter, colour in zip(axes, curves, "αβ", ["#0072B2", "#D55E00"], strict=True):
        middle = (free_fit["start"].values + free_fit["end"].values) / 2
        raw, raw_error = free_fit[f"{name}_raw"].values, free_fit[f"{name}_raw_se"].values
        ax.errorbar(
            middle,
            raw,
            2 * raw_error,
            fmt="o",
            color="0.6",
            markersize=2.5,
            elinewidth=0.8,
            label="interval by interval, ± 2 s.e.",
        )
        low, high = np.quantile(curves[name], [0.025, 0.975], axis=0)
        ax.fill_between(
            fine, low, high, color=colour, alpha=0.35, linewidth=0, label="calibrated, 95 %"
        )
        ax.plot(fine, true_curves[name], "--", color="black", linewidth=1.0, label="truth")
        ax.set_ylabel(f"{letter}(t)")
    axes[1].set_xlabel("t")
    axes[0].legend(loc="upper right")

# %%
# The error of a prediction
# -------------------------
#
# What follows from the estimates has errors too. ``lesde.tensor_law`` gives the gradient of anything that is computed
# from the law; with the covariance of the estimates this gives a standard error. Here the expected gap between the
# first two classes at t = 12, twice as late as the paths end.

theta = torch.tensor(fit.estimate.values, requires_grad=True)
law = lesde.tensor_law(model,
    [0.0, 12.0], means,
    parameters=dict(zip(fit.parameter.values.tolist(), theta, strict=True)),
)  # fmt: skip
gap = torch.linalg.norm(law.centred_mean[1, 0] - law.centred_mean[1, 1])
(slope,) = torch.autograd.grad(gap, theta)
spread = float(np.sqrt(slope.numpy() @ fit.covariance.values @ slope.numpy()))
exact = lesde.law(model.substitute(**truth), [0.0, 12.0], means)["centred_mean"][1]
true_gap = float(np.linalg.norm(exact[0] - exact[1]))
print(f"gap at t = 12: {float(gap.detach()):.2f} ± {spread:.2f}, truth {true_gap:.2f}")
