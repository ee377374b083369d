"""One run: each part of the loss trains what it shall, with the weight of the moment."""
import pytest
import torch

from udl_plugin.errors import UserError
from udl_plugin.losses import ESU, UDL, JointUDL
from udl_plugin.losses.build import get_head_loss

SHAPE = (2, 3, 4, 5)
SWITCHED_ON = {'warmup': 0}


def inputs():
    generator = torch.Generator().manual_seed(1)
    pred, target = (torch.rand(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    return pred, target, torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def gradients(loss):
    """Of the SR image and of the log-variance."""
    pred, target, log_var = inputs()
    loss(pred.requires_grad_(), target, log_var.requires_grad_()).backward()
    return pred.grad, log_var.grad


@pytest.mark.parametrize('options', [{}, {'offset': 0.5, 'scaling': 'log'}, {'source': 'gradient', 'scaling': 'sqrt'},
                                     {'criterion': {'type': 'CharbonnierLoss', 'reduction': 'none'}}], ids=str)
def test_image_learns_from_udl_and_head_from_esu(options):
    of_image, of_head = gradients(JointUDL(**SWITCHED_ON, **options))
    torch.testing.assert_close(of_image, gradients(UDL(source=options.pop('source', 'log_var'), **options))[0])
    torch.testing.assert_close(of_head, gradients(ESU())[1])
    joint = JointUDL(**SWITCHED_ON)(*inputs())
    torch.testing.assert_close(joint, UDL()(*inputs()) + ESU()(*inputs()))


def test_error_source_is_the_networks_own():
    of_image, _ = gradients(JointUDL(**SWITCHED_ON, source='error'))
    pred, target, _ = inputs()
    error = 255 * (pred - target).abs()
    weight = error - error.amin((2, 3), keepdim=True) + 1
    torch.testing.assert_close(of_image, weight * (pred - target).sign() * 255 / pred.numel())
    assert JointUDL(source='error').required_outputs == ('log_var',)


def test_no_weight_until_warmup_ends():
    pred, target, _ = inputs()
    plain = (pred - target).sign() * 255 / pred.numel()
    loss = JointUDL(warmup=3)
    for iteration, expected in [(1, plain), (3, plain), (4, gradients(UDL())[0])]:
        loss.set_progress(iteration, 10)
        of_image, of_head = gradients(loss)
        torch.testing.assert_close(of_image, expected)
        torch.testing.assert_close(of_head, gradients(ESU())[1])  # the head learns from the start
    torch.testing.assert_close(gradients(JointUDL(**SWITCHED_ON, scaling='none'))[0], plain)


@pytest.mark.parametrize(('iteration', 'beta'), [(5, 0.75), (10, 1.5)])
def test_schedule(iteration, beta):
    pred, target, log_var = inputs()
    loss = JointUDL(**SWITCHED_ON, beta_start=0, beta_end=1.5)
    loss.set_progress(iteration, 10)
    weight = torch.exp((beta - 1) * log_var)
    torch.testing.assert_close(gradients(loss)[0], weight * (pred - target).sign() * 255 / pred.numel())


def test_beta_0_is_the_gradient_of_esu():
    of_image, of_head = gradients(JointUDL(**SWITCHED_ON, beta_start=0, beta_end=0))
    expected = gradients(ESU())
    torch.testing.assert_close(of_image, expected[0])
    torch.testing.assert_close(of_head, expected[1])


def test_map_has_the_unit_of_esu():
    assert [get_head_loss(loss) for loss in (JointUDL(), ESU(), UDL(), torch.nn.L1Loss())] == ['ESU', 'ESU', None, None]


@pytest.mark.parametrize(('options', 'message'), [
    ({'beta_start': 1.0}, 'beta_start and beta_end: set both, or none'),
    ({'beta_start': 1.0, 'beta_end': 1.5, 'scaling': 'log'}, 'replace offset, source and scaling; delete those'),
    ({'source': 'eror'}, "type: JointUDL: source is 'eror'"), ({'warm_up': 3}, 'warmup'),
    ({'criterion': {'type': 'L1Loss'}}, 'type: JointUDL: criterion: each pixel is weighted')], ids=str)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        JointUDL(**options)
