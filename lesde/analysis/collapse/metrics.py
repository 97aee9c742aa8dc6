"""The neural-collapse metrics, one function each: to add one, copy one.

Each is a function ``(features, labels)`` of features (..., sample, feature) and integer labels (sample,), 0 to K−1
with K ≥ 2, in any order, and returns float64 values (...). Those of a classifier also take its ``weights`` (..., class,
feature) and ``bias`` (..., class), default 0; `nc4` and `ncc_accuracy` the keyword ``centers`` (..., class, feature),
class centres in place of the class means. Leading dimensions broadcast against those of the features.
"""

from __future__ import annotations

import numpy as np

from lesde.analysis.collapse.evaluation import metric
from lesde.analysis.collapse.frames import EPS, Frames, SampleFrames


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Quotient of non-negative numbers: inf for a positive number over 0, NaN for 0 over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return top / bottom


@metric()
def nc1(frames: Frames) -> np.ndarray:
    """Within-class variability in units of the between-class one, tr(Σ_W Σ_B⁺)/K.

    Papyan, Han, Donoho (2020). With the thin SVD C = U S Vᵀ this is (1/N) Σ_i Σ_j ((x_i −
    μ_{k(i)})·v_j)²/s_j²: the K of Σ_B = CᵀC/K cancels against the division by K. Computed so, it
    is a sum of squares, never negative, and needs no p×p matrix.

    Singular values are kept up to rank min(K−1, p) and while they are above the rounding of the
    class means along v_j, as in the pseudo-inverse: scatter in other directions does not count. A mean of n_k
    samples is taken to be off, in each feature, by 4ε + max(n_k, p)·2.2e-16 of the root mean square of that
    feature in the class, with ε that of the precision the features were stored in (of float32, where all
    float64 features are numbers of it). Over K means and p features independent rounding adds up to at most
    √K(1 + √(p/K)) times that. A spread within the rounding of the sums (ε left out) counts as 0. Where all
    class means coincide within their rounding the value is inf (NaN when there is no scatter either).
    """
    value = frames.whitened_scatter / frames.n_samples
    apart = frames.whitening.any(axis=(1, 2))
    if apart.all():
        return value
    total = frames.scatter.sum(axis=1)
    return np.where(apart, value, _ratio(total, np.zeros_like(total)))


@metric()
def nc1_trace(frames: Frames) -> np.ndarray:
    """Within-class variability as a quotient of traces, tr Σ_W / tr Σ_B.

    Tirer et al. (2023). inf where all class means coincide (NaN when there is no scatter either).
    """
    within = frames.scatter.sum(axis=1) / frames.n_samples
    return _ratio(within, frames.between / frames.n_classes)


@metric()
def nc1_cdnv(frames: Frames) -> np.ndarray:
    """Class-distance normalised variance, mean over pairs of (Var_k + Var_l) / (2‖μ_k − μ_l‖²).

    Galanti, György, Hutter (2022). Var_k is the mean squared distance of the samples of class k
    to μ_k (divisor n_k; 0 for a class with one sample); every pair counts alike. inf if two class
    means coincide (NaN when neither class of such a pair has scatter).
    """
    variance = frames.scatter / frames.counts
    total = np.zeros(frames.n_frames)
    for k, square in frames.pairs():
        total += _ratio(variance[:, k, None] + variance[:, k + 1 :], 2 * square).sum(axis=1)
    return total / (frames.n_classes * (frames.n_classes - 1) / 2)


def _etf_distance(products: np.ndarray) -> np.ndarray:
    """‖A/‖A‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for each A of shape (F, K, K); NaN where A = 0."""
    k = products.shape[-1]
    target = (np.eye(k) - 1.0 / k) / np.sqrt(k - 1)
    products = _ratio(products, np.abs(products).max(axis=(1, 2), keepdims=True))
    size = np.linalg.norm(products, axis=(1, 2), keepdims=True)
    return np.linalg.norm(products / size - target, axis=(1, 2))


@metric()
def nc2_etf(frames: Frames) -> np.ndarray:
    """Distance of the class means from a simplex ETF, ‖CCᵀ/‖CCᵀ‖_F − (I − 11ᵀ/K)/√(K−1)‖_F.

    The means form a simplex equiangular tight frame iff it is 0 (Papyan, Han, Donoho 2020). It is
    0 for every frame at K = 2, where two centred means are always opposite. NaN where all class
    means coincide.
    """
    return _etf_distance(np.where(frames.between[:, None, None] > 0, frames.gram, 0.0))


@metric()
def nc2_norm_cv(frames: Frames) -> np.ndarray:
    """Coefficient of variation of the norms of the centred class means.

    Standard deviation (divisor K) over mean of ‖μ_k − μ_G‖ (Papyan, Han, Donoho 2020). 0 for
    every frame at K = 2. NaN where all class means coincide.
    """
    norms = frames.norms
    return _ratio(norms.std(axis=1), norms.mean(axis=1))


