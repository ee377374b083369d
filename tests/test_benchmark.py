"""The benchmark on a tiny network: it measures what it says."""
import importlib.util
import sys

import pytest
import torch
from conftest import ROOT

from udl_plugin.losses import udl


@pytest.fixture(scope='module')
def script():
    spec = importlib.util.spec_from_file_location('benchmark', ROOT / 'scripts/benchmark.py')
    module = sys.modules['benchmark'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules['benchmark']


@pytest.mark.parametrize('network', ['EDSR-S', 'DPDNN', 'tiny'])
def test_reference_network_gives_our_outputs(script, network):
    from udl_plugin.archs.build import build_network
    from udl_plugin.archs.wrapping import wrapped_config
    reference = script.ReferenceNetwork(network).eval()
    ours = build_network(wrapped_config('step 1', script.NETWORKS[network])).eval()
    ours.load_state_dict({name.replace('base.', '').replace('head.', 'var_conv.'): value
                          for name, value in reference.state_dict().items()})
    lq = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        for output, expected in zip(reference(lq), ours(lq, return_log_var=True)):
            torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-3)


def test_reference_step_runs_both_networks_completely(script, monkeypatch):
    ran, made, cls = [], [], script.ReferenceNetwork
    forward = cls.forward
    monkeypatch.setattr(cls, 'forward', lambda self, x: (ran.append((self, torch.is_grad_enabled())),
                                                         forward(self, x))[1])
    monkeypatch.setattr(script, 'ReferenceNetwork', lambda network: made.append(cls(network)) or made[-1])
    step = script.build_reference_step('tiny', {})
    trained, frozen = made
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in made]
    batch = script.build_batch((2, 8))
    with torch.no_grad():
        expected = udl(batch['gt'] - forward(trained, batch['lq'])[0], forward(frozen, batch['lq'])[1]).mean()
    assert step(batch)[0] == pytest.approx(float(expected), rel=1e-4)
    assert ran == [(frozen, False), (trained, True)]
    changed = [any(not torch.equal(value, was[name]) for name, value in net.state_dict().items())
               for net, was in zip(made, before)]
    assert changed == [True, False]


def test_own_network(script, tmp_path, monkeypatch, capsys):
    (tmp_path / 'benchmark_net.py').write_text("""
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class BenchmarkNet(EDSR):
    def __init__(self, scale=2):
        super().__init__(3, 3, num_feat=4, num_block=1, upscale=scale)

    def forward(self, x):
        return {'sr': super().forward(x)}
""")
    monkeypatch.chdir(tmp_path)
    options = ['--networks', 'BenchmarkNet', '--parts', 'test', '--rounds', '3']
    assert script.main(options) == 2
    assert "benchmark.py: type: there is no 'BenchmarkNet'" in capsys.readouterr().err
    monkeypatch.setattr(script, 'TEST_SIZE', (16, 16))
    assert script.main([*options, '--import', 'benchmark_net.py']) == 0
    assert '| as the authors run it, float32 |' in (tmp_path / 'results/benchmark/test_BenchmarkNet.md').read_text()


def test_rows(script):
    """All methods at all speeds; they train."""
    rows = script.list_steps('tiny')
    assert len(rows) == 24
    assert script.REFERENCE in rows
    batch = script.build_batch((2, 8))
    for row in ('plain, L1, float32', 'one run (JointUDL), float32', 'step 2, bf16, channels_last',
                'step 2, cached maps, bf16'):
        rows[row]()(batch)
    assert len(script.list_steps('DPDNN')) == 17
    assert len(script.list_steps('tiny', [*script.SPEED, *script.COMPILED])) == 29


def test_ratios_are_of_the_same_round(script):
    assert script.compute_ratio([1, 4, 9], [2, 4, 3]) == ('1.00', '0.75 to 2.00')


def test_tables(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, 'TEST_SIZE', (12, 16))
    monkeypatch.setattr(script, 'SPEED', {'float32': {}})
    parts = ['steps', 'test', 'validation']
    assert script.main(['--networks', 'tiny', '--rounds', '2', '--patch', '8', '--batch', '2', '--parts', *parts,
                           '--out', str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f'{part}_tiny.md' for part in parts}
    text = (tmp_path / 'steps_tiny.md').read_text()
    assert f'| {script.REFERENCE} | ' in text
    assert '| 1.00 | 1.00 to 1.00 |' in text
    assert text.strip() in capsys.readouterr().out
