"""What scripts/make_reference.py generates: JSON Schemas of option files, and two pages of the documentation."""
import copy
import json
import sys

import pytest
from conftest import OPTIONS, ROOT

from udl_plugin.config.yaml_loader import OptionFile
from udl_plugin.plugin import REGISTERED

sys.path.insert(0, str(ROOT / 'scripts'))
import make_reference

jsonschema = pytest.importorskip('jsonschema')
FILES = dict(make_reference.make_files())
YMLS = sorted(path for path in OPTIONS.rglob('*.yml'))


def names(schema):
    """Names of options and of values; not descriptions and types, which depend on the versions of packages."""
    if isinstance(schema, list):
        return [names(one) for one in schema]
    if not isinstance(schema, dict):
        return None
    return {key: value if key in ('enum', 'const') else names(value) for key, value in schema.items()
            if key in ('enum', 'const') or isinstance(value, (dict, list))}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path):
    text, expected = path.read_text(encoding='utf-8'), FILES[path]
    if path.suffix == '.json':
        found, expected = json.loads(text), json.loads(expected)
        for schema in (found, expected):
            schema.get('$defs', {}).pop('Optimizer', None)  # of PyTorch
        assert names(found) == names(expected), 'run scripts/make_reference.py'
    else:
        if path.name == 'commands.md':  # Python's own words and line breaks differ between versions
            text, expected = (' '.join(one.replace('optional arguments:', 'options:').split())
                              for one in (text, expected))
        assert text == expected, 'run scripts/make_reference.py'


@pytest.fixture(scope='module')
def validators():
    schemas = {path.stem: json.loads(path.read_text()) for path in (OPTIONS / 'schema').glob('*.json')}
    return {name: jsonschema.Draft7Validator(schema) for name, schema in schemas.items()}


@pytest.mark.parametrize('path', YMLS, ids=lambda path: str(path.relative_to(OPTIONS)))
def test_all_options_are_valid(path, validators):
    """Each yml names the schema of its kind, relative to itself."""
    first = path.read_text().partition('\n')[0]
    assert first.startswith('# yaml-language-server: $schema=')
    schema = (path.parent / first.partition('=')[2]).resolve()
    kind = 'study' if path.parent.name == 'studies' else path.name.split('_')[0]
    assert schema == OPTIONS / f'schema/{kind}.json'
    assert [error.message for error in validators[kind].iter_errors(OptionFile(str(path)).data)] == []


@pytest.mark.parametrize(('path', 'value'), [
    ('train/total_itre', 5), ('train/amp', 'bf32'), ('train/accumulate', 0), ('train/pixel_opt/offzet', 1),
    ('train/pixel_opt/offset', 'much'), ('network_g/num_faet', 3), ('datasets/train/gt_size', '192'),
    ('datasets/train/io_backend/type', 'zip'), ('datasets/valid', {}), ('val/metrics/psnr/crop_border', 'x'),
    ('train/optim_g/betas', [0.9]), ('train/scheduler/type', 'StepLR'), ('train/optim_g/lr', None)])
def test_mistakes_are_found(path, value, validators):
    data = copy.deepcopy(OptionFile(str(OPTIONS / 'train_udl_step2.yml')).data)
    assert not list(validators['train'].iter_errors(data))
    *sections, key = path.split('/')
    section = data
    for name in sections:
        section = section[name]
    if value is None:
        del section[key]
    else:
        section[key] = value
    assert list(validators['train'].iter_errors(data))


def test_own_classes_are_accepted(validators):
    data = copy.deepcopy(OptionFile(str(OPTIONS / 'train_udl_step1.yml')).data)
    data['network_g'] = {'type': 'WithVariance', 'backbone': {'type': 'MyNet', 'depth': [1, 2]}}
    data['train']['pixel_opt'] = {'type': 'MyLoss', 'power': 2}
    data['datasets']['train'] = {**data['datasets']['train'], 'type': 'MyPairs', 'sigma': 5}
    data.update(model_type='MyModel', imports=['mynet.py'])
    assert not list(validators['train'].iter_errors(data))


def test_every_option_is_explained(validators):
    """Those of our own table, and a class's by its docstring."""
    schema = validators['train'].schema
    options = {f'{name}.{key}': option for name, section in [('', schema), *schema['$defs'].items()]
               for key, option in section.get('properties', {}).items()}
    assert [name for name, option in options.items() if 'description' not in option] == []
    losses = {rule['if']['properties']['type']['const']: rule['then']['properties']
              for rule in schema['$defs']['Loss']['allOf']}
    assert losses.keys() > {*REGISTERED['LOSS_REGISTRY']}
    assert losses['UDL']['offset']['description']
