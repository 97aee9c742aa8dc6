r"""
Collapse of networks against the learning rate
==============================================

How do NC1 and NC2 of networks on real digits depend on the learning rate, and does a locally elastic SDE fitted to
*other* networks know? Networks are trained at learning rates over a decade and a half, all for the same time
t = learning rate × iteration. At each rate the kernel α(t), β(t) and the noise are fitted to half of the networks. From the
recorded state of each network of the other half the fitted process then runs, and the question is at which learning
rates these networks lie in the interval that the model gives for them.

This is a small version. The full one is ``lesde rates``: seven learning rates, 32 networks each, a few minutes on two cores.
"""

# %%
# One call
# --------
#
# The interval of the prediction reflects the uncertainty of the fit (kernels fitted to resamples of the networks) and
# the randomness of the predicted networks (each of these kernels runs once from every start, with the noise of drawing
# samples, the only part of the model that depends on the learning rate).

import numpy as np

import lesde
from lesde.studies import compare_learning_rates, learning_rate_experiment

rates = (0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
experiment = learning_rate_experiment(
    rates, replicates=24, total_time=16.0, probe_per_class=20, draws=10, saved_times=16
)
found = experiment.comparison
print(f"{found.attrs['fitted_replicates']} networks fitted, "
      f"{found.attrs['predicted_replicates']} predicted, from t = {found.attrs['start']:g} "
      f"to {found.attrs['at']:g}")  # fmt: skip

# %%
# The networks
# ------------
#
# NC1 and NC2 of the logits over time. In the same time t a larger learning rate takes fewer steps.

lesde.plot.collapse(lesde.neural_collapse(experiment.logits, ["nc1", "nc2_etf"]))

# %%
# Networks and models
# -------------------
#
# Values at the end, and rates of exponential decay. The background is shaded over the learning rates for which the networks
# lie in the interval of the model of that colour.

lesde.plot.learning_rate_range(found)

# %%
# In numbers, for the L-model. A wide interval contains almost anything, so its limits are given too. The I-model cannot
# change the shape of the class means, so its NC2 stays where it was.

same = found.sel(model="L-model", kernel="the same rate")
print(same[["network", "predicted_lower", "predicted", "predicted_upper", "inside"]].to_dataframe())

# %%
# One kernel for all learning rates
# ---------------------------------
#
# In the LE-SDE the kernel is a function of time alone. So a stricter question is whether the kernel of the *other*
# learning rates predicts this one, of which only the start is then used.

lesde.plot.learning_rate_range(found.sel(model=["L-model"]), kernel="the other rates")

# %%
# The spread within classes
# -------------------------
#
# In the LE-SDE as published one number σ drives the spread of the samples within their class. In networks it grows
# faster early than late, and mostly in the directions that distinguish classes. The comparison above uses the
# covariance of its growth. The single number puts NC1 too low where the kernel is known well, at small learning rates.

constant = compare_learning_rates(
    experiment.logits, start=2.0, transforms="logits", draws=10, spread="constant"
)
for name, each in (("covariance", found), ("constant", constant)):
    part = each.sel(model="L-model", kernel="the same rate", metric="nc1", quantity="value")
    ratio = np.array2string((part.network / part.predicted).values, precision=2)
    print(f"{name:10s} NC1, network / model: {ratio}")

# %%
# The full setting
# ----------------
#
# ``lesde rates`` in a terminal, or ``learning_rate_experiment()``: seven learning rates from 0.002 to 0.128, 16
# networks fitted and 16 predicted at each, t from 2 to 32, 40 draws. Its results are in :doc:`the published experiments
# </experiments>`, with the figure.
#
# What the model lacks at large learning rates is that the gradient of a sample vanishes once it is classified well. Its noise of drawing
# samples grows with the features instead, and with h, and slows the fall of NC1 and NC2.
