"""README.md, CONTRIBUTING.md and docs/ agree with the code: tables, links, files, commands and tests that they name."""
import ast
import importlib.util
import re

import pytest
from conftest import ROOT

from udl_plugin.cli import compare, study

PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])


def read(page):
    return (ROOT / page).read_text()


def load_make_results():
    spec = importlib.util.spec_from_file_location('make_results', ROOT / 'scripts/make_results.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(('page', 'table'), [('results.md', 'photos.md'),
                                             ('performance.md', 'benchmark_steps_EDSR-S.md'),
                                             ('reliability.md', 'soak.md')])
def test_tables_equal_the_generated_ones(page, table):
    text = read(f'docs/{page}')
    assert f'<!-- {table} -->' in text
    assert load_make_results().filled(text) == text, 'run python scripts/make_results.py'


def test_make_results_replaces_tables(tmp_path, monkeypatch):
    module = load_make_results()
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/x.md').write_text('| new |\n')
    monkeypatch.setattr(module, 'DOCS', tmp_path)
    assert module.filled('a\n<!-- x.md -->\nold\n<!-- end -->\nb') == 'a\n<!-- x.md -->\n\n| new |\n\n<!-- end -->\nb'


@pytest.mark.parametrize('page', PAGES)
def test_links_exist(page):
    links = [link for link in re.findall(r'\]\(([^)#]+)\)', read(page)) if not link.startswith('http')]
    assert links
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize('page', PAGES)
def test_named_files_exist(page):
    text = read(page)
    for path in re.findall(r'`((?:udl_plugin|tests|scripts|options|docs)/[\w./-]*)`', text):
        assert 'NAME' in path or 'NETWORK' in path or (ROOT / path).exists(), path
    for module in re.findall(r'python -m (udl_plugin[\w.]*)', text):
        assert (ROOT / f'{module.replace(".", "/")}.py').exists(), module
    for script in re.findall(r'python (scripts/\w+\.py)', text):
        assert (ROOT / script).exists(), script


def test_files_of_the_design_page_exist():
    for path in re.findall(r'`([a-z]+/\w+\.py)`', read('docs/design.md')):
        assert (ROOT / 'udl_plugin' / path).exists() or (ROOT / path).exists(), path


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md'])
def test_python_examples_can_be_parsed(page):
    blocks = re.findall(r'^```python\n(.*?)^```', read(page), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block.replace('num_in_ch=3, ...', 'num_in_ch=3').replace('{...,', '{'))


@pytest.mark.parametrize(('name', 'parse', 'page'), [
    ('udl-study', study.parse, 'README.md'), ('udl-study', study.parse, 'docs/results.md'),
    ('udl-study', study.parse, 'docs/performance.md'),
    ('udl-compare', compare.parse, 'README.md'), ('udl-compare', compare.parse, 'docs/results.md')])
def test_commands_can_be_parsed(name, parse, page):
    commands = re.findall(rf'^ +{name} ([^#\n]*)', read(page).replace('\\\n', ' '), re.MULTILINE)
    assert commands
    for command in commands:
        args = parse(command.split())
        if name == 'udl-study':
            assert (ROOT / args.study).exists()


@pytest.mark.parametrize(('module', 'name'), [(study, 'udl-study'), (compare, 'udl-compare')])
def test_examples_in_help_can_be_parsed(module, name):
    commands = re.findall(rf'^  {name} (.*)', module.ABOUT, re.MULTILINE)
    assert commands
    for command in commands:
        module.parse(command.split())


def test_performance_page_names_its_study():
    assert 'udl-study options/studies/photos_speed.yml' in read('docs/performance.md')


def test_readme_lists_the_studies():
    rows = ''.join(re.findall(r'^\| `\w+`.*\|$', read('README.md'), re.MULTILINE))
    for path in (ROOT / 'options/studies').glob('*.yml'):
        assert f'`{path.stem}`' in rows


def test_each_promise_names_its_tests():
    text = read('docs/reliability.md').partition('## The last soak')[0]
    rows = [row for row in re.findall(r'^\| (.+) \|$', text, re.MULTILINE) if not row.startswith('promise |')]
    assert len(rows) > 20
    missing = []
    for row in rows:
        tests = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', row.rpartition(' | ')[2])
        assert tests, row
        missing += [f'{path}::{name}' for path, name in tests
                    if not (ROOT / path).exists() or f'\ndef {name}(' not in (ROOT / path).read_text()]
    assert not missing
