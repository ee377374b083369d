import math

import pytest
import torch

from udl_plugin.errors import UserError
from udl_plugin.losses import UDL
from udl_plugin.losses.weights import SCALINGS, SOURCES, udl_weight

SHAPE = (2, 3, 4, 5)
FORMULAS = {'linear': lambda u, top: u, 'log': lambda u, top: math.log(1 + u), 'exp': lambda u, top: math.exp(u) - 1,
            'sqrt': lambda u, top: u**0.5, 'minmax': lambda u, top: u / top, 'none': lambda u, top: 0.0}


def inputs():
    generator = torch.Generator().manual_seed(1)
    pred, target, frozen_sr = (torch.rand(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    return pred, target, torch.randn(SHAPE, generator=generator, dtype=torch.float64), frozen_sr


def test_all_table_entries_are_tested():
    assert set(SCALINGS) == set(FORMULAS)
    assert set(SOURCES) == {'log_var', 'error', 'gradient', 'teacher_error', 'teacher_residual'}


@pytest.mark.parametrize('scaling', FORMULAS)
@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_scaling_of_the_map_minus_its_minimum_per_image_and_channel(scaling, offset):
    log_var = inputs()[2]
    weight = udl_weight(log_var, offset, scaling)
    for n in range(SHAPE[0]):
        for c in range(SHAPE[1]):
            plane = [float(value) for value in log_var[n, c].flatten()]
            low, high = min(plane), max(plane)
            expected = [FORMULAS[scaling](value - low, high - low) + offset for value in plane]
            torch.testing.assert_close(weight[n, c].flatten(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('scaling', FORMULAS)
def test_constant_map_gives_equal_weights(scaling):
    assert (udl_weight(torch.full(SHAPE, -0.9), 1.0, scaling) == 1).all()


def test_error_source_is_in_8_bit_levels():
    pred, target, _, frozen_sr = inputs()
    error = 255 * (target - frozen_sr).abs()
    expected = (error - error.amin((2, 3), keepdim=True) + 1) * 255 * (target - pred).abs()
    torch.testing.assert_close(UDL(source='error', reduction='none')(pred, target, frozen_sr=frozen_sr), expected)


def test_teacher_sources_are_in_8_bit_levels():
    pred, target, _, teacher_sr = inputs()
    bicubic = target.flip(-1)
    for source, of in (('teacher_error', target), ('teacher_residual', bicubic)):
        u = 255 * (teacher_sr - of).abs()
        expected = (torch.log1p(u - u.amin((2, 3), keepdim=True)) + 1) * 255 * (target - pred).abs()
        loss = UDL(source=source, scaling='log', reduction='none')
        torch.testing.assert_close(loss(pred, target, teacher_sr=teacher_sr, bicubic=bicubic), expected)


def test_gradient_of_a_ramp_and_an_edge():
    target = torch.zeros(1, 1, 4, 8, dtype=torch.float64)
    target[..., 4:] = 10 / 255
    weight = UDL(source='gradient', reduction='none', offset=0)(target + 1 / 255, target)
    expected = torch.tensor([0, 0, 0, 5, 5, 0, 0, 0], dtype=torch.float64).expand(4, 8)  # central differences
    torch.testing.assert_close(weight[0, 0], expected)
    ramp = torch.arange(4.).view(1, 1, 4, 1).expand(1, 1, 4, 4) * 3 + torch.arange(4.).view(1, 1, 1, 4) * 4
    torch.testing.assert_close(SOURCES['gradient'].weight_map(ramp, {}), torch.full((1, 1, 4, 4), 5.))


@pytest.mark.parametrize(('source', 'required'),
                         [('log_var', ('log_var',)), ('error', ('frozen_sr',)), ('gradient', ()),
                          ('teacher_error', ('teacher_sr',)), ('teacher_residual', ('teacher_sr', 'bicubic'))])
def test_loss_declares_its_required_outputs(source, required):
    loss = UDL(source=source)
    pred, target, log_var, frozen_sr = inputs()
    assert loss.required_outputs == required
    given = {name: {'log_var': log_var, 'bicubic': target}.get(name, frozen_sr) for name in required}
    assert loss(pred, target, **given).isfinite()
    if required:
        with pytest.raises(ValueError, match=f'UDL requires {required[0]}.*return_{required[0]}=True'):
            loss(pred, target)
        with pytest.raises(ValueError, match='one shape'):
            loss(pred, target, **{**given, required[0]: given[required[0]][:, :1]})


@pytest.mark.parametrize('source', ['log_var', 'error', 'gradient'])
@pytest.mark.parametrize('scaling', ['linear', 'log', 'sqrt', 'minmax'])
def test_no_gradient_flows_through_the_weight(source, scaling):
    pred, target, log_var, frozen_sr = inputs()
    for tensor in (log_var, frozen_sr):
        tensor.requires_grad_()
    UDL(source=source, scaling=scaling)(pred.requires_grad_(), target, log_var, frozen_sr=frozen_sr).backward()
    assert pred.grad.isfinite().all()
    assert log_var.grad is None
    assert frozen_sr.grad is None


def test_bad_source_and_scaling():
    with pytest.raises(UserError, match=r"UDL: source is 'eror' \(did you mean 'error'\?\), not one of log_var"):
        UDL(source='eror')
    with pytest.raises(UserError, match="UDL: scaling is 'cubic', not one of linear"):
        UDL(scaling='cubic')
    with pytest.raises(UserError, match='scaling: exp requires source: log_var; with source: gradient'):
        UDL(source='gradient', scaling='exp')
