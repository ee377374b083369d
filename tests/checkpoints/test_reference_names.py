"""The authors' files to ours and back, and what the networks in them compute."""
import pytest
import torch
import yaml
from authors_network import AuthorsEDSR, AuthorsTwo, authors_esu

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.export import export_network
from udl_plugin.checkpoints.network_file import NetworkFile, load_network_file
from udl_plugin.checkpoints.reference_names import REFERENCE_CONFIG, from_reference, is_reference, to_reference
from udl_plugin.cli.convert import main
from udl_plugin.errors import UserError
from udl_plugin.losses import ESU

TINY = {'channels': 8, 'blocks': 2}
SHAPES = [{**TINY, 'scale': 2}, {**TINY, 'scale': 3}, {**TINY, 'scale': 4}]
pytestmark = pytest.mark.usefixtures('seed')


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def moved(net):
    """With other weights in the two branches, as after training."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'EDSR_U' in name and 'var_conv' not in name:
                parameter *= 1.01
    return net


@pytest.mark.parametrize('shape', [*SHAPES, {}], ids=['x2', 'x3', 'x4', 'EDSR-S x4'])
@pytest.mark.parametrize('authors', [AuthorsEDSR, AuthorsTwo])
def test_round_trip_and_outputs(tmp_path, authors, shape):
    theirs = moved(authors(**shape))
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pt')
    assert main([str(tmp_path / 'theirs.pt'), str(tmp_path / 'ours.pth'), '--layout', 'udl']) == 0
    assert main([str(tmp_path / 'ours.pth'), str(tmp_path / 'back.pt'), '--layout', 'authors']) == 0
    back = torch.load(tmp_path / 'back.pt')
    assert same(theirs.state_dict(), back)
    assert list(theirs.state_dict()) == list(back)

    model = load_network_file(tmp_path / 'ours.pth')
    assert model.notes == []
    assert model.network_g == {
        'type': 'EDSRVar' if authors is AuthorsEDSR else 'EDSRTwo', 'num_in_ch': 3, 'num_out_ch': 3,
        'num_feat': shape.get('channels', 64), 'num_block': shape.get('blocks', 16), 'upscale': shape.get('scale', 4),
        'res_scale': 0.1, 'img_range': 255, 'rgb_mean': [0, 0, 0]}
    # in double precision: the head sums in another order than theirs, and log_var goes up to 15 here
    net, lq = model.build().double(), torch.rand(2, 3, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        sr, log_var = net(lq, return_log_var=True)
        their_sr, their_log_var = theirs.double()(255 * lq)
        plain = model.plain().build().double()(lq)
    assert (255 * sr - their_sr).abs().max() < 1e-9 * 255
    assert (255 * plain - their_sr).abs().max() < 1e-9 * 255
    assert (log_var - their_log_var).abs().max() < 1e-9


def test_gradients_of_esu():
    """Of every weight, ours against theirs, on trained-like values of the log-variance."""
    theirs = AuthorsEDSR(channels=16, blocks=3, scale=2).double()
    converted, _ = from_reference(theirs.state_dict(), 'x.pt')
    ours = build_network({'type': 'EDSRVar', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 3, 'upscale': 2,
                  **{key: value for key, value in REFERENCE_CONFIG.items() if key != 'type'}}).double()
    ours.load_state_dict(converted, strict=True)
    lq, hr = (torch.rand(2, 3, size, size, dtype=torch.float64) for size in (12, 24))
    loss = ESU()(*[ours(lq, return_log_var=True)[0], hr], ours(lq, return_log_var=True)[1])
    sr, log_var = theirs(255 * lq)
    their_loss = authors_esu(sr, 255 * hr, log_var)
    loss.backward()
    their_loss.backward()
    assert (loss - their_loss).abs() < 1e-5 * 255
    grads, _ = from_reference({name: parameter.grad for name, parameter in theirs.named_parameters()}, 'x.pt')
    ours_by_name = {name.replace('backbone.', ''): parameter.grad for name, parameter in ours.named_parameters()}
    assert grads.keys() == ours_by_name.keys()
    for name, grad in grads.items():
        assert (ours_by_name[name] - grad).abs().max() <= 1e-5 * grad.abs().max(), name
        assert grad.abs().max() > 0, name


def test_names_are_those_of_the_released_files():
    names = list(AuthorsEDSR(**TINY).state_dict())
    assert [name for name in names if name.endswith('weight')] == [
        'head.0.weight', 'body.0.body.0.weight', 'body.0.body.2.weight', 'body.1.body.0.weight', 'body.1.body.2.weight',
        'body.2.weight', 'tail.0.0.weight', 'tail.0.2.weight', 'tail.1.weight', 'var_conv.0.weight',
        'var_conv.2.weight', 'var_conv.4.weight']


def test_second_head_that_was_trained_is_told():
    state_dict = AuthorsTwo(**TINY).state_dict()
    assert from_reference(state_dict, 'x.pt')[1] == []
    state_dict['EDSR_U.var_conv.0.bias'] = state_dict['EDSR_U.var_conv.0.bias'] + 1
    assert 'EDSR_U.var_conv is left out' in from_reference(state_dict, 'x.pt')[1][0]


def test_what_starts_step_2(tmp_path, runner):
    """A file of the authors, converted, is a `path: pretrain_network_g`."""
    torch.save(AuthorsEDSR(**TINY, scale=2).state_dict(), tmp_path / 'theirs.pt')
    assert main([str(tmp_path / 'theirs.pt'), str(tmp_path / 'step1.pth'), '--layout', 'udl']) == 0
    network = {**yaml.safe_load(yaml.safe_dump(load_network_file(tmp_path / 'step1.pth').network_g)), 'type': 'EDSRTwo'}
    yml = runner.write_yml('step2', 'demo/train_udl_step2', network_g=network, train__total_iter=1, val=None,
                           path__pretrain_network_g=str(tmp_path / 'step1.pth'))
    process = runner.train(yml)
    assert process.returncode == 0, process.stdout


def test_what_is_not_theirs():
    assert is_reference(AuthorsEDSR(**TINY).state_dict())
    assert is_reference(AuthorsTwo(**TINY).state_dict())
    assert not is_reference({'conv_first.weight': torch.zeros(1)})
    for state_dict in (AuthorsEDSR(**TINY).state_dict(), AuthorsTwo(**TINY).state_dict()):
        with pytest.raises(UserError, match=r"'x\.pt' looks like a file of the authors, but for: sub_mean\.weight"):
            from_reference({**state_dict, 'sub_mean.weight': torch.zeros(3)}, 'x.pt')
    with pytest.raises(UserError, match='EDSR only'):
        to_reference(build_network({'type': 'DPDNN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4}).state_dict(), {})


@pytest.mark.parametrize(('changes', 'message'), [
    ({'res_scale': 1}, 'this network has res_scale: 1: under their names it would be another network'),
    ({'rgb_mean': [0.4488, 0.4371, 0.4040]}, 'has rgb_mean'),
    ({'img_range': 1.0}, r'has img_range: 1\.0'),
])
@pytest.mark.parametrize('step', ['EDSR', 'EDSRVar', 'EDSRTwo'])
def test_network_that_their_code_does_not_compute(tmp_path, step, changes, message):
    section = {**REFERENCE_CONFIG, 'type': step, 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2}
    for options, allowed in ((section, True), ({**section, **changes}, False)):
        model = NetworkFile(build_network(options).state_dict(), options)
        if allowed:
            export_network(tmp_path / 'x.pt', model, 'authors')
            continue
        with pytest.raises(UserError, match=message):
            export_network(tmp_path / 'y.pt', model, 'authors')
    assert not (tmp_path / 'y.pt').exists()


def test_head_elsewhere_is_not_theirs(tmp_path):
    backbone = {**REFERENCE_CONFIG, 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2}
    section = {'type': 'WithVariance', 'backbone': backbone, 'features': 'conv_last'}
    with pytest.raises(UserError, match='not features: conv_last'):
        export_network(tmp_path / 'x.pt', NetworkFile(build_network(section).state_dict(), section), 'authors')


def test_files_with_layers_too_many_or_too_few():
    state_dict = AuthorsEDSR(**TINY).state_dict()
    with pytest.raises(UserError, match='two of its layers are one in EDSR'):
        from_reference({**state_dict, 'body.7.weight': state_dict['body.2.weight']}, 'x.pt')
    half = {name: value for name, value in AuthorsTwo(**TINY).state_dict().items() if name.startswith('EDSR_U')}
    assert is_reference(half)
    with pytest.raises(UserError, match='has only one of EDSR_var, EDSR_U'):
        from_reference(half, 'x.pt')
