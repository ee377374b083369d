"""Paired comparisons over seeds or images, and how they are printed."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import ttest_rel

LEVEL = 0.95  # of confidence intervals


class Difference(NamedTuple):
    """A mean difference. As a string: `+0.100 [+0.061, +0.139]`.

    Attributes:
        mean: Of the paired differences.
        interval: Its 95 % confidence interval by a paired t-test; None for a single pair.
    """

    mean: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        mean = f'{self.mean:+.3f}'
        return mean if self.interval is None else f'{mean} [{self.interval[0]:+.3f}, {self.interval[1]:+.3f}]'


def compare_pairs(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of `ours` minus that of `theirs`; the values at equal positions are paired."""
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    if len(ours) < 2:
        return Difference(mean, None)
    low, high = ttest_rel(ours, theirs).confidence_interval(LEVEL)
    return Difference(mean, (float(low), float(high)))


def format_mean(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation, `35.98 ± 0.02`; only the mean for a single value."""
    mean = f'{statistics.fmean(values):.{digits}f}'
    return mean if len(values) < 2 else f'{mean} ± {statistics.stdev(values):.{digits}f}'
