"""Files of the reference implementation: names, and outputs and gradients of the networks in them."""
import pytest
import torch
import yaml
from authors_network import AuthorsEDSR, AuthorsTwo, authors_esu

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.reference_names import REFERENCE_CONFIG, from_reference, is_reference
from udl_plugin.cli.convert import main
from udl_plugin.errors import UserError
from udl_plugin.losses import ESU

TINY = {'channels': 8, 'blocks': 2}
SHAPES = [{**TINY, 'scale': 2}, {**TINY, 'scale': 3}, {**TINY, 'scale': 4}]
pytestmark = pytest.mark.usefixtures('seed')


def train(net):
    """Changes one branch, as training does."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'EDSR_U' in name and 'var_conv' not in name:
                parameter *= 1.01
    return net


@pytest.mark.parametrize('shape', [*SHAPES, {}], ids=['x2', 'x3', 'x4', 'EDSR-S x4'])
@pytest.mark.parametrize('authors', [AuthorsEDSR, AuthorsTwo])
def test_outputs_of_a_converted_file(tmp_path, authors, shape):
    theirs = train(authors(**shape))
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pt')
    assert main([str(tmp_path / 'theirs.pt'), str(tmp_path / 'ours.pth'), '--layout', 'udl']) == 0
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
        plain = model.base().build().double()(lq)
    assert (255 * sr - their_sr).abs().max() < 1e-9 * 255
    assert (255 * plain - their_sr).abs().max() < 1e-9 * 255
    assert (log_var - their_log_var).abs().max() < 1e-9


def test_gradients_of_esu():
    """Of every weight, ours against theirs."""
    theirs = AuthorsEDSR(channels=16, blocks=3, scale=2).double()
    converted = from_reference(theirs.state_dict(), 'x.pt')
    ours = build_network({**REFERENCE_CONFIG, 'type': 'EDSRVar', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16,
                          'num_block': 3, 'upscale': 2}).double()
    ours.load_state_dict(converted, strict=True)
    lq, hr = (torch.rand(2, 3, size, size, dtype=torch.float64) for size in (12, 24))
    loss = ESU()(*[ours(lq, return_log_var=True)[0], hr], ours(lq, return_log_var=True)[1])
    sr, log_var = theirs(255 * lq)
    their_loss = authors_esu(sr, 255 * hr, log_var)
    loss.backward()
    their_loss.backward()
    assert (loss - their_loss).abs() < 1e-5 * 255
    grads = from_reference({name: parameter.grad for name, parameter in theirs.named_parameters()}, 'x.pt')
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


def test_step_2_starts_from_a_converted_file(tmp_path, runner):
    torch.save(AuthorsEDSR(**TINY, scale=2).state_dict(), tmp_path / 'theirs.pt')
    assert main([str(tmp_path / 'theirs.pt'), str(tmp_path / 'step1.pth'), '--layout', 'udl']) == 0
    network = {**yaml.safe_load(yaml.safe_dump(load_network_file(tmp_path / 'step1.pth').network_g)), 'type': 'EDSRTwo'}
    yml = runner.write_yml('step2', 'demo/train_udl_step2', network_g=network, train__total_iter=1, val=None,
                           path__pretrain_network_g=str(tmp_path / 'step1.pth'))
    process = runner.train(yml)
    assert process.returncode == 0, process.stdout


def test_other_files():
    assert is_reference(AuthorsEDSR(**TINY).state_dict())
    assert is_reference(AuthorsTwo(**TINY).state_dict())
    assert not is_reference({'conv_first.weight': torch.zeros(1)})
    for net, name in ((AuthorsEDSR(**TINY), 'sub_mean.weight'), (AuthorsTwo(**TINY), 'EDSR_var.sub_mean.weight')):
        with pytest.raises(UserError, match=r"'x\.pt' looks like .*, but its layers are not those of an EDSR"):
            from_reference({**net.state_dict(), name: torch.zeros(3)}, 'x.pt')


def test_one_branch_of_step_2(tmp_path):
    for branch in ('EDSR_U', 'EDSR_var'):
        half = {name: value for name, value in AuthorsTwo(**TINY).state_dict().items() if name.startswith(branch)}
        torch.save(half, tmp_path / 'half.pt')
        with pytest.raises(UserError, match=r"half\.pt': the weights do not fit network_g: .* tensors missing"):
            load_network_file(tmp_path / 'half.pt')
