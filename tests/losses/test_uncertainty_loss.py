import math

import pytest
import torch

from udl_plugin.errors import UserError
from udl_plugin.losses import ESU, EU, UDL, GaussianNLL

LOSSES = (GaussianNLL, EU, ESU, UDL)
SHAPE = (2, 3, 4, 5)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    pred, target = (torch.rand(SHAPE, generator=generator, dtype=dtype) for _ in range(2))
    return pred, target, torch.randn(SHAPE, generator=generator, dtype=dtype)


def by_hand(name, pred, target, log_var, offset=1.0):
    """The loss of each pixel: the paper's formulas in plain Python."""
    terms = torch.empty(SHAPE, dtype=torch.float64)
    for n in range(SHAPE[0]):
        for c in range(SHAPE[1]):
            smallest = min(float(s) for s in log_var[n, c].flatten())
            for y in range(SHAPE[2]):
                for x in range(SHAPE[3]):
                    at = (n, c, y, x)
                    error, s = 255 * abs(float(pred[at]) - float(target[at])), float(log_var[at])
                    terms[at] = {
                        'GaussianNLL': math.exp(-s) * error**2 / 2 + s / 2,
                        'EU': math.exp(-s) * error + s,
                        'ESU': math.exp(-s) * error + 2 * s,
                        'UDL': (s - smallest + offset) * error,
                    }[name]
    return terms


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, {'rtol': 1e-6, 'atol': 1e-6}),
                                                  (torch.float32, {'rtol': 1e-5, 'atol': 1e-4})], ids=str)
def test_formula(loss, dtype, tolerance):
    expected = by_hand(loss.__name__, *inputs(dtype)).to(dtype)
    torch.testing.assert_close(loss(reduction='none')(*inputs(dtype)), expected, **tolerance)


@pytest.mark.parametrize('loss', LOSSES)
def test_reduction_and_loss_weight(loss):
    terms = by_hand(loss.__name__, *inputs())
    torch.testing.assert_close(loss()(*inputs()), terms.mean())
    torch.testing.assert_close(loss(reduction='sum', loss_weight=0.5)(*inputs()), 0.5 * terms.sum())


def test_udl_does_not_divide_by_the_weights():
    pred, target, _ = inputs()
    low_and_high = torch.zeros(SHAPE, dtype=torch.float64)
    low_and_high[..., 0] = 9.0
    plain = 255 * (pred - target).abs()
    weighted = plain.mean() + 9 * plain[..., 0].sum() / plain.numel()
    torch.testing.assert_close(UDL()(pred, target, low_and_high), weighted)


def test_udl_minimum_is_per_image_and_per_channel():
    pred, target, log_var = inputs()
    shift = torch.arange(6, dtype=torch.float64).view(2, 3, 1, 1) * 10  # another one for each image and channel
    torch.testing.assert_close(UDL()(pred, target, log_var + shift), UDL()(pred, target, log_var))


@pytest.mark.parametrize('offset', [0.0, 1.0, 2.5])
def test_udl_offset(offset):
    expected = by_hand('UDL', *inputs(), offset=offset).mean()
    torch.testing.assert_close(UDL(offset=offset)(*inputs()), expected)


CHARBONNIER = {'type': 'CharbonnierLoss', 'reduction': 'none', 'eps': 4.0}


def test_udl_weights_another_loss():
    pred, target, log_var = inputs()
    weight = by_hand('UDL', pred, target, log_var) / by_hand('UDL', pred, target, log_var * 0)
    expected = weight * ((255 * (pred - target))**2 + 4).sqrt()
    torch.testing.assert_close(UDL(reduction='none', criterion=CHARBONNIER)(pred, target, log_var), expected)
    torch.testing.assert_close(UDL(criterion=CHARBONNIER)(pred, target, log_var), expected.mean())


