"""What README and docs/ promise."""
import importlib.util
import re

import pytest
from conftest import ROOT

from udl_plugin.cli import compare, study

README = (ROOT / 'README.md').read_text()


def make_results():
    spec = importlib.util.spec_from_file_location('make_results', ROOT / 'scripts/make_results.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(('page', 'table'), [('results.md', 'photos.md'),
                                             ('performance.md', 'benchmark_steps_EDSR-S.md'),
                                             ('reliability.md', 'soak.md')])
def test_tables_are_those_that_the_commands_wrote(page, table):
    text = (ROOT / 'docs' / page).read_text()
    assert f'<!-- {table} -->' in text
    assert make_results().filled(text) == text, 'run python scripts/make_results.py'


def test_tables_are_filled_in(tmp_path, monkeypatch):
    module = make_results()
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/x.md').write_text('| new |\n')
    monkeypatch.setattr(module, 'DOCS', tmp_path)
    assert module.filled('a\n<!-- x.md -->\nold\n<!-- end -->\nb') == 'a\n<!-- x.md -->\n\n| new |\n\n<!-- end -->\nb'


@pytest.mark.parametrize('page', ['README.md', 'docs/results.md', 'docs/performance.md'])
def test_files_that_a_page_shows_are_there(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r'\]\(([^)#]+)\)', text) if not link.startswith('http')]
    assert links
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize(('name', 'parse'), [('udl-study', study.parse), ('udl-compare', compare.parse)])
@pytest.mark.parametrize('page', ['README.md', 'docs/results.md'])
def test_commands_can_be_parsed(name, parse, page):
    text = (ROOT / page).read_text().replace('\\\n', ' ')
    commands = re.findall(rf'^ +{name} ([^#\n]*)', text, re.MULTILINE)
    assert commands
    for command in commands:
        args = parse(command.split())
        if name == 'udl-study':
            assert (ROOT / args.study).exists()


def test_commands_of_the_performance_page_can_be_parsed():
    text = (ROOT / 'docs/performance.md').read_text()
    for command in re.findall(r'^ +udl-study ([^#\n]*)', text, re.MULTILINE):
        assert (ROOT / study.parse(command.split()).study).exists()
    assert 'udl-study options/studies/photos_speed.yml' in text
    for script in re.findall(r'python (scripts/\w+\.py)', text):
        assert (ROOT / script).exists()


def test_help_of_the_commands_can_be_parsed():
    for module, name in ((study, 'udl-study'), (compare, 'udl-compare')):
        commands = re.findall(rf'^  {name} (.*)', module.ABOUT, re.MULTILINE)
        assert commands
        for command in commands:
            module.parse(command.split())


def test_readme_lists_the_studies():
    rows = ''.join(re.findall(r'^\| `\w+`.*\|$', README, re.MULTILINE))
    for path in (ROOT / 'options/studies').glob('*.yml'):
        assert f'`{path.stem}`' in rows


def test_each_promise_names_the_test_that_holds_it():
    text = (ROOT / 'docs/reliability.md').read_text()
    rows = [row for row in re.findall(r'^\| (.+) \|$', text.partition('## The last soak')[0], re.MULTILINE)
            if not row.startswith('promise |')]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', row.rpartition(' | ')[2])
        assert tests, row
        for path, name in tests:
            assert f'\ndef {name}(' in (ROOT / path).read_text(), f'{path}::{name}'
