r"""
Networks on handwritten digits
==============================

The analyses do not know where features come from. Here they come from small networks, trained by plain SGD on
real digits, and go through the same calls as simulated paths: how often the classes are separated, how far the
features have collapsed, which elasticity explains the motion, and how much of the motion it explains.

This is a small version, which runs in seconds. ``lesde demo`` does the same with several learning rates,
simulates the fitted equations, and writes a report.
"""

# %%
# Training
# --------
#
# Sixteen networks with one hidden layer, batch size 1, no momentum. Time is t = learning rate × iteration. The
# features are the logits, and those of the last hidden layer, of 30 fixed training images per class.

import warnings

import numpy as np

import lesde
from lesde.networks import collect, digits, mlp, record_ensemble, saving_times

K, h = 4, 0.005
data = digits(classes=(0, 1, 2, 3), n_train_per_class=100, n_probe_per_class=30, scaling="standard")
times = saving_times(12.0, h, count=24)
records = record_ensemble(data, lambda: mlp(64, (32,), K), h, 16, times, seed=0)
layers = {name: layer.isel(learning_rate=0) for name, layer in collect(records).items()}
logits, hidden = layers["logits"], layers["penultimate"]
print(data)
print(f"accuracy at the end: {float(logits.accuracy[:, -1].mean()):.3f}")

# %%
# One network: its samples projected on the gap of two class means, and its logits in the plane of the
# class means, with the nearest simplex.

lesde.plot.separation_fan(logits, pair=(0, 1))

# %%
lesde.plot.simplex(logits)

# %%
# Separation
# ----------
#
# The share of the sixteen networks in which all pairs of classes are separated along the ensemble's direction.
# With sixteen trials the interval is wide, and says so.

prob = lesde.separation_probability(logits)
lesde.plot.probability(prob)

# %%
# Collapse
# --------
#
# The last hidden layer. Its dataset contains the weights of the classifier, so NC3 and NC4 are computed too.

nc = lesde.neural_collapse(hidden)
for name in ("nc1", "nc1_cdnv", "nc2_etf", "nc3", "nc4"):
    first, last = (float(nc[name].isel(time=i).median("replicate")) for i in (0, -1))
    print(f"{name:9s} {first:7.3f} → {last:7.3f}   {nc[name].attrs['long_name']}")
lesde.plot.collapse(nc, ["nc1", "nc2_etf", "nc3"])

# %%
# Elasticity
# ----------
#
# Fitted to the logits from t = 1 on, in the I-model and in the L-model. The default estimator treats every network
# as a path of the LE-SDE. In a network the loss pulls noise back, and such a fit mistakes that for elasticity. With
# ``estimator="averages"`` the class means are averaged over networks first, as Zhang, Wang and Su (arXiv
# 2110.05960) do. For each fit, run the fitted LE-ODE from the networks' average state at t = 1 and see how far
# its class means are from theirs.

late = logits.sel(time=slice(1.0, None))
averages = late.features.mean("replicate").groupby("label").mean("sample")
averages = averages.transpose("time", "label", "feature").values.astype(float)


def fitted_model(transform, estimator):
    with warnings.catch_warnings():
        # α̂ of a network changes sign, so it has no index of the power-law tail; the fit says so.
        warnings.filterwarnings("ignore", message="no (tail|log_slope)_index")
        fit = lesde.fit_elasticity(late, transform=transform, estimator=estimator)
    model = lesde.LESDE(
        lesde.fitted_kernel(fit),
        K,
        K,
        n_per_class=30,
        transform=transform,
        noise=float(fit.residual_scale),
    )
    return fit, lesde.law(model, late.time.values, initial=averages[0])


print(
    "model      estimator     explained of the common motion    error of the LE-ODE's class means"
)
for transform in ("identity", "logits"):
    for estimator in ("likelihood", "averages"):
        fit, law = fitted_model(transform, estimator)
        error = np.sqrt(((law["mean"].values - averages) ** 2).sum() / (averages**2).sum())
        share = (float(fit[f"r_squared_common{end}"]) for end in ("", "_lower", "_upper"))
        print("{:10s} {:12s}  {:.2f} [{:.2f}, {:.2f}]                  {:8.1%}".format(
            transform, estimator, *share, error))  # fmt: skip

# %%
# The last of these, the L-model from averages. First its elasticities:

lesde.plot.elasticity(fit)

# %%
# Then its class means against those of the networks. The model is not the network; the table above and
# this figure say by how much.

lesde.plot.class_means(late, law, features=[0, 1])

# %%
# One σ cannot do everything
# --------------------------
#
# In the LE-SDE noise spreads the samples of a class and moves their mean, with one σ. In SGD the noise of the
# class means comes mostly from the drawn sample, which all samples of a class share. So σ from the class
# means, which the fit reports, is far larger than σ from the growth of the spread within classes.

labels = late.label.values
x = late.features.values.astype(float)
within = np.mean([x[:, :, labels == k].var(axis=2, ddof=1) for k in range(K)], axis=(0, 1, 3))
elapsed = late.time.values - late.time.values[0]
growth = within - within[0]
sigma = np.sqrt(max(elapsed @ growth / (elapsed @ elapsed), 0))
print(f"σ from class means: {float(fit.residual_scale):.2f}, from the spread: {sigma:.2f}")