def test_udl_is_l1_by_default():
    pred, target, log_var = inputs(torch.float32)
    weight = log_var - log_var.amin((2, 3), keepdim=True) + 1
    expected = (weight * ((target - pred) * 255).abs()).mean()
    assert torch.equal(UDL()(pred, target, log_var), expected)
    assert torch.equal(UDL(criterion=None)(pred, target, log_var), expected)
    l1 = UDL(criterion={'type': 'L1Loss', 'reduction': 'none'})
    torch.testing.assert_close(l1(pred, target, log_var), expected)


@pytest.mark.parametrize(('criterion', 'message'), [
    ('L1Loss', r'each pixel is weighted; write a loss such as \{type: CharbonnierLoss, reduction: none}, not L1Loss'),
    ({'type': 'L1Loss'}, 'each pixel is weighted; write'),
    ({'type': 'L1Loss', 'reduction': 'mean'}, 'each pixel is weighted; write'),
    ({**CHARBONNIER, 'type': 'CharbonierLoss'}, "type: there is no 'CharbonierLoss' .did you mean 'CharbonnierLoss'"),
    ({**CHARBONNIER, 'esp': 1}, "'esp' is not an option of type: CharbonnierLoss .did you mean 'eps'"),
    ({'type': 'WeightedTVLoss', 'reduction': 'none'}, r'type: WeightedTVLoss: cannot be built .*\(ValueError: Uns'),
    ({'type': 'ESU', 'reduction': 'none'}, 'type: ESU requires log_var; use a loss of SR image and ground'),
])
def test_bad_criterion(criterion, message):
    with pytest.raises(UserError, match=f'type: UDL: criterion: {message}'):
        UDL(criterion=criterion)


@pytest.mark.parametrize(('value', 'message'), [(torch.zeros(2, 3), r'a tensor of shape \(2, 3\)'),
                                                (None, 'a NoneType')])
def test_criterion_that_returns_no_map(value, message):
    loss = UDL(criterion=CHARBONNIER)
    loss.criterion.forward = lambda pred, target: value
    with pytest.raises(UserError, match=f'criterion: type: CharbonnierLoss returns {message}, not the loss of each'):
        loss(*inputs())


@pytest.mark.parametrize(('loss', 'optimum'), [(EU, 'ln E|e|'), (ESU, 'ln(E|e| / 2)')])
def test_optimum(loss, optimum):
    """The constant log_var that minimises the loss is the one in the docstring."""
    pred, target, _ = inputs()
    log_var = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    best = (255 * (pred - target).abs()).mean().div(1 if loss is EU else 2).log()
    loss()(pred, target, (log_var + best).expand(SHAPE)).backward()
    assert abs(float(log_var.grad)) < 1e-9, optimum


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_gradcheck(loss, reduction):
    pred, target, log_var = inputs()
    trained = (pred.requires_grad_(), target, log_var.requires_grad_(loss is not UDL))
    assert torch.autograd.gradcheck(loss(reduction=reduction, img_range=2.0), trained)


def test_udl_sends_no_gradient_to_log_var():
    pred, target, log_var = inputs()
    UDL()(pred.requires_grad_(), target, log_var.requires_grad_()).backward()
    assert pred.grad is not None
    assert log_var.grad is None


@pytest.mark.parametrize('loss', LOSSES)
def test_img_range_scales_the_error(loss):
    pred, target, log_var = inputs()
    torch.testing.assert_close(loss(img_range=1)(pred * 255, target * 255, log_var), loss()(pred, target, log_var))


@pytest.mark.parametrize('loss', LOSSES)
def test_bad_input(loss):
    pred, target, log_var = inputs()
    with pytest.raises(ValueError, match='requires log_var.*return_log_var=True'):
        loss()(pred, target)
    with pytest.raises(ValueError, match=r'\(2, 3, 4, 5\).*\(2, 1, 4, 5\)'):
        loss()(pred, target, log_var[:, :1])
    with pytest.raises(ValueError, match='one shape'):
        loss()(pred, target[..., :1], log_var)
    with pytest.raises(UserError, match="'loss_wieght' is not an option of type: .*did you mean 'loss_weight'"):
        loss(loss_wieght=1)
    with pytest.raises(UserError, match="reduction is 'avg'"):
        loss(reduction='avg')