@metric()
def nc2_angle_std(frames: Frames) -> np.ndarray:
    """Standard deviation, over pairs of classes, of the cosine between centred class means.

    Divisor K(K−1)/2 (Papyan, Han, Donoho 2020). At K = 2 there is one pair, so it is 0 by
    definition and says nothing. NaN where a class mean coincides with the centre.
    """
    norms = frames.norms
    k, l = np.triu_indices(frames.n_classes, 1)
    known = norms[:, k] * norms[:, l]
    return _ratio(frames.gram[:, k, l], np.where(known > 0, known, np.nan)).std(axis=1)


def _centred_weights(weights: np.ndarray) -> np.ndarray:
    """Rows of the weights (F, K, p) less their mean; 0 where they are equal."""
    noise = weights.shape[1] * EPS * np.abs(weights).max(axis=1, keepdims=True)
    centred = weights - weights.mean(axis=1, keepdims=True)
    return centred * (np.abs(centred) > noise).any(axis=(1, 2), keepdims=True)


@metric(classifier=True)
def nc3(frames: Frames) -> np.ndarray:
    """Distance of classifier and class means from one shared simplex ETF.

    ‖A/‖A‖_F − (I − 11ᵀ/K)/√(K−1)‖_F with A = (W − w̄)Cᵀ, w̄ the mean of the rows of the weights
    W: `nc2_etf` with the classifier in place of one C, the form of Zhu et al. (NeurIPS 2021) but
    with W centred. It is 0 only if the classifier is aligned with the class means (self-duality)
    and both form the frame. NaN where all class means coincide or W has equal rows.
    """
    rows = _centred_weights(frames.weights)
    products = rows @ frames.centred.swapaxes(1, 2)
    return _etf_distance(np.where(frames.between[:, None, None] > 0, products, 0.0))


@metric(classifier=True)
def nc3_duality(frames: Frames) -> np.ndarray:
    """Distance of the classifier from the class means, each of unit size.

    ‖V/‖V‖_F − C/‖C‖_F‖_F with V = W − w̄, w̄ the mean of the rows of the weights W: self-duality
    alone, whatever the class means form. It is the distance of Papyan, Han, Donoho (2020), who do
    not centre W and show its square; rows of W that all move alike leave every decision as it is.
    0 for self-dual, √2 for unrelated and 2 for opposite weights and means. NaN as in `nc3`.
    """
    rows = _centred_weights(frames.weights)
    centred = np.where(frames.between[:, None, None] > 0, frames.centred, 0.0)
    units = [_ratio(a, np.linalg.norm(a, axis=(1, 2), keepdims=True)) for a in (rows, centred)]
    return np.linalg.norm(units[0] - units[1], axis=(1, 2))


@metric(target=1.0, classifier=True, samples=True, centers=True)
def nc4(frames: SampleFrames) -> np.ndarray:
    """Share of samples on which the classifier and the nearest class mean agree.

    argmax_k (w_k·x + b_k) against argmin_k ‖x − μ_k‖ (Papyan, Han, Donoho 2020, who report the
    share that disagrees); 1 under collapse. A tie goes to the lower class.
    """
    bias = 0.0 if frames.bias is None else frames.bias[:, None]
    agreed = np.zeros(frames.n_frames)
    for block in frames.blocks():
        decision = (block.values @ frames.weights.swapaxes(1, 2) + bias).argmax(axis=2)
        agreed += (decision == frames.closeness(block.values).argmax(axis=2)).sum(axis=1)
    return agreed / frames.n_samples


@metric(target=1.0, samples=True, centers=True, usual=False)
def ncc_accuracy(frames: SampleFrames) -> np.ndarray:
    """Share of samples whose nearest class centre is that of their own class.

    The accuracy of the rule argmin_k ‖x − c_k‖ of Papyan, Han, Donoho (2020, their NC4), at any layer
    (Ben-Shaul, Dekel 2022, arXiv 2201.08924, follow the share on which it disagrees with the network
    through the layers). The centres c_k are the means μ_k of the same samples, or ``centers``: for
    held-out features the class means of the training features (Galanti, György, Hutter 2022 bound the
    error of this rule by the CDNV). A sample that is equally far from m nearest centres, its own among them,
    up to rounding, counts 1/m, what a draw among them gives on average.

    Examples
    --------
    >>> x, labels = [[0.0], [1.0], [3.0], [4.0]], [0, 0, 1, 1]
    >>> float(ncc_accuracy(x, labels))
    1.0
    >>> float(ncc_accuracy(x, labels, centers=[[-1.0], [1.0]]))  # 0 is in the middle
    0.625
    """
    correct = np.zeros(frames.n_frames)
    for block in frames.blocks():
        closeness = frames.closeness(block.values)
        best = closeness.max(axis=2) - frames.tie(block.values)
        nearest = closeness >= best[..., None]
        own = nearest[:, np.arange(len(block.labels)), block.labels]
        correct += (own / nearest.sum(axis=2)).sum(axis=1)
    return correct / frames.n_samples
