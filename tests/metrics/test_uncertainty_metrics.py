import numpy as np
import pytest
import torch
from scipy.stats import laplace, norm

from udl_plugin.errors import UserError
from udl_plugin.losses import ESU, EU, GaussianNLL
from udl_plugin.metrics.uncertainty_metrics import (
    ause,
    calculate_map_ause,
    calculate_map_calibration,
    calculate_map_pearson,
    calculate_map_sparsity,
    calculate_map_spearman,
    calibration,
    describe_expected_error,
    expected_error,
    gini,
    hoyer,
    pearson,
    reliability,
    samples,
    sparsification,
    spearman,
    step2_weight,
)

ERROR = np.abs(np.random.default_rng(0).normal(size=5000))


def by_hand(uncertainty, error, steps):
    """Removes the most uncertain samples, one point of the curve at a time."""
    order = sorted(range(len(error)), key=lambda i: -uncertainty[i])
    curve = []
    for step in range(steps):
        rest = order[len(error) * step // steps:]
        curve.append(np.mean(error[rest]))
    return np.array(curve) / curve[0]


def test_sparsification_by_hand():
    uncertainty = np.random.default_rng(1).permutation(200).astype(float)
    np.testing.assert_allclose(sparsification(uncertainty, ERROR[:200], 20), by_hand(uncertainty, ERROR[:200], 20))


def test_ause_is_0_for_the_error_itself_and_worst_for_its_opposite():
    noise = np.random.default_rng(1).normal(size=ERROR.size)
    assert ause(ERROR, ERROR) == 0
    assert ause(np.exp(ERROR), ERROR) == pytest.approx(0)
    assert 0.05 < ause(ERROR + 0.5 * noise, ERROR) < ause(noise, ERROR) < ause(-ERROR, ERROR)


def test_samples_of_equal_uncertainty_are_removed_in_random_order():
    """A constant map has no information, wherever the errors are in the image."""
    np.testing.assert_allclose(sparsification(np.zeros(ERROR.size), np.sort(ERROR)), 1)
    ordered = sparsification(np.r_[np.zeros(50), np.ones(50)], np.r_[np.arange(50.), np.arange(50.) + 50], 4)
    np.testing.assert_allclose(ordered, np.array([49.5, (50 * 24.5 + 25 * 74.5) / 75, 24.5, 24.5]) / 49.5)


def test_curve_without_any_error():
    assert (sparsification(ERROR, np.zeros(ERROR.size)) == 1).all()


def test_correlations():
    assert spearman(np.exp(ERROR), ERROR) == pytest.approx(1)
    assert pearson(3 * ERROR + 1, ERROR) == pytest.approx(1)
    assert pearson(np.exp(3 * ERROR), ERROR) < 0.9
    assert spearman(np.ones(5), np.arange(5.)) == pearson(np.ones(5), np.arange(5.)) == 0


@pytest.mark.parametrize(('loss', 'shift'), [('EU', 0.0), ('ESU', np.log(2))])
def test_calibration_of_a_correct_laplace_scale(loss, shift):
    """At the optimum of EU, exp(s) is the mean error, at that of ESU half of it."""
    scale = np.random.default_rng(2).uniform(1, 20, 100_000)
    error = np.abs(laplace.rvs(scale=scale, random_state=3))
    log_var = np.log(scale) - shift
    assert calibration(log_var, error, loss) < 0.03
    assert calibration(log_var + np.log(2), error, loss) == pytest.approx(0.5, abs=0.03)
    predicted, observed = reliability(log_var, error, loss)
    assert predicted.shape == observed.shape == (10,)
    assert (np.diff(predicted) > 0).all()


def test_calibration_of_a_correct_gaussian_variance():
    deviation = np.random.default_rng(2).uniform(1, 20, 100_000)
    error = np.abs(np.random.default_rng(3).normal(scale=deviation))
    log_var = 2 * np.log(deviation)  # the log of the variance
    assert calibration(log_var, error, 'GaussianNLL') < 0.03
    assert calibration(log_var, error, 'ESU') > 0.5
    assert pearson(expected_error(log_var, 'GaussianNLL'), error) > pearson(expected_error(log_var, 'ESU'), error)


@pytest.mark.parametrize(('loss', 'cls'), [('ESU', ESU), ('EU', EU), ('GaussianNLL', GaussianNLL)])
def test_expected_error_is_where_the_loss_is_minimal(loss, cls):
    """For errors of the loss's own distribution."""
    distribution = norm if loss == 'GaussianNLL' else laplace
    error = torch.from_numpy(distribution.rvs(scale=5, size=20_000, random_state=0))
    levels = torch.linspace(-1, 5, 601, dtype=torch.float64)
    values = [cls(img_range=1)(torch.zeros_like(error), error, level.expand_as(error)) for level in levels]
    best = levels[int(torch.stack(values).argmin())].numpy()
    assert expected_error(best, loss) == pytest.approx(float(error.abs().mean()), rel=0.03)


@pytest.mark.parametrize('loss', ['ESU', 'EU', 'GaussianNLL'])
def test_described_formula(loss):
    s = np.linspace(-1, 4, 20)
    formula = describe_expected_error(loss)
    np.testing.assert_allclose(eval(formula, {'exp': np.exp, 'log_var': s}), expected_error(s, loss), rtol=1e-5)
    assert describe_expected_error('ESU') == '2 * exp(log_var)'


def test_unknown_loss():
    with pytest.raises(UserError, match="loss: 'L1' does not train a map; use one of ESU, EU, GaussianNLL"):
        expected_error(np.zeros(3), 'L1')


@pytest.mark.parametrize('sparsity', [gini, hoyer])
def test_sparsity(sparsity):
    one = np.zeros(1000)
    assert sparsity(one) == 0
    one[3] = 7
    assert sparsity(np.full(1000, 0.3)) == pytest.approx(0, abs=1e-6)
    assert sparsity(one) == pytest.approx(1, abs=2e-3)
    assert sparsity(ERROR**3) > sparsity(ERROR) > 0
    assert sparsity(ERROR) == pytest.approx(sparsity(5 * ERROR))


def test_gini_of_an_exponential_distribution():
    assert gini(np.random.default_rng(0).exponential(size=200_000)) == pytest.approx(0.5, abs=0.01)


def images():
    generator = np.random.default_rng(0)
    sr, gt = (generator.integers(0, 256, (12, 10, 3), dtype=np.uint8) for _ in range(2))
    return sr, gt


def test_samples_match_the_channels_of_map_and_image():
    """Images are BGR and the map is RGB; the border is cropped."""
    sr, gt = images()
    error = np.abs(sr.astype(float) - gt)
    rgb = np.stack([error[..., 2], error[..., 1], error[..., 0]])
    log_var, absolute = samples(sr, gt, rgb, crop_border=2)
    np.testing.assert_array_equal(log_var, absolute)
    assert absolute.size == 8 * 6 * 3
    assert calculate_map_ause(sr, gt, rgb, 2) == 0
    assert calculate_map_spearman(sr, gt, rgb, 2) == pytest.approx(1)
    assert calculate_map_pearson(sr, gt, np.log(rgb + 1e-9), 2) == pytest.approx(1)
    assert calculate_map_calibration(sr, gt, np.log(rgb + 1), 2, loss='EU') < 0.2
    grey = rgb[:1]
    assert samples(sr[..., 2], gt[..., 2], grey)[1].tolist() == grey.ravel().tolist()


def test_different_sizes():
    sr, gt = images()
    with pytest.raises(ValueError, match='must have the same size'):
        samples(sr, gt, np.zeros((1, 12, 10)))


def test_map_sparsity_is_that_of_the_weights_of_step_2():
    log_var = np.random.default_rng(0).normal(size=(3, 12, 10)) + np.array([0, 5, -3])[:, None, None]
    sr, gt = images()
    weight = log_var - log_var.min((1, 2), keepdims=True)
    np.testing.assert_allclose(step2_weight(log_var), weight.ravel())
    assert calculate_map_sparsity(sr, gt, log_var, 0) == pytest.approx(gini(weight.ravel()))
    assert calculate_map_sparsity(sr, gt, log_var, 0, measure='hoyer') == pytest.approx(hoyer(weight.ravel()))
