"""Sub-intervals on which the coefficients are smooth enough for collocation."""

from __future__ import annotations

import numpy as np
import torch

from lesde.collocation import LARGEST_NORM
from lesde.differentiable.system import TensorSystem
from lesde.quadrature import NODES, POINTS, RESOLVED, rounding_floor, tail_and_size

__all__ = ["Panels", "choose_panels"]

# A jump inside a panel on which kernel or noise add so little, relative to all, cannot be seen.
NEGLIGIBLE = 1e-16
# All are worked on at once; growth over more overflows, and decay ends in zeros.
MOST_PANELS = 5000


class Panels:
    """Sub-intervals of the intervals between successive times, in order.

    Attributes
    ----------
    starts, widths : ndarray, shape (panel,)
    owner : ndarray of int, shape (panel,)
        The interval each lies in.
    """

    def __init__(self, starts: np.ndarray, widths: np.ndarray, owner: np.ndarray):
        order = np.argsort(starts, kind="stable")
        self.starts, self.widths, self.owner = starts[order], widths[order], owner[order]

    @property
    def nodes(self) -> np.ndarray:
        """Gauss-Legendre nodes, shape (panel, node)."""
        return self.starts[:, None] + self.widths[:, None] * POINTS


def choose_panels(system: TensorSystem, times: np.ndarray) -> Panels:
    """Halve the intervals until kernel and noise are resolved and the flow is near the identity.

    The choice is made at the current values of the parameters and is not part of the graph; the result
    of the collocation does not depend on it but by rounding.

    Raises
    ------
    ValueError, Diverged
        Where the coefficients change too abruptly, or too often, to integrate.
    """

    def coefficients(at: np.ndarray) -> np.ndarray:
        """Class matrix and squared noise as two groups of entries, (time, group, entry)."""
        with torch.no_grad():
            drift = system.weights(at).flatten(1).numpy()
            noise = system.noise.square(at).flatten(1).numpy()
        entries = np.zeros((len(at), 2, max(drift.shape[1], noise.shape[1])))
        entries[:, 0, : drift.shape[1]] = drift
        entries[:, 1, : noise.shape[1]] = noise
        return entries

    K2 = len(system.counts) ** 2
    coefficients(times)  # errors at the times that the user knows
    left, width = times[:-1].copy(), np.diff(times)
    owner, done = np.arange(len(width)), []
    total = 0
    while len(left):
        nodes = left[:, None] + width[:, None] * POINTS
        values = coefficients(nodes.ravel()).reshape(len(left), NODES, 2, -1)
        norm = _norms(system, values[:, :, 0, :K2]) * width
        tail, size = tail_and_size(values)
        # What counts as nothing: a rotation of the class means, and a part of all noise.
        whole = np.array([1.0, max(values[:, :, 1].max() * np.ptp(times), 1e-300)])
        nothing = size * width[:, None] <= NEGLIGIBLE * whole
        smooth = (tail <= RESOLVED * size) | nothing
        unsure = np.flatnonzero(~smooth.all(1))
        if len(unsure):
            smooth[unsure] |= tail[unsure] <= rounding_floor(
                coefficients, nodes[unsure], values[unsure]
            )
        good = smooth.all(1) & (norm <= LARGEST_NORM)
        done.append((left[good], width[good], owner[good]))
        total += int(good.sum())
        left, width, owner = left[~good], width[~good] / 2, owner[~good]
        middle = left + width
        stuck = (middle <= left) | (middle + width <= middle)
        if stuck.any() or total + 2 * len(left) > MOST_PANELS:
            system.explain(times)
            at = float(left[np.argmax(stuck)])
            raise ValueError(
                f"kernel or noise change too abruptly, or are too strong, to integrate near "
                f"t = {at:g}: they need more than {MOST_PANELS} sub-intervals. Check the formulas there, "
                f"or choose fewer times, or such that avoid the point."
            )
        left = np.concatenate([left, middle])
        width, owner = np.tile(width, 2), np.tile(owner, 2)
    starts, widths, owners = (np.concatenate(part) for part in zip(*done, strict=True))
    return Panels(starts, widths, owners)


def _norms(system: TensorSystem, matrices: np.ndarray) -> np.ndarray:
    """Largest row sum of the generator on every panel, shape (panel,)."""
    K = len(system.counts)
    with torch.no_grad():
        class_matrix = torch.from_numpy(np.ascontiguousarray(matrices)).unflatten(-1, (K, K))
        generator = system.right @ system.outer(class_matrix)
        return generator.abs().sum(-1).amax((1, 2)).numpy()
