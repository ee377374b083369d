"""The measurements for a GPU, rehearsed on the CPU: what a part says, and one that takes too long."""
import json
import subprocess
import sys

from conftest import ROOT


def run(folder, *arguments):
    command = [sys.executable, ROOT / 'scripts/gpu_check.py', '--device', 'cpu', '--tiny', '--out', folder, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, json.loads((folder / 'gpu.json').read_text()), (folder / 'gpu.md').read_text()


def test_part(tmp_path):
    done, results, text = run(tmp_path, '--parts', 'tests')
    assert done.returncode == 0, done.stderr
    assert 'skipped' in results['parts']['tests']['markdown']
    assert text.startswith('CPU, ')
    assert '## tests' in text


def test_part_that_takes_too_long(tmp_path):
    """It is killed and reported, and the others get what is left of the time."""
    done, results, text = run(tmp_path, '--parts', 'steps', 'tests', '--limit', '6')
    assert done.returncode == 1
    assert results['parts']['steps']['error'].startswith('ran longer than 6 s')
    assert results['parts']['tests'] == {'error': 'no time was left'}
    assert text.count('**Failed**') == 2
