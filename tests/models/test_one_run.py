"""Training in one run, and with a teacher in place of step 1."""
import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.models import build_model
from conftest import TINY, model_options
from torch.nn import functional as F

from udl_plugin.archs import EDSRVar
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import get_uncertainty_loss, save_checkpoint
from udl_plugin.config.cross_checks import validate_options
from udl_plugin.errors import UserError

pytestmark = pytest.mark.usefixtures('seed')
JOINT = {'type': 'JointUDL', 'warmup': 2}


def one_run_options(folder, network_g=None, **train):
    opt = model_options(1, folder, **{'pixel_opt': JOINT, **train})
    opt['network_g'] = network_g or {'type': 'EDSRVar', **TINY, 'detach_features': True}
    return opt


def build(opt):
    torch.manual_seed(0)
    return build_model(opt)


def iterate(model, first=1, last=4):
    """Returns the loss of each iteration, on fixed batches."""
    losses = []
    for number in range(first, last + 1):
        generator = torch.Generator().manual_seed(number)
        model.update_learning_rate(number)
        model.feed_data({'lq': torch.rand(4, 3, 8, 8, generator=generator),
                         'gt': torch.rand(4, 3, 16, 16, generator=generator)})
        model.optimize_parameters(number)
        losses.append(model.log_dict['l_pix'])
    return losses


def assert_same_base(net, expected):
    for name, value in expected.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_without_weights_it_is_plain_l1_bit_for_bit(tmp_path):
    """The head changes nothing in the network; `UDL` with `scaling: none` is L1 in 8-bit levels."""
    side = build(one_run_options(tmp_path, pixel_opt={'type': 'JointUDL', 'scaling': 'none'}))
    plain = build(one_run_options(tmp_path, {'type': 'EDSR', **TINY}, pixel_opt={
        'type': 'UDL', 'source': 'gradient', 'scaling': 'none'}))
    head = side.net_g.var_conv[0].weight.clone()
    for model in (side, plain):
        iterate(model)
    assert_same_base(side.net_g, plain.net_g)
    assert not torch.equal(side.net_g.var_conv[0].weight, head)


def test_weights_are_switched_on_after_warmup(tmp_path):
    models = [build(one_run_options(tmp_path, pixel_opt={**JOINT, **options})) for options in ({}, {'scaling': 'none'})]
    for model in models:
        iterate(model, last=2)
    assert_same_base(models[0].net_g, models[1].net_g)
    for model in models:
        iterate(model, first=3, last=3)
    weights = [model.net_g.state_dict()['conv_last.weight'] for model in models]
    assert not torch.equal(*weights)


@pytest.mark.parametrize('options', [{}, {'warmup': 0, 'beta_start': 0.0, 'beta_end': 2.0}], ids=str)
@pytest.mark.parametrize('train', [{}, {'accumulate': 2}, {'amp': 'bf16', 'channels_last': True}, {'ema_decay': 0.9},
                                   {'grad_clip': 1.0}], ids=str)
def test_resume(tmp_path, options, train):
    """In the middle: the same as without the break, with all options of training."""
    opt = one_run_options(tmp_path, pixel_opt={**JOINT, **options}, **train)
    model = build(opt)
    expected = iterate(model, last=5)
    half = build(opt)
    assert iterate(half, last=3) == expected[:3]
    half.save(epoch=0, current_iter=3)
    opt['path'].update(pretrain_network_g=str(tmp_path / 'net_g_3.pth'), resume_state='3.state')
    state = torch.load(tmp_path / '3.state', weights_only=False)
    model = build_model(opt)
    model.resume_training(state)
    assert iterate(model, 4, 5) == expected[3:]


def test_result_is_a_plain_network_and_a_map_in_the_unit_of_esu(tmp_path):
    model = build(one_run_options(tmp_path))
    iterate(model)
    model.save(epoch=-1, current_iter=-1)
    path = tmp_path / 'net_g_latest.pth'
    assert get_uncertainty_loss(torch.load(path, weights_only=True)) == 'ESU'
    file = load_network_file(path)
    assert file.stage == 'step 1'
    EDSR(**TINY).load_state_dict(file.base().state_dict, strict=True)


