"""README.md, CONTRIBUTING.md and docs/ agree with the code: tables, links, files, commands and tests that they name."""
import ast
import importlib.util
import re

import pytest
from conftest import ROOT

from udl_plugin.cli import compare, study

# docs/results has tables that scripts/make_results.py copies into the pages
DOCS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'docs').rglob('*.md')
              if path.parent != ROOT / 'docs/results')
PAGES = sorted([*(path.name for path in ROOT.glob('*.md')), *DOCS])
WITHOUT_LINKS = {'CHANGELOG.md', 'docs/reference/options.md', 'docs/reference/commands.md'}  # may have none


def read(page):
    return (ROOT / page).read_text()


WITH_PYTHON = [page for page in PAGES if '```python\n' in read(page)]


def slugs(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r'^```.*?^```', '', read(page), flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r'\[(.*?)\]\(.*?\)|[`*]|\\(.)', r'\1\2', title)
              for title in re.findall(r'^#{1,4} (.+)$', text, re.MULTILINE)]
    return {re.sub(r'[^\w\- ]', '', title.strip().lower()).replace(' ', '-') for title in titles}


def toctree(text):
    blocks = re.findall(r'^```\{toctree\}\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(':')]


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
    text = read(page)
    links = [link for link in re.findall(r'\]\(([^)\s]+)\)', text) if not link.startswith('http')]
    links += re.findall(r'^```\{include\} (\S+)$', text, re.MULTILINE)
    assert links or page in WITHOUT_LINKS
    for link in links:
        path, _, anchor = link.partition('#')
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target.relative_to(ROOT)), link


def test_claims_have_all_columns():
    rows = [row for row in re.findall(r'^\| (.+) \|$', read('docs/claims.md'), re.MULTILINE) if row[0] != '-']
    assert len(rows) > 15
    for row in rows:
        cells = row.split(' | ')
        assert len(cells) == 5 and all(cell.strip() for cell in cells), row


@pytest.mark.parametrize(('page', 'least'), [('docs/claims.md', 30), ('README.md', 2)])
def test_intervals_are_those_of_the_results(page, least):
    text, results = (' '.join(read(name).split()) for name in (page, 'docs/results.md'))
    intervals = re.findall(r'[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]', text)
    assert len(intervals) >= least
    assert not [interval for interval in intervals if interval not in results]


def test_readme_is_short():
    assert len(read('README.md').split()) <= 1000


def test_every_page_is_in_one_toctree():
    listed = toctree(read('docs/index.md'))
    assert sorted(listed) == sorted(page[len('docs/'):-len('.md')] for page in DOCS if page != 'docs/index.md')


@pytest.mark.parametrize('page', [page for page in DOCS if 'reference/' not in page])
def test_pages_begin_with_what_they_answer(page):
    """A title, then a sentence about the page; the pages of other files include them."""
    text = read(page)
    assert text.startswith('```{include} ../') or re.match(r'# .+\n\n\w', text)


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


def test_pages_have_python_examples():
    assert set(WITH_PYTHON) >= {'README.md', 'CONTRIBUTING.md', 'docs/convert.md', 'docs/mmengine.md',
                                'docs/own-network.md'}


@pytest.mark.parametrize('page', WITH_PYTHON)
def test_python_examples_can_be_parsed(page):
    blocks = re.findall(r'^```python\n(.*?)^```', read(page), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block.replace('num_in_ch=3, ...', 'num_in_ch=3').replace('{...,', '{'))


@pytest.mark.parametrize(('name', 'parse', 'page'), [
    ('udl-study', study.parse, 'docs/compare.md'), ('udl-study', study.parse, 'docs/results.md'),
    ('udl-study', study.parse, 'docs/performance.md'),
    ('udl-compare', compare.parse, 'docs/compare.md'), ('udl-compare', compare.parse, 'docs/results.md')])
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
        if '--template' in command:  # prints and exits
            with pytest.raises(SystemExit) as caught:
                module.parse(command.partition(' > ')[0].split())
            assert not caught.value.code
        else:
            module.parse(command.split())


def test_performance_page_names_its_study():
    assert 'udl-study options/studies/photos_speed.yml' in read('docs/performance.md')


def test_page_lists_the_studies():
    rows = ''.join(re.findall(r'^\| `\w+`.*\|$', read('docs/compare.md'), re.MULTILINE))
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
