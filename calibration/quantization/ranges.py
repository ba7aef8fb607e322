"""How large a tensor's values are: a streamed histogram, and the thresholds that it suggests.

One pass: the histogram covers 0..range with `BINS` equal bins, where range is a power of two. A
larger value doubles the range as often as needed, which merges bins in pairs: counts stay exact, so
the order of the data makes no difference. Only magnitudes are kept, since int8 is symmetric here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from geomag_edge.errors import CalibrationError

BINS = 4096
"""At least half of them are in use, so a bin is at most an eighth of an int8 step."""
SAMPLE = 1 << 18
"""About so many values of a tensor in one run enter the histogram, in whole rows evenly spaced, so
that every channel has its share; the largest magnitude is taken from all values."""
STEPS = 127
PERCENTILE = 99.99
"""Of the magnitudes; what lies above is clipped."""
METHODS = ("minmax", "percentile", "entropy", "mse")


class Histogram:
    """Magnitudes of a tensor, added up over any number of runs.

    Attributes:
        counts: int64[BINS] over 0..range.
        range: a power of two, or 0 while only zeros were seen.
        absmax: the largest magnitude.
        seen: number of values, those that were not sampled included.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.range = 0.0
        self.absmax = 0.0
        self.seen = 0
        self._zeros = 0

    def add(self, magnitudes: NDArray[np.floating], absmax: float | None = None) -> None:
        """Adds values.

        Args:
            magnitudes: absolute values, any shape with channels last.
            absmax: their maximum, if it is known.
        """
        if magnitudes.size == 0:
            return
        absmax = float(magnitudes.max()) if absmax is None else absmax
        if not np.isfinite(absmax):
            raise CalibrationError("values that are not finite")
        self.seen += magnitudes.size
        self.absmax = max(self.absmax, absmax)
        rows = magnitudes.reshape(-1, magnitudes.shape[-1])
        flat = rows[:: max(1, rows.size // SAMPLE)].reshape(-1)
        if self.absmax == 0:
            self._zeros += flat.size
            return
        self._grow(self.absmax)
        index = (flat * flat.dtype.type(BINS / self.range)).astype(np.int32)
        np.minimum(index, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)

    def _grow(self, absmax: float) -> None:
        """Doubles the range until it holds `absmax`."""
        if self.range == 0:
            self.range = max(float(2.0 ** np.ceil(np.log2(absmax))), 2.0**-100)
            self.counts[0] = self._zeros
        while self.range < absmax:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[: len(pairs)] = pairs
            self.range *= 2

    def thresholds(self) -> dict[str, float]:
        """The magnitude that becomes the last step, by each of `METHODS`.

        Each is finite, above 0 and at most `absmax`; all are 1 for a tensor of zeros, which any
        scale holds exactly.
        """
        if self.absmax == 0:
            return dict.fromkeys(METHODS, 1.0)
        found = {"minmax": self.absmax}
        for name, calibrate in CALIBRATORS.items():
            found[name] = float(min(calibrate(self.counts, self.range), self.absmax))
        return found


def percentile(counts: NDArray[np.int64], top: float, percent: float = PERCENTILE) -> float:
    """The magnitude below which a share of all values lies, interpolated within its bin.

    Args:
        counts: equal bins over 0..top, at least one value.
        top: the upper edge of the last bin.
        percent: the share, 0..100.
    """
    total = counts.cumsum()
    wanted = total[-1] * (percent / 100)
    bin_ = int(np.searchsorted(total, wanted))
    before = total[bin_ - 1] if bin_ else 0
    inside = (wanted - before) / counts[bin_]
    return _width(counts, top) * max(bin_ + float(inside), 0.5)


def mse(counts: NDArray[np.int64], top: float) -> float:
    """The threshold of the smallest mean squared error, rounding and clipping together."""
    centres = (np.arange(len(counts)) + 0.5) * _width(counts, top)
    used = counts > 0
    centres, weights = centres[used], counts[used].astype(np.float64)
    edges = _candidates(counts)
    errors = []
    for edge in edges:
        threshold = edge * _width(counts, top)
        step = threshold / STEPS
        inside = centres < threshold
        wrong = np.where(inside, step * step / 12, np.square(centres - threshold))
        few = centres < step / 2  # these become 0: their own size is the error
        errors.append((np.where(few, np.square(centres), wrong) * weights).sum())
    return float(edges[int(np.argmin(errors))]) * _width(counts, top)


def entropy(counts: NDArray[np.int64], top: float) -> float:
    """The threshold that loses the least information (KL divergence), after TensorRT's calibrator.

    For each candidate the clipped histogram P, with all that lies above in its last bin, is
    compared with Q, the same histogram seen through 128 levels.
    """
    edges = _candidates(counts)
    tail = counts[::-1].cumsum()[::-1]
    losses = []
    for edge in edges:
        kept = counts[:edge].astype(np.float64)
        p = kept.copy()
        p[-1] += tail[edge] if edge < len(counts) else 0
        starts = np.linspace(0, edge, STEPS + 2).astype(np.int64)[:-1]
        sizes = np.diff(np.append(starts, edge))
        filled = np.add.reduceat((kept > 0).astype(np.float64), starts)
        level = np.add.reduceat(kept, starts) / np.maximum(filled, 1)
        q = np.where(kept > 0, np.repeat(level, sizes), 0)
        losses.append(_divergence(p, q))
    return float(edges[int(np.argmin(losses))]) * _width(counts, top)


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL divergence of two histograms; where P has values and Q none, a little is lent to Q."""
    p, q = p / p.sum(), q / max(q.sum(), 1.0)
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-9))).sum())


def _candidates(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bin edges worth trying: 256 from a sixteenth of the used bins up to the last of them."""
    last = int(np.flatnonzero(counts)[-1]) + 1
    low = min(last, max(STEPS + 1, last // 16))
    return np.unique(np.linspace(low, last, 256).astype(np.int64))


def _width(counts: NDArray[np.int64], top: float) -> float:
    return top / len(counts)


CALIBRATORS: dict[str, Callable[[NDArray[np.int64], float], float]] = {
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
