"""Estimates of elasticity from the impact of single steps at one time, whole and without each unit."""

from __future__ import annotations

import numpy as np

from lesde.analysis.impact_clusters import Clusters

__all__ = ["ImpactFrame"]


class ImpactFrame:
    """Estimates at one time.

    Parameters
    ----------
    clusters : Clusters
    shares : array (class,)
        w_k.
    change : array (replicate, draw, class, feature)
        Mean changes of the classes.
    u : array (replicate, draw, feature)
        H_L X_J.
    step : float
        Learning rate h.
    estimator : {"draws", "averages"}

    Attributes
    ----------
    values : dict of str to array (1 + unit, ...)
        Estimates, whole and without each unit.
    quantiles : dict of str to array (...)
        For those whose units carry unequal weights.
    """

    def __init__(
        self,
        clusters: Clusters,
        shares: np.ndarray,
        change: np.ndarray,
        u: np.ndarray,
        step: float,
        estimator: str,
    ) -> None:
        self._clusters, self._step = clusters, step
        self._count = clusters.sums(np.ones(u.shape[:2]))  # (1 + unit, drawn class)
        length = np.einsum("rdp,rdp->rd", u, u)
        if estimator == "draws":
            along = np.einsum("rdkp,rdp->rdk", change, u) / step
            self._along = self._mean(clusters.sums(along))
            self._length = self._mean(clusters.sums(length))
            self._square: np.ndarray | None = None
        else:
            kick, driver = self._mean(clusters.sums(change)), self._mean(clusters.sums(u))
            self._along = np.einsum("clkp,clp->clk", kick, driver) / step
            self._length = np.einsum("clp,clp->cl", driver, driver)
            self._square = np.einsum("clkp,clkp->clk", kick, kick)
        # From here on (1 + unit, moved class, drawn class).
        self._along = self._along.swapaxes(1, 2)
        self._weights = np.outer(shares, shares)
        self._same = np.eye(len(shares), dtype=bool)
        self._length = np.broadcast_to(self._length[:, None], self._along.shape)
        with np.errstate(all="ignore"):
            E = self._along / self._length
        alpha, beta = self._level(self._same), self._level(~self._same)
        self.values = {"E": E, "alpha": alpha, "beta": beta, "alpha_minus_beta": alpha - beta}
        self.quantiles: dict[str, np.ndarray] = {}
        if estimator == "draws":
            self._add_quantiles(length)

    def _mean(self, sums: np.ndarray) -> np.ndarray:
        """Means by class; NaN for a class that is not drawn."""
        count = self._count.reshape(*self._count.shape, *[1] * (sums.ndim - 2))
        return sums / np.where(count > 0, count, np.nan)

    def _total(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Σ w_k w_l over some entries, without those of classes never drawn: (1 + unit,)."""
        drawn = self._count[0] > 0
        use = where & drawn
        return (values[:, use] * self._weights[use]).sum(1)

    def _level(self, where: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return self._total(self._along, where) / self._total(self._length, where)

    def _add_quantiles(self, length: np.ndarray) -> None:
        """Units count by the ‖u_J‖² they carry."""
        sums = self._clusters.sums(length)
        carried = sums[:1] - sums[1:]  # (unit, drawn class)
        mean = carried / np.where(self._count[0] > 0, self._count[0], np.nan)
        rows = np.broadcast_to(self._clusters.quantile(carried), self._same.shape)
        self.quantiles["E"] = rows
        for name, where in (("alpha", self._same), ("beta", ~self._same)):
            weight = (self._weights * where).sum(0)
            self.quantiles[name] = self._clusters.quantile(np.nan_to_num(mean * weight).sum(1))
        self.quantiles["alpha_minus_beta"] = np.maximum(
            self.quantiles["alpha"], self.quantiles["beta"]
        )

    def add_explained(self, square: np.ndarray) -> None:
        """Shares of the squared changes, from means (replicate, draw, moved class)."""
        if self._square is None:
            self._square = self._mean(self._clusters.sums(square))
        moved = self._square.swapaxes(1, 2) / self._step**2
        fitted = self._along**2 / self._length
        every = np.ones_like(self._same)
        with np.errstate(all="ignore"):
            self.values["explained"] = fitted / moved
            whole = self._total(moved, every)
            self.values["explained_matrix"] = self._total(fitted, every) / whole
            two = sum(
                self._level(where) ** 2 * self._total(self._length, where)
                for where in (self._same, ~self._same)
            )
            self.values["explained_two_level"] = two / whole

    def add_relative(self, relative: np.ndarray) -> None:
        """Relative changes (replicate, draw, moved class), NaN where the drawn sample did not move."""
        known = np.isfinite(relative)
        number = self._clusters.sums(known.astype(np.float64))
        sums = self._clusters.sums(np.where(known, relative, 0.0))
        mean = (sums / np.where(number > 0, number, np.nan)).swapaxes(1, 2)
        self.values["relative"] = mean
        ones = np.ones_like(mean)
        for name, where in (("relative_within", self._same), ("relative_between", ~self._same)):
            with np.errstate(all="ignore"):
                self.values[name] = self._total(mean, where) / self._total(ones, where)
