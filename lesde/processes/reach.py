"""Reach of each class toward the others, at a cost that does not depend on its size.

The deviations of n samples from their own mean are Y_i = A (Z_i − Z̄), Z_i standard normal. Their reach against
the unit vector u_d to another class is max_i (−u_d·Y_i): with a_d = −Aᵀu_d = |a_d| b_d, |a_d| times the largest of
b_d·(Z_i − Z̄). So M_d = max_i b_d·(Z_i − Z̄) is needed for D unit vectors b_d, jointly over d.

**The maxima.** Let T(z) = max_d b_d·z. The points are made in the order of falling T, and no further one
can raise a maximum once T has fallen to the least of the maxima found: after D (log D + 0.6) points
or so, whatever n. They come by thinning. Give every point a level uniform in (0, 1); one whose level
V is below D Φ̄(t) is a candidate above t: with a direction d drawn at random, z is the normal point
whose projection on b_d has the upper tail probability V/D. It is kept if d is where its T is reached,
so that every z above t is kept from exactly one direction, with the density of the normal law.

**Their mean.** Given the kept points above t, the others are independent with the normal density on {T < t},
which is, with H_d = {b_d·z > t}, (φ − Σ_d φ 1_{H_d}) + (density of the candidates that are not kept). So the sum
of all n points is that of all candidates, kept or not, and of n − c variables (c the number of candidates) whose
transform is (exp(θ²/2) − Σ_d E[exp(θ·z); H_d])/(1 − DΦ̄(t)): not those of a positive law where half-spaces
overlap, but their sum is close to normal, and its cumulants are those of θ²/2 + log(1 − Σ_d Φ̄(t − b_d·θ)). The
first three are put in exactly (a normal vector plus a quadratic form of it, after Cornish and Fisher); the later
ones are those of the normal law.

**Accuracy.** The error from the missing cumulants falls as n⁻⁴. The distribution function of one maximum is
off by at most 2e-7 for D = 1 and n = 147, the least n for which this route is taken, and 4e-8 at
n = 256; by 3e-7 for D = 2 and n = 160, and 5e-7 for D = 9 and n = 272 (random class means; averages
of the difference of the two transforms over the points above t). Smaller samples are drawn in full
and are exact; so are those where t fell so low that the covariance is far from that of normal points.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from lesde.processes.process import BlockNoise

EXPLICIT = 128
EXPLICIT_PER_ROW = 16
"""Samples of up to ``EXPLICIT`` + ``EXPLICIT_PER_ROW`` D points are always drawn in full."""
LARGEST_CORRECTION = 0.5
"""Of the covariance of a point below t, relative to that of a normal one."""
CHUNK = 2**19
"""Numbers worked on at once. Changing it changes the stream of random numbers."""
TIE = 1e-12
"""Equal rows are kept apart by this much per row, which moves the levels by as little."""
NUMBERS = 200_000
"""Random numbers that the joint law of one class of one replicate may take (about 2 ms)."""


def draw_reach(noise: BlockNoise, counts: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """One draw, for every replicate, of the reach of each class toward each other one.

    Exact in law up to the errors stated above, jointly over the other classes where :func:`is_joint` says so,
    else each with its own law. Different classes, and different replicates, are independent. So are two
    calls: the joint law of one class at two times is not that of a path.

    ``counts`` (K,) are the samples of each class. ``directions[r, k, l]``, (R, K, K, p), is Aᵀu_kl for the
    unit vector u_kl from class l to class k; many times may go into one call, as further replicates. The
    result ``[r, k, l]`` is the largest of −u_kl·Y_i over the samples of class k: NaN where the direction
    is, and for k = l.
    """
    counts = np.asarray(counts, dtype=np.int64)
    R, K, _, p = directions.shape
    reach = np.full((R, K, K), np.nan)
    if K == 1:
        return reach
    other = np.array([[l for l in range(K) if l != k] for k in range(K)])
    own = np.arange(K)[:, None]
    rows = -directions[:, own, other]
    length = np.linalg.norm(rows, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Where there is no direction any row does: its result is not used.
        rows = np.where((length > 0)[..., None], rows / length[..., None], np.eye(p)[0])
    peaks = np.empty((R, K, K - 1))
    joint = np.array([is_joint(count, K, p) for count in counts])
    if joint.any():
        part = rows[:, joint]
        sizes = np.broadcast_to(counts[joint], part.shape[:2])
        if p > 2 * (K - 1):
            # Only inner products of the rows matter: K−1 coordinates do.
            triangle = np.asarray(np.linalg.qr(part.swapaxes(-1, -2), mode="r"))
            part = triangle.swapaxes(-1, -2)
        flat = part.reshape(-1, K - 1, part.shape[-1])
        peaks[:, joint] = largest_of_centred(noise, flat, sizes.ravel()).reshape(part.shape[:-1])
    if not joint.all():
        sizes = np.broadcast_to(counts[~joint, None], peaks[:, ~joint].shape)
        alone = largest_of_centred(noise, np.ones((sizes.size, 1, 1)), sizes.ravel())
        peaks[:, ~joint] = alone.reshape(sizes.shape)
    with np.errstate(invalid="ignore"):
        reach[:, own, other] = np.where(length == 0, 0.0, length * peaks)
    return reach


def is_joint(count: int, n_classes: int, n_features: int) -> bool:
    """True if a class of ``count`` samples gets the joint law of its reaches, else each alone."""
    D = n_classes - 1
    if D == 0:
        return True
    points = count if _is_small(count, D) else _batch(D)
    return points * (n_features if n_features <= 2 * D else D) <= NUMBERS


def largest_of_centred(noise: BlockNoise, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """One draw of max_i b_d·(Z_i − Z̄) for every lane and row, (lane, D); zero where n = 1.

    ``rows`` (lane, D, q) are unit vectors b_d, which may repeat or depend on each other, and ``counts``
    (lane,) the sample sizes n.
    """
    L, D, q = rows.shape
    out = np.empty((L, D))
    small = np.zeros(L, dtype=bool)
    for n in np.unique(counts).tolist():
        if _is_small(n, D):
            small |= counts == n
            for part in _pieces(np.flatnonzero(counts == n), n * (q + D)):
                projected = rows[part] @ _normals(noise, len(part), q, n)
                out[part] = projected.max(-1) - projected.mean(-1)
    for part in _pieces(np.flatnonzero(~small), _batch(D) * (q + 3 * D)):
        out[part] = _Descent(noise, rows[part], counts[part]).run()
    return out


def _is_small(n: int, D: int) -> bool:
    """True if a sample is drawn in full: where many would turn out to need it anyway."""
    if n <= EXPLICIT + EXPLICIT_PER_ROW * D:
        return True
    # The level at which most samples stop, and rows at 60 degrees as between many classes.
    tail = (math.log(D) + 2.0) / n
    t, f = -ndtri(tail), math.exp(-0.5 * ndtri(tail) ** 2) / math.sqrt(2.0 * math.pi)
    f /= 1.0 - D * tail
    return t * f * (D + 1) / 2 + f * f * D * (D + 1) / 2 > LARGEST_CORRECTION


def _batch(D: int) -> int:
    """Candidates drawn at once: mostly enough for D maxima."""
    return max(16, math.ceil(D * (math.log(D) + 2.0))) if D > 1 else 1


def _pieces(index: np.ndarray, numbers: int) -> list[np.ndarray]:
    size = max(1, CHUNK // int(numbers))
    return [index[i : i + size] for i in range(0, len(index), size)]


def _normals(noise: BlockNoise, *shape: int) -> np.ndarray:
    return noise.numpy.standard_normal(shape)


class _Descent:
    """Points of all lanes in the order of falling T, and then the sums of the rest.

    Everything is kept as projections on the rows: a point is the vector of its D projections.
    """

    def __init__(self, noise: BlockNoise, rows: np.ndarray, counts: np.ndarray):
        self.noise, self.rows, self.counts = noise, rows, counts
        self.L, self.D, self.q = rows.shape
        self.gram = rows @ rows.swapaxes(1, 2)
        self.shift = TIE * np.arange(self.D)
        # A level that half of the points would be candidates for: hardly ever reached.
        self.floor = float(-ndtri(0.5 / self.D)) if self.D > 1 else -np.inf
        # The largest projections of the points kept so far; sums and numbers of the candidates above the
        # level reached, and of those kept, in this order.
        self.peak = np.full((self.L, self.D), -np.inf)
        self.sums = np.zeros((self.L, self.D, 2))
        self.numbers = np.zeros((self.L, 2))

    def run(self) -> np.ndarray:
        """The maxima about the mean, (lane, D)."""
        self._descend()
        least = self.peak.min(1)
        t = np.maximum(least, self.floor)
        law = _BelowLevel(t, self.gram)
        full = (least < self.floor) | (law.correction > LARGEST_CORRECTION)
        good: slice | np.ndarray = slice(None)
        if full.any():
            good = np.flatnonzero(~full)
            law = _BelowLevel(t[good], self.gram[good])
        rest = self.counts[good] - self.numbers[good, 0]
        y = _normals(self.noise, len(rest), self.q)
        total = np.empty((self.L, self.D))
        total[good] = self.sums[good, :, 0] + law.sums(self.rows[good], rest, y)
        for lane in np.flatnonzero(full).tolist():
            total[lane] = self.sums[lane, :, 1] + self._rest_in_full(lane, t[lane])
        return self.peak + self.shift - total / self.counts[:, None]

    def _descend(self) -> None:
        """Draw candidates batch by batch until no lane's maxima can rise."""
        size = _batch(self.D)
        lanes = np.arange(self.L)
        spent = np.zeros(self.L)
        drawn = 0
        while len(lanes):
            # Order statistics of n uniform levels: log(1 − V) falls by exponential steps, never by zero,
            # which would put a point at infinity.
            left = self.counts[lanes, None] - (drawn + np.arange(size))
            steps = self.noise.numpy.standard_exponential((len(lanes), size)) + 2.0**-54
            log_rest = spent[lanes, None] + (steps / np.maximum(left, 1)).cumsum(1)
            spent[lanes] = log_rest[:, -1]
            V = np.where(left > 0, -np.expm1(-log_rest), 1.0)
            points, height, keep = self._candidates(lanes, -ndtri(V / self.D))
            keep &= height >= self.floor
            found = (points + np.where(keep, 0.0, -np.inf)[:, None]).max(2)
            peak = np.maximum(self.peak[lanes], found)
            self.peak[lanes] = peak
            # Candidates below the level at which a lane stops belong to the rest.
            t = np.maximum(peak.min(1), self.floor)
            above = height >= t[:, None]
            chosen = np.stack([above, above & keep], 2).astype(np.float64)
            number = chosen.sum(1)
            self.sums[lanes] += points @ chosen + self.shift[:, None] * number[:, None]
            self.numbers[lanes] += number
            lanes = lanes[height[:, -1] > t]
            drawn += size

    def _candidates(
        self, lanes: np.ndarray, level: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates with these projections (lane, point) on a row drawn for each.

        Returns the shifted projections (lane, D, point), that on the row drawn, and which are kept.
        """
        if self.D == 1:
            return level[:, None], level, np.ones(level.shape, dtype=bool)
        rows, gram = self.rows, self.gram
        if len(lanes) < self.L:
            rows, gram = rows[lanes], gram[lanes]
        L, size = level.shape
        points = rows @ _normals(self.noise, L, self.q, size)
        row = self.noise.numpy.integers(self.D, size=(L, size)) + self.D * np.arange(L)[:, None]
        own = row * size + np.arange(size)
        # Where the projection on the row drawn is changed, the others change along.
        toward = gram.reshape(-1, self.D).take(row, axis=0)
        toward *= (level - points.take(own))[..., None]
        points += toward.swapaxes(1, 2)
        points -= self.shift[:, None]
        height = points.take(own)
        return points, height, height >= points.max(1)

    def _rest_in_full(self, lane: int, t: float) -> np.ndarray:
        """Projections of the sum of the points that were not kept, drawn one by one below t."""
        needed = int(self.counts[lane] - self.numbers[lane, 1])
        total = np.zeros(self.D)
        while needed:
            points = _normals(self.noise, needed + 8, self.q) @ self.rows[lane].T
            below = points[(points - self.shift).max(1) < t][:needed]
            total += below.sum(0)
            needed -= len(below)
        return total


class _BelowLevel:
    """Cumulants of log(1 − Σ_d Φ̄(t − b_d·θ)) + θ²/2: a point below t that is no candidate.

    With f = φ(t)/(1 − DΦ̄(t)), v = Σ b_d and P = Σ b_d b_dᵀ the mean is −f v, the covariance
    I − t f P − f² v vᵀ, and the third cumulant −[(t² − 1) f Σ b_d³ + t f² (v P + 2 permutations) + 2 f³ v³].
    """

    def __init__(self, t: np.ndarray, gram: np.ndarray):
        D = gram.shape[1]
        self.t, self.gram = t, gram
        self.f = np.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi) / (1.0 - D * ndtr(-t))
        norm = np.abs(gram).sum(2).max(1)
        self.correction = np.abs(t) * self.f * norm + self.f**2 * gram.sum((1, 2))

    def sums(self, rows: np.ndarray, number: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Projections (lane, D) of the sum of ``number`` (lane,) points, from normals y (lane, q)."""
        f, t, gram = self.f, self.t, self.gram
        inner = (t * f)[:, None, None] * np.eye(rows.shape[1]) + (f * f)[:, None, None]
        covariance = np.eye(rows.shape[2]) - rows.swapaxes(1, 2) @ inner @ rows
        # x: projections of the whitened normal vector, with covariance Q = b C⁻¹ bᵀ
        factor = torch.linalg.cholesky(torch.from_numpy(covariance))
        turned = torch.from_numpy(rows.swapaxes(1, 2))
        white = torch.linalg.solve_triangular(factor, turned, upper=False).numpy()
        Q = white.swapaxes(1, 2) @ white
        x = (white.swapaxes(1, 2) @ y[..., None])[..., 0]
        X = x.sum(1, keepdims=True)
        of_row = Q.sum(2)
        square = x * x - np.diagonal(Q, axis1=1, axis2=2)
        f, t = f[:, None], t[:, None]
        third = (t * t - 1.0) * f * square
        third += t * f * f * (square.sum(1, keepdims=True) + 2.0 * (x * X - of_row))
        third += 2.0 * f**3 * (X * X - of_row.sum(1, keepdims=True))
        m = number[:, None]
        along = np.sqrt(m) * (t * f * x + f * f * X) + m * f + third / 6.0
        return np.sqrt(m) * x - (gram @ along[..., None])[..., 0]
