"""Figures. Each takes a dataset and returns the axes it drew on.

=====================  ============================================================================
`separation_fan`       projections of samples against time
`simplex`              snapshots in the plane of the class means, with the target simplex
`simplex3d`            the same in three dimensions
`logit_paths`          trajectories of the class means in three features, as they are
`collapse`             NC metrics against time, by learning rate
`layers`               NC metrics and the nearest class centre against depth, by time
`layers_over_time`     the same against time, by layer
`probability`          separation probability with its band, and the analytic line
`phase_diagram`        separation probability over a parameter and time, with the critical line
`elasticity`           Â, B̂ and α̂, β̂ with bands
`impact`               α̂ and β̂ measured by single steps, and their difference
`impact_matrix`        the matrix Ê of all classes at a few times
`impact_by_distance`   strength of elasticity against the distance of two samples
`class_means`          LE-ODE against observed class means
`collapse_rate`        collapse rate against learning rate
`learning_rate_range`  networks and fitted models against learning rate, and where they agree
`sampling_noise`       difference of SGD and the SDEs as the learning rate grows
`animate`              the collapse as a GIF
`save`                 PDF and PNG of any of these
`style`                the look of the figures, for your own axes
=====================  ============================================================================

Arguments that several share:

- ``ax``: axes to draw on, one for every panel. By default a new figure is made, one column (3.4 in) wide. It is
  registered with pyplot, so a notebook shows it and ``matplotlib.pyplot.close(ax.figure)`` frees it.
- ``learning_rate``: which one, of a dataset with several. By default the first, and the figure says which, or all, with
  a colour for each, dark to light as they grow.
- ``replicate``: which one, by position.

Returned are the axes: one, or a NumPy array of them where there is a panel for each of several things. Arguments that
are not as described raise TypeError or ValueError, before anything is drawn.

>>> ax = lesde.plot.separation_fan(paths, pair=(0, 1))  # doctest: +SKIP
>>> lesde.plot.save(ax, "fan")  # doctest: +SKIP
"""

from __future__ import annotations

from lesde.plot.collapse import collapse, collapse_rate, learning_rate_range
from lesde.plot.elasticities import elasticity
from lesde.plot.impacts import impact, impact_by_distance, impact_matrix
from lesde.plot.layers import layers, layers_over_time
from lesde.plot.probabilities import phase_diagram, probability
from lesde.plot.sampling import sampling_noise
from lesde.plot.saving import save
from lesde.plot.simplices import animate, simplex, simplex3d
from lesde.plot.style import style
from lesde.plot.trajectories import class_means, logit_paths, separation_fan

__all__ = [
    "animate", "class_means", "collapse", "collapse_rate", "elasticity", "impact", "impact_by_distance",
    "impact_matrix", "layers", "layers_over_time", "learning_rate_range", "logit_paths", "phase_diagram",
    "probability", "sampling_noise", "save", "separation_fan", "simplex", "simplex3d", "style",
]  # fmt: skip
