r"""
The SDE as the limit of SGD
===========================

The locally elastic SDE describes the discrete process, in which one sample is drawn at a time, in the limit
of small learning rates h. How small is small? Here the discrete process is simulated at several
learning rates and compared with the exact law of the SDE, for which no simulation is needed.
"""

# %%
# One model, two descriptions
# ---------------------------
#
# Two classes of 20 samples. At learning rate h, time t = 1 takes 1/h iterations.

import matplotlib.pyplot as plt
import numpy as np

import lesde

model = lesde.LESDE(
    lesde.TwoLevel(alpha=2, beta=-1), n_classes=2, n_features=2, n_per_class=20, noise=0.5
)
means = np.array([[0.5, 0.2], [-0.3, 0.1]])
times = [0.0, 1.0]
rates = np.array([0.2, 0.1, 0.05, 0.025, 0.0125])
replicates = 1024
sgd = lesde.simulate(
    model, times, initial=means, replicates=replicates, learning_rate=rates, seed=7
)
law = lesde.law(model, times, initial=means)

# %%
# Expectations
# ------------
#
# The gap of the two class means at t = 1, averaged over replicates, with its standard error. The
# discrete process grows by 1 + h rate per step where the SDE grows by exp(h rate), so its gap is too
# small by a relative amount of about h rate²/2. The error is of first order in h: the weak order of
# the approximation.

final = sgd.features.isel(time=-1).groupby("label").mean("sample")
gap = (final.sel(label=0) - final.sel(label=1)).astype(float)
exact = law["mean"][-1, 0] - law["mean"][-1, 1]
target = float(np.linalg.norm(exact))
along = exact.values / target
gap = (gap * along).sum("feature")
error = (gap.mean("replicate") - target).values
standard = (gap.std("replicate", ddof=1) / np.sqrt(replicates)).values

growth = 1.5  # (α − β)/K
discrete = (
    np.linalg.norm(means[0] - means[1]) * (1 + rates * growth) ** np.round(1 / rates) - target
)
print("     h     error of the gap ± s.e.      (1 + h rate)^(1/h) − exp(rate)")
for h, e, s, d in zip(rates, error, standard, discrete, strict=True):
    print(f"{h:7.4f}   {e:8.4f} ± {s:.4f}             {d:8.4f}")
z = (error - discrete) / standard
print(f"largest deviation from the discrete growth: {np.abs(z).max():.1f} standard errors")

# %%
# Fluctuations
# ------------
#
# The drawn sample is random, so SGD has a noise that the SDE lacks. It is shared by all samples of a
# class: it moves class means, not the spread within a class, and its variance is h times the covariance
# C of the kicks (see ``lesde.derive(model).diffusion``). So the variance of the gap exceeds that of the SDE by
# a term of order h, too.

C = law["covariance"][-1]
blocks = C[0, :, 0] + C[1, :, 1] - C[0, :, 1] - C[1, :, 0]
sde_variance = float(along @ blocks.values @ along)
variance = gap.var("replicate", ddof=1).values
spread = variance * np.sqrt(2 / (replicates - 1))
print(f"variance of the gap, SDE: {sde_variance:.4f}")
for h, v, s in zip(rates, variance, spread, strict=True):
    print(f"  SGD with h = {h:<6g}: {v:.4f} ± {s:.4f}")

with lesde.plot.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.4))
    left.errorbar(rates, -error, 2 * standard, fmt="o", label="simulated")
    left.plot(rates, -discrete, color="0.5", label="growth by $1 + hλ$")
    left.set(xscale="log", yscale="log", xlabel="learning rate h", ylabel="error of the mean gap")
    left.legend()
    right.errorbar(rates, variance, 2 * spread, fmt="s", label="SGD")
    right.axhline(sde_variance, color="black", linestyle="--", label="SDE")
    right.set(xscale="log", xlabel="learning rate h", ylabel="variance of the gap")
    right.legend()
    for ax in (left, right):
        ax.set_xticks(rates, labels=[f"{h:g}" for h in rates])
        ax.minorticks_off()
    left.set_yticks([0.05, 0.1, 0.2, 0.5], labels=["0.05", "0.1", "0.2", "0.5"])

# %%
# Separation
# ----------
#
# The probability of separation in both descriptions. The prediction is for the SDE.

prob = lesde.separation_probability(sgd)
prediction = float(lesde.predict_separation(model, times, initial=means).probability[-1])
print(f"P(separated), SDE: {prediction:.4f}")
at_end = prob.isel(time=-1)
for h in rates:
    one = at_end.sel(learning_rate=h)
    print(
        f"  SGD with h = {h:<6g}: {float(one.probability):.3f} "
        f"[{float(one.lower):.3f}, {float(one.upper):.3f}]"
    )

with lesde.plot.style():
    figure, ax = plt.subplots()
    middle = at_end.probability.values
    bars = np.stack([middle - at_end.lower.values, at_end.upper.values - middle])
    ax.errorbar(rates, middle, bars, fmt="o", label="SGD, 95 % interval")
    ax.axhline(prediction, color="black", linestyle="--", label="SDE, predicted")
    ax.set(xscale="log", xlabel="learning rate h", ylabel="P(separated)")
    ax.set_xticks(rates, labels=[f"{h:g}" for h in rates])
    ax.minorticks_off()
    ax.legend()

# %%
# At large h both effects act against separation: the gap grows more slowly, and it is noisier.
