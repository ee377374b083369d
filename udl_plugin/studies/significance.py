"""Intervals and paired comparisons over seeds and images."""
import statistics

from scipy.stats import ttest_rel

LEVEL = 0.95  # of intervals


def paired(ours, theirs):
    """The mean difference, and the interval in which it lies with a confidence of 95 % by a paired t-test (Student's
    distribution), or None of one pair.
    """
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    if len(ours) < 2:
        return difference, None
    return difference, tuple(map(float, ttest_rel(ours, theirs).confidence_interval(LEVEL)))


def with_deviation(values, digits):
    """`35.98 ± 0.02`; of one value no deviation."""
    text = f'{statistics.fmean(values):.{digits}f}'
    return text if len(values) < 2 else f'{text} ± {statistics.stdev(values):.{digits}f}'


def with_interval(difference, interval):
    """`+0.100 [+0.061, +0.139]`"""
    if difference is None:
        return '-'
    text = f'{difference:+.3f}'
    return text if interval is None else f'{text} [{interval[0]:+.3f}, {interval[1]:+.3f}]'
