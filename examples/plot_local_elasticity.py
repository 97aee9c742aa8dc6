r"""
Local elasticity measured directly
==================================

A fit to class means infers the elasticity from how features drift. It can also be measured: take one SGD step at a
single sample, and see how far every other sample's features move. Local elasticity says that samples of the same
class move more. Here it is measured while networks learn digits, with errors, and compared with what the class
means say.
"""

# %%
# A known system first
# --------------------
#
# One step at sample J of class L moves sample i of class k by h E_kL H_L X_J + noise. The regression of changes on H_L X_J
# gives E back. Steps of a known matrix, made by hand:

import warnings

import matplotlib.pyplot as plt
import numpy as np

import lesde
from lesde.analysis import impact_from_changes
from lesde.networks import digits, measure_impact, mlp, saving_times

rng = np.random.default_rng(1)
labels = np.repeat([0, 1, 2], 40)
x = rng.normal(size=(3, 5))[labels] + 0.5 * rng.normal(size=(120, 5))
E = np.array([[2.0, -0.5, 0.3], [-0.4, 1.5, 0.0], [0.2, -0.6, 1.0]])
drawn, h = np.arange(0, 120, 4), 0.01
changes = h * E[labels][:, labels[drawn]].T[..., None] * x[drawn][:, None]
changes += np.sqrt(h) * 0.1 * rng.normal(size=changes.shape)
fit = lesde.fit_impact(impact_from_changes(changes, labels, x[drawn], labels[drawn], h))
print("entry    truth  estimate    (estimate − truth) / s.e.")
for k, l in np.ndindex(3, 3):
    value, error = float(fit.E[k, l]), float(fit.E_se[k, l])
    print(
        f"E[{k}, {l}] {E[k, l]:6.2f} {value:7.3f} ± {error:.3f} {(value - E[k, l]) / error:+6.1f}"
    )

# %%
# Networks that learn
# -------------------
#
# Sixteen networks with one hidden layer. At thirteen times, a copy of each takes one step at each of 20 training
# samples, five of every class, and the change of the logits of 120 images is noted. The training
# itself is not affected.

K, h = 4, 0.005
data = digits(classes=4, n_train_per_class=100, n_probe_per_class=30, scaling="standard")
times = saving_times(4.0, h, count=12)
(record,) = measure_impact(data, lambda: mlp(64, (32,), K), h, 16, times, draws=5, by="r2", seed=0)
logits, impact = (record[name].isel(learning_rate=0) for name in ("logits", "impact"))
fit = lesde.fit_impact(impact, transform="logits")
print(data)
print("  time    accuracy   α̂       β̂       α̂ − β̂, 95 % interval      explained")
for t in range(len(times)):
    at = fit.isel(time=t)
    print(
        f"{times[t]:6.3f} {float(logits.accuracy[:, t].mean()):8.3f} {float(at.alpha):8.2f} {float(at.beta):7.2f}"
        f" {float(at.alpha_minus_beta):8.2f} [{float(at.alpha_minus_beta_lower):6.2f}, "
        f"{float(at.alpha_minus_beta_upper):6.2f}] {float(at.explained_matrix):9.2f}"
    )

# %%
# At the start α̂ and β̂ hardly differ. Then α̂ − β̂ rises well above zero, while the networks learn to distinguish the
# classes, and falls as they become sure: a sample that is already classified correctly moves no other.

lesde.plot.impact(fit)

# %%
# The matrix of all classes. Its diagonal stands out, but classes differ: a single α and β is a summary.

lesde.plot.impact_matrix(fit, times=[0.25, 1.0, 1.8, 4.0])

# %%
# The relative change of He and Su (ICLR 2020), the change of another sample over that of the drawn one, needs no model
# at all. Similar images make it larger within classes from the start; training widens the gap.

for t in (0, -1):
    at = fit.isel(time=t)
    within, between = float(at.relative_within), float(at.relative_between)
    print(f"t = {times[t]:.1f}: relative change within classes {within:.3f} ± {float(at.relative_within_se):.3f}, "
          f"between {between:.3f} ± {float(at.relative_between_se):.3f}")  # fmt: skip

# %%
# By distance
# -----------
#
# Elasticity is local in the space of features: the nearer two samples, the more one moves the other. A kernel of the
# features can be fitted to this, here with one decay and a strength a within classes and b between them, and simulated as
# a ``lesde.FeatureKernel``.

