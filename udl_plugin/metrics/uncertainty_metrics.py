"""How well an uncertainty map predicts the error: correlation, sparsification, calibration; and how sparse it is.

First the arithmetic on flat arrays of samples, then the metrics that BasicSR's validation calls with its images. A
sample is one channel of one pixel. Errors are absolute, in 8-bit levels.
"""
from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr, rankdata

from udl_plugin.errors import UserError

STEPS = 100  # of the sparsification curves


# ---- sparsification

def sparsification(uncertainty: np.ndarray, error: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Mean error of the samples left when the most uncertain ones are removed, over the mean error of all.

    Ilg et al., 'Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow', ECCV 2018. Samples of equal
    uncertainty are removed in random order; the curve is the expectation over these orders.

    Args:
        uncertainty: `(N,)`; only its order counts. The error itself gives the oracle curve.
        error: `(N,)`, 0 or more.
        steps: The fractions removed are 0, 1 / steps, 2 / steps, and so on below 1.

    Returns:
        `(steps,)`, starting at 1; 1 everywhere if there is no error.
    """
    count = len(error)
    order = np.argsort(uncertainty, kind='stable')
    ranked, ordered = uncertainty[order], error[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of each group of equal uncertainty
    sizes = np.diff(np.r_[starts, count])
    expected = np.repeat(np.add.reduceat(ordered, starts) / sizes, sizes)
    left = count - count * np.arange(steps) // steps
    means = np.cumsum(expected)[left - 1] / left
    return means / means[0] if means[0] > 0 else np.ones(steps)


def sparsification_area(curve: np.ndarray, oracle: np.ndarray) -> float:
    """Area between two curves from `sparsification`: the AUSE."""
    return float(np.mean(curve - oracle))


def ause(uncertainty: np.ndarray, error: np.ndarray, steps: int = STEPS) -> float:
    """Area under the sparsification error: 0 if the uncertainty has the order of the error; larger is worse."""
    return sparsification_area(sparsification(uncertainty, error, steps), sparsification(error, error, steps))


# ---- correlation

def spearman(uncertainty: np.ndarray, error: np.ndarray) -> float:
    """Spearman's rank correlation, in [-1, 1]; 0 if either array is constant."""
    return pearson(rankdata(uncertainty), rankdata(error))


def pearson(uncertainty: np.ndarray, error: np.ndarray) -> float:
    """Pearson's linear correlation, in [-1, 1]; 0 if either array is constant."""
    is_constant = np.ptp(uncertainty) == 0 or np.ptp(error) == 0
    return 0.0 if is_constant else float(pearsonr(uncertainty, error).statistic)


# ---- calibration

# loss that a map was trained with -> (factor, power): its minimum is where E|e| = factor * exp(power * s), for errors
# of the loss's own distribution
ERROR_SCALES = {'ESU': (2.0, 1.0), 'EU': (1.0, 1.0), 'GaussianNLL': (float(np.sqrt(2 / np.pi)), 0.5)}


def expected_error(log_var: np.ndarray, loss: str = 'ESU', error_scale: float = 1.0) -> np.ndarray:
    """Mean absolute error that a map predicts, in 8-bit levels, of the same shape.

    Args:
        log_var: Any shape.
        loss: Loss that the map was trained with: `ESU`, `EU` (both of a Laplace distribution) or `GaussianNLL`.
        error_scale: Factor on it, from `udl-upscale --calibrate`.

    Raises:
        UserError: another loss.
    """
    factor, power = _error_formula(loss)
    # an untrained map may exceed the range of float32
    return error_scale * factor * np.exp(power * log_var.astype(np.float64))


def log_var_of_error(error: float, loss: str = 'ESU', error_scale: float = 1.0) -> float:
    """The value of a map that predicts this error: the inverse of `expected_error`."""
    factor, power = _error_formula(loss)
    return float(np.log(error / (error_scale * factor)) / power)


def _error_formula(loss: str) -> tuple[float, float]:
    if loss not in ERROR_SCALES:
        raise UserError(f"loss: '{loss}' does not train a map; use one of {', '.join(ERROR_SCALES)}.")
    return ERROR_SCALES[loss]


def describe_expected_error(loss: str, error_scale: float = 1.0) -> str:
    """The formula of `expected_error`, such as `2 * exp(log_var)`, for people who read a map elsewhere."""
    numbers = error_scale * ERROR_SCALES[loss][0], ERROR_SCALES[loss][1]
    factor, power = (f'{number:.6g} * ' if number != 1 else '' for number in numbers)
    return f'{factor}exp({power}log_var)'


def reliability(log_var: np.ndarray, error: np.ndarray, loss: str = 'ESU',
                bins: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and observed mean absolute error in bins of similar prediction.

    Args:
        log_var, error: `(N,)`.
        loss: See `expected_error`.
        bins: Number of bins with equally many samples, ordered by prediction; fewer if there are fewer samples.

    Returns:
        Predicted and observed error, `(bins,)` each, in 8-bit levels.
    """
    predicted = expected_error(log_var, loss)
    order = np.argsort(predicted, kind='stable')
    parts = [part for part in np.array_split(order, bins) if len(part)]
    means = [np.array([values[part].mean() for part in parts]) for values in (predicted, error)]
    return means[0], means[1]


def normalised_error(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Calibration error of the two results of `reliability`; see `calibration`."""
    return float(np.mean(np.abs(observed - predicted) / predicted))


def calibration(log_var: np.ndarray, error: np.ndarray, loss: str = 'ESU', bins: int = 10) -> float:
    """Expected normalised calibration error: the mean over bins of `|observed - predicted| / predicted` error.

    Levi et al., 'Evaluating and Calibrating Uncertainty Prediction in Regression Tasks', Sensors 2022, with the mean
    absolute error instead of the root mean square. 0 is perfect; 1 is off by as much as the prediction itself.
    """
    return normalised_error(*reliability(log_var, error, loss, bins))


# ---- sparsity

def gini(values: np.ndarray) -> float:
    """Gini index of `(N,)` values of 0 or more: 0 if all are equal, near 1 if few hold the entire sum.

    Hurley and Rickard, 'Comparing Measures of Sparsity', IEEE Trans. Inf. Theory 2009.
    """
    ordered = np.sort(values).astype(np.float64)
    total, count = ordered.sum(), len(ordered)
    if total == 0:
        return 0.0
    return float(1 - 2 * np.sum(ordered / total * (count - np.arange(1, count + 1) + 0.5) / count))


def hoyer(values: np.ndarray) -> float:
    """Hoyer's sparsity of `(N,)` values of 0 or more: 0 if all are equal, 1 if one holds the entire sum.

    Hoyer, 'Non-negative Matrix Factorization with Sparseness Constraints', JMLR 2004.
    """
    values = values.astype(np.float64)
    norm, root = np.sqrt(np.sum(values**2)), np.sqrt(len(values))
    return 0.0 if norm == 0 or root == 1 else float((root - values.sum() / norm) / (root - 1))


SPARSITIES = {'gini': gini, 'hoyer': hoyer}


def step2_weight(log_var: np.ndarray) -> np.ndarray:
    """Pixel weight of step 2, `s - min(s)` with the minimum per channel: `(C, H, W)` to `(C * H * W,)`."""
    return (log_var - log_var.min(axis=(-2, -1), keepdims=True)).ravel()


# ---- metrics as BasicSR's validation calls them; it also passes its option `better`

def samples(img: np.ndarray, img2: np.ndarray, log_var: np.ndarray,
            crop_border: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Turns images into samples of log-variance and absolute error.

    Args:
        img: SR image, uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        img2: Ground truth, same shape.
        log_var: `(C, H, W)`, RGB or one channel.
        crop_border: Pixels to crop on each side.

    Returns:
        Log-variance and error, `(N,)` each.

    Raises:
        ValueError: their sizes differ.
    """
    error = np.abs(img.astype(np.float64) - img2)
    error = error[None] if error.ndim == 2 else error[:, :, ::-1].transpose(2, 0, 1)
    if img.shape != img2.shape or error.shape != log_var.shape:
        raise ValueError(f'Images {img.shape} and {img2.shape} and map {log_var.shape} must have the same size.')
    return crop(log_var, crop_border).ravel(), crop(error, crop_border).ravel()


def crop(planes: np.ndarray, border: int) -> np.ndarray:
    """Crops `border` pixels on each side of `(C, H, W)`."""
    return planes[:, border:planes.shape[1] - border, border:planes.shape[2] - border]


def calculate_map_spearman(img: np.ndarray, img2: np.ndarray, log_var: np.ndarray, crop_border: int,
                           better: str | None = None) -> float:
    """Rank correlation of the map with the absolute error, in [-1, 1]. For the arguments see `samples`."""
    return spearman(*samples(img, img2, log_var, crop_border))


def calculate_map_pearson(img: np.ndarray, img2: np.ndarray, log_var: np.ndarray, crop_border: int, loss: str = 'ESU',
                          better: str | None = None) -> float:
    """Linear correlation of the `expected_error` with the absolute error, in [-1, 1]."""
    log_var, error = samples(img, img2, log_var, crop_border)
    return pearson(expected_error(log_var, loss), error)


def calculate_map_ause(img: np.ndarray, img2: np.ndarray, log_var: np.ndarray, crop_border: int,
                       better: str | None = None) -> float:
    """Area under the sparsification error, `ause`; lower is better."""
    return ause(*samples(img, img2, log_var, crop_border))


def calculate_map_calibration(img: np.ndarray, img2: np.ndarray, log_var: np.ndarray, crop_border: int,
                              loss: str = 'ESU', bins: int = 10, better: str | None = None) -> float:
    """Calibration error, `calibration`, of a map that was trained with `loss`; lower is better."""
    return calibration(*samples(img, img2, log_var, crop_border), loss, bins)


def calculate_map_sparsity(img: np.ndarray, img2: np.ndarray, log_var: np.ndarray, crop_border: int,
                           measure: str = 'gini', better: str | None = None) -> float:
    """Sparsity, in [0, 1], of the weights that step 2 takes from the map: see `step2_weight`.

    Args:
        measure: `gini` or `hoyer`.
    """
    return SPARSITIES[measure](step2_weight(crop(log_var, crop_border)))
