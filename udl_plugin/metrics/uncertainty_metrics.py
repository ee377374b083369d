"""How well an uncertainty map tells the error: rank and linear correlation, sparsification, calibration, sparsity.

First the arithmetic, on flat arrays of samples; below, the functions that BasicSR's validation calls, with its images.
A sample is one channel of one pixel. Errors are absolute, in 8-bit levels.
"""
import numpy as np
from scipy.stats import pearsonr, spearmanr

from udl_plugin.errors import UserError

STEPS = 100  # of the sparsification curves


def sparsification(uncertainty, error, steps=STEPS):
    """Mean error of what is left when the most uncertain samples are taken away, over the mean error of all.

    Ilg et al., 'Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow', ECCV 2018. Samples of equal
    uncertainty leave in random order, of which this is the expectation.

    Args:
        uncertainty (ndarray): `(N,)`; only its order counts. The error itself gives the oracle.
        error (ndarray): `(N,)`, 0 or more.
        steps (int): The curve's fractions taken away are 0, 1 / steps, and so on below 1.

    Returns:
        ndarray: `(steps,)`, from 1 downwards; 1 throughout where there is no error, or no order.
    """
    count = len(error)
    order = np.argsort(uncertainty, kind='stable')
    ranked, ordered = uncertainty[order], error[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sizes = np.diff(np.r_[starts, count])
    expected = np.repeat(np.add.reduceat(ordered, starts) / sizes, sizes)
    left = count - count * np.arange(steps) // steps
    means = np.cumsum(expected)[left - 1] / left
    return means / means[0] if means[0] > 0 else np.ones(steps)


def ause(uncertainty, error, steps=STEPS):
    """Area under the sparsification error: between the curve of the uncertainty and that of the error itself.

    Returns:
        float: 0 for the error's own order, larger is worse.
    """
    return sparsification_area(sparsification(uncertainty, error, steps), sparsification(error, error, steps))


def sparsification_area(curve, oracle):
    """AUSE of two curves from `sparsification`."""
    return float(np.mean(curve - oracle))


def spearman(uncertainty, error):
    """Spearman's rank correlation, in [-1, 1]; 0 where one of the two is constant."""
    return _correlation(spearmanr, uncertainty, error)


def pearson(uncertainty, error):
    """Pearson's linear correlation, in [-1, 1]; 0 where one of the two is constant."""
    return _correlation(pearsonr, uncertainty, error)


def _correlation(function, uncertainty, error):
    if np.ptp(uncertainty) == 0 or np.ptp(error) == 0:
        return 0.0
    return float(function(uncertainty, error).statistic)


# what a map states, by the loss that it comes from: mean absolute error = factor * exp(power * s), where that is least
ERROR_SCALES = {'ESU': (2.0, 1.0), 'EU': (1.0, 1.0), 'GaussianNLL': (np.sqrt(2 / np.pi), 0.5)}


def expected_error(log_var, loss='ESU'):
    """The mean absolute error that a map states, in 8-bit levels.

    Args:
        log_var (ndarray): Any shape.
        loss (str): That the map was trained with: `ESU`, `EU` (a Laplace distribution's) or `GaussianNLL`.

    Raises:
        UserError: another loss.
    """
    if loss not in ERROR_SCALES:
        raise UserError(f"loss: '{loss}' is none that maps are trained with: {', '.join(ERROR_SCALES)}.")
    factor, power = ERROR_SCALES[loss]
    return factor * np.exp(power * log_var.astype(np.float64))  # an untrained map may state what float32 cannot hold


def reliability(log_var, error, loss='ESU', bins=10):
    """Predicted and observed mean absolute error, over samples of like prediction.

    Args:
        log_var (ndarray): `(N,)`: log of the error's scale in 8-bit levels.
        error (ndarray): `(N,)`.
        loss (str): See `expected_error`.
        bins (int): Of equally many samples, by prediction; fewer where there are fewer samples.

    Returns:
        tuple[ndarray, ndarray]: `(bins,)` each, in 8-bit levels.
    """
    predicted = expected_error(log_var, loss)
    order = np.argsort(predicted, kind='stable')
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return tuple(np.array([values[part].mean() for part in parts]) for values in (predicted, error))


def calibration(log_var, error, loss='ESU', bins=10):
    """Expected normalised calibration error: the mean over bins of |observed - predicted| error
    over the predicted one. Levi et al., 'Evaluating and Calibrating Uncertainty Prediction in Regression Tasks',
    Sensors 2022, with the mean absolute error in place of the root of the mean square.

    Returns:
        float: 0 is perfect; 1 is wrong by as much as is predicted.
    """
    return normalised_error(*reliability(log_var, error, loss, bins))


def normalised_error(predicted, observed):
    """Calibration error of what `reliability` returns."""
    return float(np.mean(np.abs(observed - predicted) / predicted))


def gini(values):
    """Gini index, the measure of sparsity of Hurley and Rickard, 'Comparing Measures of Sparsity', IEEE Trans. Inf.
    Theory 2009.

    Args:
        values (ndarray): `(N,)`, 0 or more.

    Returns:
        float: 0 where all are equal, near 1 where few hold all.
    """
    ordered = np.sort(values).astype(np.float64)
    total, count = ordered.sum(), len(ordered)
    if total == 0:
        return 0.0
    return float(1 - 2 * np.sum(ordered / total * (count - np.arange(1, count + 1) + 0.5) / count))


def hoyer(values):
    """Hoyer's sparsity, 'Non-negative Matrix Factorization with Sparseness Constraints', JMLR 2004: from 0 where all
    are equal to 1 where one holds all.
    """
    values = values.astype(np.float64)
    norm, root = np.sqrt(np.sum(values**2)), np.sqrt(len(values))
    return 0.0 if norm == 0 or root == 1 else float((root - values.sum() / norm) / (root - 1))


SPARSITIES = {'gini': gini, 'hoyer': hoyer}


def step2_weight(log_var):
    """What weighs the pixels in step 2, `s - min(s)`, the minimum per channel: `(C, H, W)` to `(C * H * W,)`."""
    return (log_var - log_var.min(axis=(-2, -1), keepdims=True)).ravel()


# ---- as BasicSR's validation calls them

def samples(img, img2, log_var, crop_border=0):
    """Log-variance and absolute error, sample by sample.

    Args:
        img, img2 (ndarray): SR image and ground truth, uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        log_var (ndarray): `(C, H, W)`, RGB.
        crop_border (int): Pixels of border left out.

    Returns:
        tuple[ndarray, ndarray]: `(N,)` each.

    Raises:
        ValueError: their sizes differ.
    """
    error = np.abs(img.astype(np.float64) - img2)
    error = error[None] if error.ndim == 2 else error[:, :, ::-1].transpose(2, 0, 1)
    if img.shape != img2.shape or error.shape != log_var.shape:
        raise ValueError(f'Images {img.shape} and {img2.shape} and map {log_var.shape} are not of one size.')
    return crop(log_var, crop_border).ravel(), crop(error, crop_border).ravel()


def crop(planes, border):
    """`(C, H, W)` without its border."""
    return planes[:, border:planes.shape[1] - border, border:planes.shape[2] - border]


def calculate_map_spearman(img, img2, log_var, crop_border, better=None):
    """Rank correlation of the map with the absolute error. For arguments see `samples`; `better` is upstream's."""
    return spearman(*samples(img, img2, log_var, crop_border))


def calculate_map_pearson(img, img2, log_var, crop_border, loss='ESU', better=None):
    """Linear correlation of the error that the map states, `expected_error`, with the absolute error."""
    log_var, error = samples(img, img2, log_var, crop_border)
    return pearson(expected_error(log_var, loss), error)


def calculate_map_ause(img, img2, log_var, crop_border, better=None):
    """Area under the sparsification error of the map; lower is better."""
    return ause(*samples(img, img2, log_var, crop_border))


def calculate_map_calibration(img, img2, log_var, crop_border, loss='ESU', bins=10, better=None):
    """Calibration error of a map that was trained with `loss`; lower is better."""
    return calibration(*samples(img, img2, log_var, crop_border), loss, bins)


def calculate_map_sparsity(img, img2, log_var, crop_border, measure='gini', better=None):
    """Sparsity of the map as step 2 weighs by it, `log_var` less its minimum in each channel.

    Args:
        measure (str): `gini` or `hoyer`.
    """
    return SPARSITIES[measure](step2_weight(crop(log_var, crop_border)))
