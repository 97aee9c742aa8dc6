r"""
The noise of drawing samples
============================

At learning rate h the discrete process differs from the locally elastic SDE in two respects: its steps are
finite, and which sample is drawn is random. The second adds noise with covariance h C per unit of time. How
accurate is an SDE with this noise, and one that is also corrected for the steps? The first two moments of all
of them are known without simulation, so the question has an exact answer.
"""

# %%
# Four processes
# --------------
#
# ``"sgd"`` is the discrete process, ``"plain"`` the SDE, ``"sampling"`` the SDE with the term √(hC) dB,
# ``"modified"`` that with drift and noise corrected to first order in h. Learning rates are chosen so that
# all runs end at t = 1.

import matplotlib.pyplot as plt
import numpy as np

import lesde

model = lesde.LESDE(
    lesde.TwoLevel(alpha="3/(1+t)", beta=-1), n_classes=3, n_features=3,
    n_per_class=[10, 20, 30], transform="logits", noise=1.0,
)  # fmt: skip
means = 0.8 * np.array([[1.0, -0.2, 0.0], [-0.3, 0.8, 0.1], [0.0, -0.5, 1.0]])
rates = 1 / np.array([1000, 300, 100, 50, 25, 16, 10, 7, 5, 3, 2])
processes = ["sgd", "plain", "sampling", "modified"]
times = [0.0, 1.0]
exact = lesde.moments(model, times, means, learning_rate=rates, process=processes)

# %%
# Fluctuations
# ------------
#
# The standard deviation of the gap between two class means. Points are the discrete process itself, simulated. The
# plain SDE does not depend on h and deviates first, where the sampling noise h C is no longer small compared with the
# samples' own noise averaged over a class: it misses 6 % already at h = 1/100. The two SDEs with sampling noise follow
# SGD as long as h times the growth rates is small, and miss 5 % at about h = 0.1. Beyond, growth in continuous time
# exceeds that in steps, and all that has grown is too large.

paths = lesde.simulate(model, times, means, replicates=1024, learning_rate=rates[2::2], seed=1)
ax = lesde.plot.sampling_noise(exact, paths)

ends = exact.isel(time=-1)


def deviation(process):
    """Standard deviation of the gap of classes 0 and 1, by learning rate."""
    V = ends.covariance.sel(process=process).values
    gap = V[:, 0, :, 0] + V[:, 1, :, 1] - V[:, 0, :, 1] - V[:, 1, :, 0]
    return np.sqrt(np.trace(gap, axis1=1, axis2=2))


print("relative error of the standard deviation at")
print("h          " + "".join(f"{h:8.3g}" for h in rates[2:]))
for name in processes[1:]:
    off = deviation(name) / deviation("sgd") - 1
    print(f"{name:11s}" + "".join(f"{x:8.1%}" for x in off[2:]))

# %%
# Order
# -----
#
# The distance from the discrete process, in all class means at once. The plain SDE is off by a term of order h in mean
# and covariance. Sampling noise removes most of that of the covariance, but not the error of the step itself, which is
# of order h too. The modified equation removes this as well: its error is of order h² at small h, though at large h it
# is not much better than the other.

with lesde.plot.style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.6))
lesde.plot.sampling_noise(exact, quantity="mean_error", ax=left)
lesde.plot.sampling_noise(exact, quantity="covariance_error", ax=right)

for variable in ("mean", "covariance"):
    dims = [d for d in ends[variable].dims if d not in ("process", "learning_rate")]
    distance = np.sqrt(((ends[variable] - ends[variable].sel(process="sgd")) ** 2).sum(dims))
    for name in processes[1:]:
        e = distance.sel(process=name).values
        order = np.log(e[0] / e[1]) / np.log(rates[0] / rates[1])
        print(f"{variable:10s} {name:9s} order {order:.2f}")

# %%
# The same by steps
# -----------------
#
# The SDE with sampling noise and the discrete process differ only because time is continuous in one of them. An
# Euler step of length h has the mean and covariance of one iteration, exactly. So the Euler scheme with
# ``dt`` equal to h has the first and second moments of SGD at any h, however large.

for h in (0.5, 0.1):
    sgd = lesde.moments(model, times, means, learning_rate=h)
    euler = lesde.moments(model, times, means, learning_rate=h, process="sampling", dt=h)
    off = float(np.abs(euler.covariance - sgd.covariance).max() / np.abs(sgd.covariance).max())
    print(f"h = {h}: largest difference of the covariances, relative: {off:.0e}")

# %%
# Its law is still different: the kicks of SGD are one of N vectors, those of the Euler scheme are Gaussian. And
# no such noise changes the spread within a class, which is that of the plain SDE, because all samples of a
# class get the same kick.
