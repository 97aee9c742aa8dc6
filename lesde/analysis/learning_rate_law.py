"""How the rate of decay depends on the learning rate."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

__all__ = ["against_learning_rate"]


def against_learning_rate(result: xr.Dataset, confidence: float) -> xr.Dataset:
    """Add the power law of the rate in the learning rate, where there are three or more.

    Parameters
    ----------
    result : xarray.Dataset
        With the variable ``rate`` and the coordinate ``learning_rate``.
    confidence : float

    Returns
    -------
    xarray.Dataset
        With ``learning_rate_exponent``, ``learning_rate_exponent_lower`` and
        ``learning_rate_exponent_upper`` over the dimensions of ``rate`` but ``learning_rate``:
        slope of the ordinary least-squares line of log rate on log learning rate and its t
        interval from the residuals, n − 2 degrees of freedom. NaN where a rate is not positive.
    """
    if "learning_rate" not in result.rate.dims or result.sizes["learning_rate"] < 3:
        return result
    if "learning_rate" not in result.coords or not (result["learning_rate"] > 0).all():
        return result
    h = np.log(result["learning_rate"].values.astype(np.float64))
    rate = result["rate"].transpose("learning_rate", ...)
    z = np.log(rate.where((rate > 0).all("learning_rate")).values)
    away = (h - h.mean()).reshape(-1, *(1,) * (z.ndim - 1))
    slope = (away * z).sum(axis=0) / (away**2).sum()
    residual = z - z.mean(axis=0) - slope * away
    free = len(h) - 2
    error = np.sqrt((residual**2).sum(axis=0) / free / (away**2).sum())
    half = stats.t.ppf((1 + confidence) / 2, free) * error
    dims = rate.dims[1:]
    title = "exponent c of rate ~ learning_rate^c"
    return result.assign(
        learning_rate_exponent=(dims, slope, {"long_name": title}),
        learning_rate_exponent_lower=(
            dims,
            slope - half,
            {"long_name": f"lower limit of the {title}"},
        ),
        learning_rate_exponent_upper=(
            dims,
            slope + half,
            {"long_name": f"upper limit of the {title}"},
        ),
    )