def test_note_about_a_head_that_shapes_the_features(tmp_path):
    for detached, number in ((True, 0), (False, 1)):
        notes = []
        opt = one_run_options(tmp_path, {'type': 'EDSRVar', **TINY, 'detach_features': detached})
        assert not validate_options(opt, notes=notes)
        assert len([note for note in notes if 'detach_features: true' in note]) == number


# ---- teacher


@pytest.fixture
def teacher(tmp_path):
    """A checkpoint of a base network that differs from the trained one."""
    options = {**TINY, 'num_feat': 4, 'num_block': 1}
    torch.manual_seed(1)
    net = EDSR(**options).eval()
    save_checkpoint(tmp_path / 'teacher.pth', {'params': net.state_dict()}, {'type': 'EDSR', **options})
    net.path = str(tmp_path / 'teacher.pth')
    return net


def taught_options(folder, teacher, source='teacher_residual', **train):
    loss = {'type': 'UDL', 'source': source, 'scaling': 'log'}
    return one_run_options(folder, {'type': 'EDSR', **TINY}, pixel_opt=loss, teacher={'path': teacher.path}, **train)


@pytest.mark.parametrize('source', ['teacher_residual', 'teacher_error'])
@pytest.mark.parametrize('train', [{}, {'accumulate': 2}], ids=str)
def test_loss_with_a_teacher(tmp_path, teacher, source, train):
    """The loss of an iteration, computed by hand."""
    model = build(taught_options(tmp_path, teacher, source, **train))
    lq, gt = torch.rand(2, 3, 8, 10), torch.rand(2, 3, 16, 20)
    with torch.no_grad():
        sr, teacher_sr = model.net_g(lq), teacher(lq)
    of = gt if source == 'teacher_error' else F.interpolate(lq, scale_factor=2, mode='bicubic', antialias=True)
    u = 255 * (teacher_sr - of).abs()
    expected = ((torch.log1p(u - u.amin((2, 3), keepdim=True)) + 1) * 255 * (gt - sr).abs()).mean()
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(1)
    assert model.log_dict['l_pix'] == pytest.approx(float(expected), rel=1e-5)
    assert model.net_g.state_dict().keys() == EDSR(**TINY).state_dict().keys()


def test_teacher_may_be_a_network_of_step_1_or_described_in_the_yml(tmp_path):
    torch.save(EDSRVar(**TINY).state_dict(), tmp_path / 'x.pth')
    opt = one_run_options(tmp_path, {'type': 'EDSR', **TINY}, pixel_opt={'type': 'UDL', 'source': 'teacher_error'},
                          teacher={'path': str(tmp_path / 'x.pth'), 'network_g': {'type': 'EDSRVar', **TINY}})
    assert isinstance(build(opt).teacher.net, EDSR)


@pytest.mark.parametrize(('source', 'change', 'message'), [
    ('teacher_error', None, 'UDL requires teacher_sr, which network_g: EDSR does not provide; a teacher does'),
    ('teacher_residual', None, 'pixel_opt: UDL requires teacher_sr'),
    ('gradient', {}, 'train.teacher: no loss uses it'),
    ('teacher_error', {'path': 'nowhere.pth'}, "train.teacher: .*nowhere.pth"),
    ('teacher_error', {'network_g': {'type': 'EDSR', **TINY}}, 'train.teacher: .*num_feat'),
    ('teacher_error', {'network_g': {'type': 'EDRS'}}, "train.teacher.network_g.type: there is no 'EDRS'"),
    ('teacher_error', {'file': 'x.pth'}, "train.teacher.file: is not an option")])
def test_wrong_teacher(tmp_path, teacher, source, change, message):
    opt = taught_options(tmp_path, teacher, source)
    opt['train']['teacher'] = None if change is None else {**opt['train']['teacher'], **change}
    with pytest.raises(UserError, match=message) as caught:
        build_model(opt)
    assert len(caught.value.messages) == 1


def test_teacher_of_another_scale(tmp_path, teacher):
    opt = taught_options(tmp_path, teacher)
    opt['scale'] = opt['network_g']['upscale'] = 3
    with pytest.raises(UserError, match=r'train.teacher: .*teacher.pth. enlarges by 2, and the scale of this'):
        build_model(opt)
