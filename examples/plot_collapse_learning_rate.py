r"""
Neural collapse and the learning rate
=====================================

In the L-model the class means of K classes are driven towards a simplex equiangular tight frame (ETF). With a
constant :math:`\beta < 0` the distance to it, the NC2 error, falls as :math:`e^{-|\beta| t/(K-1)}` in the
stochastic differential equation. SGD at a finite learning rate follows it for a while and then stops at a
floor, because the randomness of the drawn sample keeps pushing the means off the frame.

K must be at least 4 to see any of this: with three classes every contrast of the scores is an ETF.
"""

# %%
# Model and theory
# ----------------

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import linregress

import lesde

K, alpha, beta = 5, 1.0, -1.0
model = lesde.LESDE(
    lesde.TwoLevel(alpha, beta), K, K, n_per_class=20, transform="logits", noise=0.02
)
derivation = lesde.derive(model)
print("d/dt log NC1 =", derivation.nc1_rate)
print("d/dt log NC2 =", derivation.nc2_rate, " (|β|/(K−1) =", abs(beta) / (K - 1), ")")

# %%
# Simulation
# ----------
#
# The class means start near the frame, with a perturbation that is the same in all replicates. The SDE has no
# learning rate; the discrete process is run at four.

rng = np.random.default_rng(3)
means = np.eye(K) - 1 / K + rng.normal(0, 0.25, (K, K))
times = np.linspace(0, 18, 46)
rates = [0.005, 0.01, 0.02, 0.04]
long = np.linspace(0, 40, 81)
sde = lesde.simulate(model, long, initial=means, replicates=32, dtype="float64", seed=5)
sgd = lesde.simulate(model, times, initial=means, replicates=32, learning_rate=rates, seed=2)

# %%
# The metrics
# -----------
#
# NC1 is the spread within classes in units of that between them; it falls at the same rate at every
# learning rate.

nc_sde = lesde.neural_collapse(sde)
nc_sgd = lesde.neural_collapse(sgd)
lesde.plot.collapse(nc_sgd, ["nc1", "nc2_etf"])

# %%
# Rates of the SDE
# ----------------
#
# :func:`lesde.convergence` fits exponential and power-law decay, with intervals over replicates, and says which
# the data prefer. With later and later starts of the window:

for start in (5.0, 10.0, 20.0, 30.0):
    fitted = lesde.convergence(nc_sde, ["nc1", "nc2_etf"], against="time", start=start)
    one, two = fitted.sel(metric="nc1", clock="time"), fitted.sel(metric="nc2_etf", clock="time")
    grown = np.log(long[-1] / start) / (long[-1] - start)
    print(
        f"from t = {start:<4g} NC1 {float(one.rate):.4f} [{float(one.rate_lower):.4f}, "
        f"{float(one.rate_upper):.4f}], theory on average {0.8 - grown:.4f};   NC2 "
        f"{float(two.rate):.4f} [{float(two.rate_lower):.4f}, {float(two.rate_upper):.4f}]"
    )
print(f"NC2, theory at late times: {abs(beta) / (K - 1):.4f}")

# %%
# NC2 approaches β/(1−K) from below, because its rate is that of the limit of small errors: a distance
# that starts at 0.6 is not small, and it also contains what is left of the initial means, which fades
# faster. The interval does not cover the limit. It is taken over replicates, which share their initial
# means: it says how well the slope of the best line is known, and does not include the curvature.
#
# The floor of SGD
# ----------------
#
# A drawn sample moves the class means by a random kick proportional to h and to the features themselves,
# 1/h times per unit of time. Relative to the frame, whose growth sets the scale, this is noise of variance
# proportional to h, against which the error decays at a fixed rate. Linearised about the frame it is an
# Ornstein-Uhlenbeck process, and the root mean square of the NC2 error settles at
#
# .. math:: \sqrt{h}\;(\alpha-\beta)\,\sqrt{\frac{2\,(1-2/K)(K-1)}{K\,|\beta|}}
#
# for constant rates and small h (see :ref:`the derivation <nc2-floor>`). To see it without waiting for
# the transient, start on the frame itself.

on_frame = lesde.simulate(
    model,
    np.linspace(0, 18, 19),
    initial=np.eye(K) - 1 / K,
    replicates=48,
    learning_rate=rates,
    seed=6,
)
squares = lesde.neural_collapse(on_frame, "nc2_etf").nc2_etf.sel(time=slice(12, None)) ** 2
per_path = squares.mean("time")
floor = np.sqrt(per_path.mean("replicate"))
error = per_path.std("replicate", ddof=1) / np.sqrt(per_path.sizes["replicate"]) / (2 * floor)
theory = (alpha - beta) * np.sqrt(2 * (1 - 2 / K) * (K - 1) / (K * abs(beta)))
print("     h      root mean square of NC2      theory")
for h in rates:
    at = {"learning_rate": h}
    print(
        f"{h:7.4f}    {float(floor.sel(at)):.4f} ± {float(error.sel(at)):.4f}"
        f"            {theory * np.sqrt(h):.4f}"
    )
line = linregress(np.log(rates), np.log(floor))
print(f"floor ~ h^{line.slope:.2f}")

with lesde.plot.style():
    figure, ax = plt.subplots()
    ax.plot(long, np.sqrt((nc_sde.nc2_etf**2).mean("replicate")), color="black", label="SDE")
    for h in rates:
        level = np.sqrt((nc_sgd.nc2_etf.sel(learning_rate=h) ** 2).mean("replicate"))
        (drawn,) = ax.plot(times, level, label=f"SGD, h = {h:g}")
        ax.plot([14, 18], [theory * np.sqrt(h)] * 2, color=drawn.get_color(), linestyle=":")
    ax.set(
        yscale="log",
        xlabel="time",
        ylabel="NC2, root mean square",
        xlim=(0, 18.2),
        ylim=(0.015, 0.8),
    )
    ax.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], labels=["0.02", "0.05", "0.1", "0.2", "0.5"])
    ax.minorticks_off()
    ax.legend()

# %%
# Dotted: the floors by the formula.
#
# Rates against the learning rate
# -------------------------------
#
# Per unit of time t = h × iterations the rate of NC1 does not depend on h, so per iteration it is
# proportional to h: an exponent of 1. An exponential fitted to NC2 as it nears its floor has no such
# meaning; its exponent is printed as a warning. Look at the curves before quoting a rate.

late = lesde.convergence(nc_sgd, ["nc1", "nc2_etf"], against="iteration", start=6.0)
for metric in ("nc1", "nc2_etf"):
    one = late.sel(metric=metric, clock="iteration")
    print(
        f"{metric}: rate per iteration ~ h^{float(one.learning_rate_exponent):.3f} "
        f"[{float(one.learning_rate_exponent_lower):.3f}, {float(one.learning_rate_exponent_upper):.3f}]"
    )
lesde.plot.collapse_rate(late, "nc1", clock="iteration")
