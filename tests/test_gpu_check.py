"""The measurements for a GPU, rehearsed on the CPU: what a part says, and one that takes too long."""
import json

import pytest
from conftest import ROOT


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs parts; returns the exit status, the results and the report."""
    monkeypatch.syspath_prepend(ROOT / 'scripts')
    import gpu_check

    def run(*arguments):
        status = gpu_check.main(['--device', 'cpu', '--tiny', '--out', str(tmp_path), *arguments])
        return status, json.loads((tmp_path / 'gpu.json').read_text())['parts'], (tmp_path / 'gpu.md').read_text()

    return run


FAILING = """
import time
from pathlib import Path

def test_first():
    assert False

def test_second():
    log, end = Path(__file__).with_name('suite.log'), time.time() + 60
    while 'FAILED' not in log.read_text():
        assert time.time() < end
        time.sleep(0.1)
"""


def test_parts(run, tmp_path, monkeypatch):
    """Of the suite, the log names a test that fails at once: another test waits for that line."""
    (tmp_path / 'test_failing.py').write_text(FAILING)
    monkeypatch.setenv('PYTEST_ADDOPTS', str(tmp_path / 'test_failing.py'))
    status, results, text = run('--parts', 'tests', 'suite')
    assert status == 1
    assert 'skipped' in results['tests']['markdown']
    assert results['tests']['markdown'] in (tmp_path / 'tests.log').read_text()
    assert '::test_first' in results['suite']['error']
    assert '::test_second' not in results['suite']['error']
    assert ' 1 failed, ' in results['suite']['error']
    assert text.startswith('CPU, ')
    assert '## tests\n' in text
    assert text.count('**Failed**') == 1


def test_part_that_takes_too_long(run):
    """It is killed and reported, and the others get what is left of the time."""
    status, results, text = run('--parts', 'steps', 'tests', '--limit', '6')
    assert status == 1
    assert results['steps']['error'].startswith('ran longer than 6 s')
    assert results['tests'] == {'error': 'no time was left'}
    assert text.count('**Failed**') == 2