strength = lesde.impact_by_distance(impact, transform="logits").isel(time=6)
decay = lesde.fit_feature_kernel(
    strength, "(s*a + (1-s)*b)*exp(-r2/u)", {"a": 10.0, "b": 5.0, "u": 5.0}
)
for name in decay.parameter.values:
    one = decay.sel(parameter=name)
    print(f"{name} = {float(one.value):6.2f} ± {float(one.value_se):.2f}")
print(
    f"Σ (residual/s.e.)² = {float(decay.chi_square):.0f} for {int(decay.freedom)} degrees of freedom"
)
parameters = dict(zip(decay.parameter.values.tolist(), decay.value.values.tolist(), strict=True))
lesde.plot.impact_by_distance(strength, lesde.FeatureKernel(decay.attrs["formula"], parameters))

# %%
# One decay is a rough description, as the sum of squares says: it is well above its degrees of freedom. The measured
# points do show this, though: at the same distance a sample of another class is moved no less than one of
# the same class. α̂ > β̂ because samples of one class are nearer to each other, and that is what the networks learn.

# %%
# Against the class means
# -----------------------
#
# ``fit_elasticity`` sees the class means of the sixteen networks, averaged, move from one saved time to the next, and knows
# nothing of single steps. Where does α − β from it differ from the measured one? Take it apart:
#
# - *draws*: every drawn sample with its own features, as above.
# - *averages*: changes and features are averaged over the drawn samples of a class and over networks first.
# - *sum*: as the class means have it, the average changes by all classes are added up, and one regression on the
#   class means finds α and β. The same equation as in ``fit_elasticity``, but its left side was measured.


def from_summed_changes(at):
    """α − β by least squares from the summed average changes at one time, in the L-model."""
    drawn_mean = np.stack([at.drawn.values[:, at.drawn_label == k].mean((0, 1)) for k in range(K)])
    d = np.eye(K) - 1 / K
    u = (drawn_mean * d).sum(1, keepdims=True) * d / (1 - 1 / K)
    drift = at.change.mean(("replicate", "draw")).values / h
    same, other = u / K, (u.sum(0) - u) / K
    a, b = np.linalg.lstsq(np.stack([same.ravel(), other.ravel()], 1), drift.ravel(), rcond=None)[0]
    return a - b


summed = [from_summed_changes(impact.isel(time=t)) for t in range(len(times))]
averages = lesde.fit_impact(impact, transform="logits", estimator="averages")
later = slice(2, None)  # before, the class means have hardly a direction
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="no (tail|log_slope)_index")
    means = lesde.fit_elasticity(
        logits.isel(time=later), transform="logits", estimator="averages", smoothing=None
    )
print("α − β     from steps:                       from class means:")
print("  time    draws   averages     sum          fit_elasticity")
for i, middle in enumerate(means.interval.values):
    columns = [
        np.interp(middle, times, y)
        for y in (fit.alpha_minus_beta, averages.alpha_minus_beta, summed)
    ]
    print("{:6.2f} {:8.2f} {:8.2f} {:9.2f} {:14.2f} ± {:.2f}".format(
        middle, *columns, float(means.alpha_minus_beta_raw[i]), float(means.alpha_minus_beta_raw_se[i])))  # fmt: skip

# %%
# The sum agrees with the class means: both measure the same thing. The other columns differ because a network is not
# the model, in which all are equal. One by one, steps give far less than the class means early on: most of ‖u_J‖² is then
# scatter about the class mean, which does not affect how a step moves others, but counts in the denominator of the
# regression. Averaged class by class, the changes give more than the class means late in training: steps of
# different classes then move a class in opposite directions, and less of the remaining sum lies along u.

with lesde.plot.style():
    figure, ax = plt.subplots()
    ax.fill_between(
        means.interval,
        means.alpha_minus_beta_raw_lower,
        means.alpha_minus_beta_raw_upper,
        color="0.85",
    )
    ax.plot(means.interval, means.alpha_minus_beta_raw, color="black", label="class means")
    ax.plot(times[later], summed[later], ":", label="steps, summed")
    ax.plot(times[later], averages.alpha_minus_beta[later], "--", label="steps, averaged")
    ax.plot(times[later], fit.alpha_minus_beta[later], "-.", label="steps, one by one")
    ax.set(xlabel="time", ylabel=r"$\hat{\alpha} - \hat{\beta}$", yscale="log")
    ax.legend()
