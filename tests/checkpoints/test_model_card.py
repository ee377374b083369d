"""The model card: its facts are those of the network, its example can be run, its scores are those given."""
import ast
import re

import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import TINY
from torch import nn

import udl_plugin
from udl_plugin.archs.build import build_network
from udl_plugin.archs.wrapping import wrapped_config
from udl_plugin.checkpoints.model_card import build_model_card
from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.errors import UserError

EDSR = {'type': 'EDSR', **TINY}
CSV = """network,benchmark,image,psnr,ssim
bicubic,Set5,baby,30.0,0.90
bicubic,Set5,bird,31.0,0.92
a|b,Set5,baby,33.123456,0.95
a|b,Set14,baboon,25.5,0.75
"""


def new_file(config, loss=None):
    return NetworkFile(build_network(config).state_dict(), config, uncertainty_loss=loss)


def split(card):
    """Header, facts and the text of each section."""
    header, text = re.fullmatch(r'---\n(.*?)---\n\n(.*)', card, re.DOTALL).groups()
    facts = dict(re.findall(r'^\| ([^|]+) \| ([^|]+) \|$', text, re.MULTILINE))
    titles = re.split(r'^## (.*)\n', text, flags=re.MULTILINE)
    return yaml.safe_load(header), facts, dict(zip(titles[1::2], titles[2::2])), text


def test_header():
    header = split(build_model_card(new_file(EDSR), 'x'))[0]
    assert header == {'library_name': 'udl_plugin', 'pipeline_tag': 'image-to-image',
                      'tags': ['super-resolution', 'image-to-image']}
    assert split(build_model_card(new_file(EDSR), 'x', license='cc-by-4.0'))[0]['license'] == 'cc-by-4.0'


@pytest.mark.parametrize(('config', 'stage'), [
    (EDSR, 'a plain network'), ({**EDSR, 'type': 'EDSRVar', 'upscale': 4}, 'step 1: '),
    ({'type': 'DPDNNTwo', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1, 'upscale': 3}, 'step 2: ')],
    ids=['plain', 'step 1', 'step 2'])
def test_facts_are_those_of_the_network(config, stage):
    file = new_file(config, None if config is EDSR else 'EU')
    _, facts, _, text = split(build_model_card(file, 'user/my_net'))
    base = build_network(file.base().network_g)
    assert facts['architecture'] == type(base).__name__
    assert facts['scale'] == f"x{config['upscale']}"
    assert facts['channels'] == ('1 (Y)' if config['num_in_ch'] == 1 else '3 (RGB)')
    assert facts['parameters of the SR network'] == f'{sum(one.numel() for one in base.parameters()):,}'
    assert facts['values in the file'] == f'{sum(one.numel() for one in file.state_dict.values()):,}'
    assert facts['stage'].startswith(stage)
    assert facts.get('loss of the variance head') == file.uncertainty_loss
    assert facts['written by'] == f'udl_plugin {udl_plugin.__version__}'
    assert yaml.safe_load(re.search(r'```yaml\n(.*?)```', text, re.DOTALL)[1])['network_g'] == config
    assert text.startswith('# my_net\n')
    assert max(map(len, text.split('```')[0].splitlines())) < 200


@pytest.mark.parametrize(('kind', 'loss', 'formula', 'image'), [
    ('EDSRVar', 'EU', 'exp(log_var)', 'the SR image of this network'),
    ('EDSRTwo', 'ESU', '2 * exp(log_var)', 'of the frozen network of step 1, which is not that of step 2'),
    ('EDSRTwo', None, '2 * exp(log_var)', 'of the frozen network of step 1')])
def test_how_to_read_the_map(kind, loss, formula, image):
    sections = split(build_model_card(new_file({**EDSR, 'type': kind}, loss), 'x'))[2]
    text = ' '.join(sections['The uncertainty map'].split())
    assert f'It is `{formula}`' in text
    assert '8-bit levels' in text
    assert image in text
    assert (f'trained with {loss}' if loss else 'does not record the loss') in text


def test_plain_network_has_no_map():
    card = build_model_card(new_file(EDSR), 'x')
    assert 'expected_error' not in card
    assert 'loss of the variance head' not in card
    assert list(split(card)[2]) == ['Use']


def test_example_parses():
    card = build_model_card(new_file({**EDSR, 'type': 'EDSRVar'}, 'ESU'), 'user/name')
    code = re.search(r'```python\n(.*?)```', card, re.DOTALL)[1]
    ast.parse(code)
    assert code.startswith('import udl_plugin\n')
    assert "udl_plugin.from_pretrained('user/name')" in code
    assert 'float32 (H, W, 3)' in code


@ARCH_REGISTRY.register()
class CardNet(nn.Module):
    """A user's own network."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 12, 3, 1, 1)

    def forward(self, x):
        return torch.pixel_shuffle(self.body(x), 2)


def test_own_network_has_to_be_imported():
    card = build_model_card(new_file(wrapped_config('plain', {'type': 'CardNet'})), 'x')
    assert f'```python\nimport {__name__}  # registers CardNet; its folder has to be in sys.path\n' in card


def test_scores_of_udl_compare(tmp_path):
    (tmp_path / 'scores.csv').write_text(CSV)
    section = split(build_model_card(new_file(EDSR), 'x', scores=tmp_path / 'scores.csv'))[2]['Scores']
    assert section.strip().splitlines()[:5] == [
        '| network | dataset | PSNR | SSIM |', '|---|---|---|---|', '| bicubic | Set5 | 30.5 | 0.91 |',
        r'| a\|b | Set5 | 33.123 | 0.95 |', r'| a\|b | Set14 | 25.5 | 0.75 |']
    assert 'Means over the images, on Y' in section


def test_scores_in_a_dict():
    section = split(build_model_card(new_file(EDSR), 'x', scores={
        'Set5': {'PSNR': 37.987654, 'SSIM': 0.96}, 'Set14': {'PSNR': 33}}))[2]['Scores']
    assert section.strip().splitlines() == [
        '| dataset | PSNR | SSIM |', '|---|---|---|', '| Set5 | 37.988 | 0.96 |', '| Set14 | 33 |  |']


@pytest.mark.parametrize('content', [
    '', 'network,benchmark,image,psnr\n', 'a,b\n1,2\n', CSV.replace('30.0', 'x'), 'network,benchmark,image\na,b,c\n',
    CSV.replace('25.5,0.75', '')])
def test_files_that_are_no_scores(tmp_path, content):
    (tmp_path / 'x.csv').write_text(content)
    with pytest.raises(UserError, match=r"x\.csv' is not a scores\.csv of udl-compare"):
        build_model_card(new_file(EDSR), 'x', scores=tmp_path / 'x.csv')


def test_scores_of_another_kind(tmp_path):
    with pytest.raises(UserError, match=r"no\.csv': No such file"):
        build_model_card(new_file(EDSR), 'x', scores=tmp_path / 'no.csv')
    for scores in ({'Set5': 37.9}, {'Set5': {'PSNR': 'high'}}, 3):
        with pytest.raises(UserError, match='scores: expected dataset to metric to number'):
            build_model_card(new_file(EDSR), 'x', scores=scores)
