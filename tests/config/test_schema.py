"""The table of options: what it holds is what is read, and everything that is wrong is told at once, with its line."""
import ast
import copy
import inspect
import sys
from pathlib import Path

import basicsr
import pytest
import torch
import yaml
from basicsr.models import lr_scheduler
from basicsr.models.base_model import BaseModel
from basicsr.utils import dist_util
from conftest import OPTIONS

import udl_plugin
from udl_plugin.config import schema
from udl_plugin.config.cross_checks import as_parsed, collect_errors
from udl_plugin.config.schema import validate_file, validate_sections
from udl_plugin.config.yaml_loader import OptionFile
from udl_plugin.training import run as entry

YMLS = sorted(path for path in OPTIONS.rglob('*.yml') if path.parent.name != 'studies')
GIVEN = {'phase', 'dist', 'rank', 'world_size', 'is_train', 'auto_resume', 'root_path', *schema.MADE_PATHS}
# of what upstream's code calls a section of the yml
SECTIONS = {'train_opt': 'train', 'dataset_opt': 'datasets', 'io_backend_opt': 'io_backend', 'path_opt': 'path'}


# ---- the table is what is read


def keys_read(name, root='top'):
    """Section and key of all options that a source of upstream's reads: `opt['x']`, `.get('x')`, `'x' in opt`."""
    def path(node):
        if isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            return (root,) if name == 'opt' else (SECTIONS[name],) if name in SECTIONS else None
        key = None
        if isinstance(node, ast.Subscript):
            key, inner = node.slice, node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ('get', 'pop') \
                and node.args:
            key, inner = node.args[0], node.func.value
        key = getattr(key, 'value', key) if isinstance(key, ast.Index) else key  # as Python 3.8 had it
        above = path(inner) if isinstance(key, ast.Constant) and isinstance(key.value, str) else None
        return above and (*above, key.value)

    found = set()
    for node in ast.walk(ast.parse(Path(basicsr.__file__).with_name('x').parent.joinpath(name).read_text())):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In) and isinstance(node.left, ast.Constant):
            above = path(node.comparators[0])
            found |= {(above[-1], node.left.value)} if above else set()
        else:
            read = path(node)
            found |= {read[-2:]} if read and len(read) > 1 else set()
    return found


def read_upstream():
    files = ('train.py', 'test.py', 'models/base_model.py', 'models/sr_model.py', 'data/__init__.py',
             'utils/options.py', 'utils/logger.py', 'utils/misc.py')
    read = set().union(*map(keys_read, files)) | keys_read('data/paired_image_dataset.py', 'datasets')
    # datasets: train: x is found as train: x
    return {('datasets' if section == 'train' and key in schema.DataSet.model_fields else section, key)
            for section, key in read if key not in GIVEN}


def table():
    """Section and key of everything in it."""
    sections = {'top': schema.Yml, 'train': schema.Train, 'val': schema.Val, 'path': schema.Paths,
                'logger': schema.Logger, 'wandb': schema.Wandb, 'datasets': schema.PairedTrainSet}
    return {(section, key) for section, model in sections.items() for key in model.model_fields}


def test_every_key_that_upstream_reads_is_in_the_table():
    # type and the rest of sections for classes: of the classes themselves, below
    of_classes = {'optim_g', 'scheduler', 'io_backend'}
    read = {(section, key) for section, key in read_upstream() if section not in of_classes}
    assert len(read) > 50
    others = {('datasets', 'scale'), ('datasets', 'train'), ('name', 'debug')}  # parse_options', a phase, a part
    assert read - table() == others


def test_every_key_of_the_table_is_read():
    own = set()
    for path in Path(udl_plugin.__file__).parent.rglob('*.py'):
        if path.name != 'schema.py':
            own |= {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
                    and isinstance(node.value, str)}
    unread = {key for section, key in table() - read_upstream() if key not in own}
    assert not unread


def test_keys_that_are_ours_are_not_upstreams():
    for section, model in (('train', schema.Train), ('val', schema.Val), ('logger', schema.Logger)):
        for key, field in model.model_fields.items():
            assert bool(schema.is_ours(field)) == ((section, key) not in read_upstream())


def parameters(cls):
    return {name: parameter for name, parameter in inspect.signature(cls).parameters.items()
            if name not in schema.GIVEN}


def test_schedulers_and_optimizers_are_upstreams():
    source = inspect.getsource(BaseModel.setup_schedulers)
    for name, model in schema.SCHEDULERS.items():
        assert f"'{name}'" in source
        cls = getattr(lr_scheduler, 'MultiStepRestartLR' if name == 'MultiStepLR' else name)
        taken = parameters(cls)
        assert model.model_fields.keys() - {'type'} == taken.keys()
        for key, parameter in taken.items():
            assert model.model_fields[key].is_required() == (parameter.default is parameter.empty)
    source = inspect.getsource(BaseModel.get_optimizer)
    assert {'Adam': torch.optim.Adam} == schema.OPTIMIZERS
    assert "== 'Adam'" in source
    assert 'elif' not in source
    assert schema.OF_OPTIMIZERS.keys() <= parameters(torch.optim.Adam).keys()


def test_dist_params_are_what_slurm_takes():
    taken = {*inspect.signature(dist_util.init_dist).parameters, *inspect.signature(
        dist_util._init_dist_slurm).parameters} - {'launcher', 'kwargs'}
    assert schema.DistParams.model_fields.keys() == taken


# ---- what passes


@pytest.mark.parametrize('path', YMLS, ids=lambda path: str(path.relative_to(OPTIONS)))
def test_our_ymls_pass(path):
    document = OptionFile(path)
    before = copy.deepcopy(document.data)
    assert validate_file(document.data, path.name.startswith('train')) == []
    assert validate_sections(document.data) == []
    assert document.data == before


def example(phase='train'):
    return yaml.safe_load((OPTIONS / ('train_udl_step1.yml' if phase == 'train' else 'test_udl.yml')).read_text())


def problems(keys, value=..., phase='train', **changes):
    """Messages for the example with another value at `train: optim_g: lr`, or without that key."""
    opt = {**example(phase), **changes}
    *sections, key = keys.split(': ')
    section = opt
    for name in sections:
        section = section[name]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return [message for _, message in validate_file(opt, phase == 'train')]


@pytest.mark.parametrize(('keys', 'values'), [
    ('train: total_iter', [1, 5e3]), ('train: warmup_iter', [-1, 0, 100.0]), ('train: ema_decay', [0, 0.999]),
    ('train: optim_g: lr', [1, 1e-4]), ('train: optim_g: betas', [[0, 0.9]]), ('train: optim_g: amsgrad', [True]),
    ('train: scheduler: milestones', [[], [5e3, 10000]]), ('train: scheduler: gamma', [1, 0.5]),
    ('train: scheduler', [{'type': 'CosineAnnealingRestartLR', 'periods': [15000, 15e3], 'restart_weights': [1, 0.5],
                           'eta_min': 0}]),
    ('train: max_skips', [None, 3]), ('val: save_best', [None, 'psnr', 'Set5/ssim']), ('logger: save_keep', [2]),
    ('datasets: train: on_bad_record', ['stop', 'skip']), ('val', [None]), ('num_gpu', ['auto', 0, 2]),
    ('manual_seed', [None, 0]), ('name', ['train_EDSR-S x4.1', 'a..b', 'Größe']), ('val: suffix', [None, 'x']),
    ('val: metrics', [None, {}]), ('path: ignore_resume_networks', [['network_g']]),
    ('network_g: res_scale', [1, 0.1, None]), ('network_g: rgb_mean', [[0, 0.5, 1]]),
    ('train: pixel_opt: loss_weight', [1, 0.5]), ('find_unused_parameters', [True]), ('dist_params', [None]),
])
def test_good_value(keys, values):
    for value in values:
        assert problems(keys, value) == []


@pytest.mark.parametrize(('mean', 'std', 'message'), [
    (3 * [0.5], 3 * [0.5], None), ([0.5], [0.5], 'mean: 1 numbers, for images of 3 channels; write one for each'),
    (3 * [0.5], [1, 1, 0], 'std: [1, 1, 0]: images are divided by it; write numbers above 0')])
def test_normalization(mean, std, message):
    opt = yaml.safe_load((OPTIONS / 'train_udl_step1.yml').read_text())
    opt['datasets']['train'].update(mean=mean, std=std)
    found = [problem.message for problem in validate_file(opt, is_train=True)]
    assert not found if message is None else f'datasets: train: {message}' in found[0]


NUMBER, FLAG = 'must be a number', 'must be true or false'


@pytest.mark.parametrize(('keys', 'value', 'message'), [
    ('train: total_iter', 0, '0: must be a whole number of iterations, 1 or more.'),
    ('train: total_iter', 5000.5, '5000.5: must be a whole number of iterations'),
    ('train: total_iter', True, 'True: must be a whole number'),
    ('train: total_iter', ..., 'is missing.'), ('train: optim_g', ..., 'is missing, or not a section.'),
    ('train: optim_g: lr', '1e-4', "'1e-4' is a text to YAML; write !!float 1e-4."),
    ('train: optim_g: lr', 0, f'0: {NUMBER} above 0.'), ('train: optim_g: lr', float('nan'), f'nan: {NUMBER}'),
    ('train: optim_g: lr', ..., 'is missing'), ('train: optim_g: weight_decay', -1, f'-1: {NUMBER}, 0 or more.'),
    ('train: optim_g: betas', [0.9], 'must be two numbers'), ('train: optim_g: betas', [0.9, 1], 'must be two numbers'),
    ('train: optim_g: amsgrad', 1, FLAG),
    ('train: optim_g: type', 'AdamW', "there is no 'AdamW' (did you mean 'Adam'?)"),
    ('train: scheduler: type', 'MultistepLR', "there is no 'MultistepLR' (did you mean 'MultiStep"),
    ('train: scheduler: milestones', 5, 'must be a list of whole numbers'),
    ('train: scheduler: milestones', [1.5], 'must be a list of whole numbers'),
    ('train: scheduler: gamma', 0, f'{NUMBER} above 0'), ('train: ema_decay', 1, '1: must be a number from 0'),
    ('train: max_skips', 0, 'must be a whole number, 1 or more'), ('logger: save_keep', 1.5, 'must be a whole number'),
    ('logger: print_freq', 0, 'must be a whole'), ('logger: use_tb_logger', ..., 'is missing'),
    ('datasets: train: on_bad_record', 'go on', 'go on: must be stop or skip'),
    ('datasets: train: batch_size_per_gpu', 0, '0: must be a whole number, 1 or more'),
    ('datasets: train: batch_size_per_gpu', '16', "'16' is a text to YAML; write 16."),
    ('datasets: train: num_worker_per_gpu', -1, 'must be a whole number from 0 to 256'),
    ('datasets: train: gt_size', ..., 'is missing'), ('datasets: train: use_hflip', 'yes', f'yes: {FLAG}'),
    ('datasets: train: type', 'PairedImageDatset', "(did you mean 'PairedImageDataset'"),
    ('datasets: train: name', '../x', 'must be a plain name'), ('datasets: train: prefetch_mode', 'gpu', 'must be cpu'),
    ('datasets: train: io_backend: type', 'imdb', "'imdb' is not supported (did you mean 'lmdb'?)"),
    ('datasets: val: persistent_workers', True, 'there are no workers in validation'),
    ('datasets: train', ..., 'is missing, or not a section'), ('datasets: valid', {}, 'is no phase of a training'),
    ('name', '../x', '../x: must be a plain name'), ('name', '/tmp/x', 'must be a plain'), ('name', 'a\\b', 'must'),
    ('name', '..', 'must be a plain name'), ('name', '', 'must be a plain name'), ('name', 'a\0b', 'must be a plain'),
    ('name', 5, "of at most 150 bytes; write '5'."), ('val: suffix', 'a/b', 'must be a plain name'),
    ('num_gpu', -1, '-1: must be auto or'), ('num_gpu', True, 'must be auto'), ('scale', 0, 'must be a whole'),
    ('manual_seed', -1, 'must be a whole'), ('val: val_freq', ..., 'is missing'), ('val: save_img', 1, FLAG),
    ('val: metrics: psnr: crop_border', 2, '2 does not agree with scale: 4; write 4 (--no-check lets it pass).'),
    ('val: metrics: psnr: crop_border', ..., 'is missing; write the scale'),
    ('val: metrics: psnr: better', 'more', 'must be higher or lower'),
    ('val: metrics: psnr: test_y_channel', 1, FLAG), ('val: metrics: psnr', 5, 'is missing, or not a section'),
    ('val: save_best', 'psrn', "'psrn' is no name in val: metrics"), ('val: save_best', 'Set6/psnr', 'is no name'),
    ('network_g: num_feat', '64', "'64' is a text to YAML; write 64."), ('network_g: rgb_mean', 0, 'must be a list'),
    ('network_g: num_in_ch', ..., 'is missing; type: EDSRVar needs it'), ('network_g', 5, 'is missing, or not'),
    ('train: pixel_opt: img_range', 'all', NUMBER), ('train: pixel_opt', ..., 'is missing: there is no loss'),
    ('train: pixel_opt: reduction', 'meen', 'must be mean, sum or none'),
    ('datasets: train: std', [1, 1, 1], 'std: wants mean beside it'),
    ('datasets: val: mean', [0.5], 'mean: wants std beside it'), ('datasets: val: use_hflip', 'True', 'write true.'),
    ('datasets: train: use_shuffle', True, 'BasicSR always shuffles training data, and does not read this; delete it'),
    ('path: strict_load_g', 'no', FLAG), ('path: pretrain_network_g', 3, 'must be a text'),
    ('train', ..., 'is missing, or not a section'), ('path', [], 'is missing, or not a section'),
    ('model_type', 'UDLmodel', "there is no 'UDLmodel' (did you mean 'UDLModel'?)"),
])
def test_bad_value(keys, value, message):
    """One problem, and none that only follows from it."""
    found = problems(keys, value)
    assert len(found) == 1, found
    assert found[0].startswith(f'{keys}: ')
    assert message in found[0]


@pytest.mark.parametrize(('scheduler', 'messages'), [
    ({'periods': [10000, 10000], 'restart_weights': [1, 1]},
     ['train: scheduler: periods: end at iteration 20000, and total_iter: 30000 goes on']),
    ({'periods': [20000, 20000]},
     ['train: scheduler: restart_weights: wants a number for each of periods: 2, and has 1']),
    ({'periods': []}, ['train: scheduler: periods: []: must be a list']),
    ({'periods': [30000], 'gamma': 1}, ["train: scheduler: 'gamma' is not an option"]),
])
def test_cosine(scheduler, messages):
    found = problems('train: scheduler', {'type': 'CosineAnnealingRestartLR', **scheduler})
    assert [message for message, start in zip(found, messages) if message.startswith(start)] == found
    assert len(found) == len(messages)


def test_wandb_goes_through_tensorboard():
    wandb = {'wandb': {'project': 'x'}}
    assert problems('logger', {**example()['logger'], **wandb}) == []
    assert problems('logger', {**example()['logger'], **wandb, 'use_tb_logger': False}) == [
        'logger: wandb: project: wants use_tb_logger: true.']


def test_upstream_stops_where_the_periods_end():
    """Why it is refused."""
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    scheduler = lr_scheduler.CosineAnnealingRestartLR(optimizer, [2, 1], [1, 1])
    optimizer.step()
    for _ in range(3):
        scheduler.step()
    with pytest.raises(TypeError):
        scheduler.step()


@pytest.mark.parametrize('keys', [
    'nmae', 'train: ema_deacy', 'train: optim_g: btas', 'train: scheduler: gama', 'train: pixel_opt: img_rnage',
    'val: sufix', 'val: metrics: psnr: crop_boarder', 'path: pretrain_network_h', 'logger: print_frq',
    'logger: wandb: projct', 'dist_params: prot', 'datasets: train: gt_sise', 'datasets: val: dataroot_q',
    'network_g: num_feats', 'datasets: val: on_bad_record', 'path: models', 'datasets: train: phase', 'is_train',
])
@pytest.mark.parametrize('model_type', ['UDLModel', 'SRModel'])
def test_unknown_key(keys, model_type):
    found = problems(keys, 1, model_type=model_type)
    *sections, key = keys.split(': ')
    assert len(found) == 1, found
    assert found[0].startswith(': '.join([*sections, f"'{key}' is not an option"]))
    if key not in ('on_bad_record', 'models', 'phase', 'is_train'):
        assert 'did you mean' in found[0]


@pytest.mark.parametrize(('keys', 'value'), [
    ('train: amp', 'bf16'), ('train: amp', 5), ('train: max_skips', 3), ('train: accumulate', 4),
    ('val: save_best', 'psnr'), ('val: save_uncertainty', True), ('logger: save_keep', 2)])
def test_what_srmodel_does_not_read(keys, value):
    found = problems(keys, value, model_type='SRModel')
    assert found == [f'{keys}: model_type: SRModel does not read it; write model_type: UDLModel.']


def test_models_that_are_not_known():
    """Keys may be new; what BasicSR's training itself reads, and where it writes, is checked."""
    others = {'model_type': 'ESRGANModel', 'network_d': {'type': 'x'}}
    assert problems('train: gan_opt', {'type': 'GANLoss'}, **others) == []
    assert problems('path: pretrain_network_d', None, **others) == []
    assert len(problems('path: elsewhere', '/tmp', **others)) == 1
    assert len(problems('name', '../x', **others)) == 1
    assert len(problems('train: total_iter', ..., **others)) == 1
    assert problems('train: optim_g', ..., **others) == []


def test_other_data_sets():
    other = {'name': 'x', 'type': 'RealESRGANDataset', 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'blur': 3}
    assert problems('datasets: train', {**other, 'on_bad_record': 'skip'}) == []
    assert len(problems('datasets: train', {**other, 'batch_size_per_gpu': 0})) == 1
    assert len(problems('datasets: val', {**other, 'name': 'a/b'})) == 1


@pytest.mark.parametrize(('keys', 'value', 'start'), [
    ('train', {'ema_deacy': 1}, "train: 'ema_deacy' is not an option"), ('val', ..., 'val: is missing'),
    ('val: suffix', ..., 'val: suffix: is missing'), ('datasets: train', {}, 'datasets: train: is no phase of a test'),
    ('val: val_freq', 0, 'val: val_freq: 0: must be')])
def test_test_ymls(keys, value, start):
    found = problems(keys, value, 'test')
    assert len(found) == 1, found
    assert found[0].startswith(start)


def test_unused_sections_of_a_test():
    assert problems('train', {'ema_decay': 0.9}, 'test') == []
    assert problems('logger', {}, 'test') == []


def test_dicts_made_by_hand_may_lack_keys():
    opt = {key: value for key, value in example().items() if key in ('model_type', 'network_g', 'path')}
    opt = {**opt, 'datasets': {}, 'train': {'optim_g': {'type': 'Adam', 'lr': 1}}, 'is_train': True, 'dist': False}
    opt['path'] = {**opt['path'], 'models': 'x'}
    assert validate_sections(opt) == []
    opt['train']['ema_deacy'] = opt['train']['ema_decay'] = 1
    assert [place for place, _ in validate_sections(opt)] == ['train: ema_decay', 'train: ema_deacy']


JUNK = [5, -1.5, 'x', '', True, None, [], [[1]], {}, {'type': ['x']}, {'type': None}]


def places(section, above=()):
    for key, value in section.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


@pytest.mark.parametrize('junk', JUNK, ids=repr)
def test_nothing_makes_the_checks_stumble(junk):
    """Each key in turn: no error but the report, in which no place is blamed twice."""
    for keys in places(example()):
        opt = example()
        opt['datasets'] = {phase: opt['datasets'][phase] for phase in ('train', 'val')} if keys[0] == 'datasets' else {
            'train': opt['datasets']['train']}
        section = opt
        for key in keys[:-1]:
            section = section.get(key, {})
        section[keys[-1]] = junk
        known = validate_file(opt, True)
        assert len({place for place, _ in known}) == len(known)
        report = collect_errors(as_parsed(opt, True), known)
        assert len(set(report.messages)) == len(report.messages)


# ---- what the user sees


def refused(monkeypatch, capsys, folder, text, *arguments):
    (folder / 'x.yml').write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', ['/bin/udl-train', '-opt', 'x.yml', *arguments])
    assert entry.run('basicsr.train', 'train_pipeline') == 2
    assert {path.name for path in folder.iterdir()} <= {'x.yml', 'datasets'}
    return capsys.readouterr().err


def line_of(text, start):
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith(start))


@pytest.fixture
def good(runner):
    """The text of a yml that passes, in the runner's folder."""
    text = (OPTIONS / 'demo/train_udl_step1.yml').read_text()
    assert '  warmup_iter: -1\n' in text
    return text


def test_one_problem(runner, good, monkeypatch, capsys):
    text = good.replace('  warmup_iter: -1', '  warmup_itre: -1')
    said = refused(monkeypatch, capsys, runner.folder, text)
    assert said.splitlines()[-1].startswith(
        f"udl-train: x.yml, line {line_of(text, 'warmup_itre')}: train: 'warmup_itre' is not an option (did you mean "
        "'warmup_iter'?). With model_type: UDLModel its options are: ")


def test_all_problems_at_once(runner, good, monkeypatch, capsys):
    """Of the yml, of options that disagree, of the data, of the network and of the checkpoint: by their lines."""
    text = good
    for before, after in (
            ('warmup_iter: -1', 'warmup_itre: -1'), ('!!float 4e-4', '4e-4'), ('crop_border: 2', 'crop_border: 4'),
            ('demo_train_HR_sub', 'nowhere'), ('type: CosineAnnealingRestartLR', 'type: CosineAnnealing'),
            ('pretrain_network_g: ~', 'pretrain_network_g: nowhere.pth'), ('num_worker_per_gpu: 1', 'num_worker: 1'),
            ('type: ESU', 'type: UDL'), ('  use_tb_logger: false', '  use_tb_logger: false\n  print_freq: 5')):
        assert before in text, before
        text = text.replace(before, after, 1)
    head, *lines = refused(monkeypatch, capsys, runner.folder, text).splitlines()
    assert head == f'udl-train: x.yml: {len(lines)} problems:'
    expected = [
        ('train:', 'datasets: train: num_worker_per_gpu: is missing.'),
        ('dataroot_gt: datasets/demo/nowhere', "datasets: train: dataroot_gt: there is no folder 'datasets/demo/now"),
        ('num_worker: 1', "datasets: train: 'num_worker' is not an option (did you mean 'num_worker_per_gpu'?)"),
        ('pretrain_network_g', "path: pretrain_network_g: there is no file 'nowhere.pth'"),
        ('lr: 4e-4', "train: optim_g: lr: '4e-4' is a text to YAML; write !!float 4e-4."),
        ('type: CosineAnnealing', "train: scheduler: type: there is no 'CosineAnnealing' (did you mean 'CosineAnn"),
        ('warmup_itre', "train: 'warmup_itre' is not an option"),
        ('pixel_opt', 'train: pixel_opt: UDL weighs by a finished log-variance, and that of network_g: EDSRVar would'),
        ('crop_border: 4', 'val: metrics: psnr: crop_border: 4 does not agree with scale: 2'),
    ]
    expected = [f'  line {line_of(text, start)}: {message}' for start, message in expected]
    again = len(text.splitlines()) - 1 - text.splitlines()[::-1].index('  print_freq: 5') + 1
    expected.append(f'  line {again}: logger: print_freq: stands there twice')
    assert len(lines) == len(expected), '\n'.join(lines)
    for line, start in zip(lines, expected):
        assert line.startswith(start)


def test_what_follows_from_a_problem_is_not_told(runner, good, monkeypatch, capsys):
    """The data cannot be cut to a size that is no number."""
    said = refused(monkeypatch, capsys, runner.folder, good.replace('gt_size: 48', "gt_size: '48'"))
    assert said.splitlines()[-1].endswith("datasets: train: gt_size: '48' is a text to YAML; write 48.")
    assert 'problems' not in said


def test_problem_of_an_override(runner, good, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, runner.folder, good, '--force_yml', 'name=../x', 'train:ema_decay=0.9')
    assert said.splitlines()[-1].startswith('udl-train: x.yml, --force_yml name=../x: name: ../x: must be a plain name')


@pytest.mark.parametrize(('before', 'after', 'message'), [
    ('num_feat: 32', "num_feat: '32'", "network_g: num_feat: '32' is a text to YAML; write 32."),
    ('num_feat: 32', 'num_feat: 1.5', 'network_g: type: EDSR: cannot be built'),
])
def test_network_and_its_checkpoint(runner, good, monkeypatch, capsys, before, after, message):
    """A network that is wrong is not built, and hides no missing file."""
    assert before in good
    text = good.replace(before, after).replace('pretrain_network_g: ~', 'pretrain_network_g: nowhere.pth')
    head, *lines = refused(monkeypatch, capsys, runner.folder, text).splitlines()
    assert head == 'udl-train: x.yml: 2 problems:'
    assert message in lines[0]
    assert "path: pretrain_network_g: there is no file 'nowhere.pth'" in lines[1]


def test_section_that_is_missing(runner, good, monkeypatch, capsys):
    text = good.replace('\nlogger:\n', '\nlogegr:\n')
    head, *lines = refused(monkeypatch, capsys, runner.folder, text).splitlines()
    assert head == 'udl-train: x.yml: 2 problems:'
    assert lines[0].endswith(': logger: is missing, or not a section.')
    assert lines[1].startswith(f"  line {line_of(text, 'logegr')}: 'logegr' is not an option (did you mean 'logger'?)")


def test_state_that_is_missing_is_in_the_report(runner, good, monkeypatch, capsys):
    """And then nobody knows where the network starts from."""
    text = good.replace('resume_state: ~', 'resume_state: 3.state').replace('type: EDSRVar', 'type: EDSRTwo').replace(
        'type: ESU', 'type: UDL')
    said = refused(monkeypatch, capsys, runner.folder, text)
    assert f"line {line_of(text, 'resume_state')}: path: resume_state: there is no file '3.state'" in said
    assert 'problems' not in said
    said = refused(monkeypatch, capsys, runner.folder, text.replace('warmup_iter', 'warmup_itre'))
    assert 'x.yml: 2 problems:' in said
    assert "path: resume_state: there is no file '3.state'" in said


def test_only_the_first_process_speaks(runner, good, monkeypatch, capsys):
    for launcher, variable in (('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')):
        for rank in (0, 1):
            monkeypatch.setenv(variable, str(rank))
            said = refused(monkeypatch, capsys, runner.folder, good.replace('warmup_iter', 'warmup_itre'), '--launcher',
                           launcher)
            assert bool(said) == (rank == 0)


def test_no_check(runner, good, monkeypatch):
    """Upstream's pipeline gets what is there, with UDLModel's own check left out as well."""
    from udl_plugin.config.cross_checks import check_options
    seen = []

    def pipeline(root_path):
        import basicsr.train
        opt, _ = basicsr.train.parse_options(root_path, is_train=True)
        basicsr.train.load_resume_state(opt)
        check_options(opt)
        seen.append(opt)

    monkeypatch.setattr('basicsr.train.train_pipeline', pipeline)
    monkeypatch.chdir(runner.folder)
    Path('x.yml').write_text(good.replace('warmup_iter', 'warmup_itre'))
    argv = ['udl-train', '-opt', 'x.yml', '--force_yml', 'train:total_iter=7', '--no-check']
    monkeypatch.setattr(sys, 'argv', argv)
    assert entry.run('basicsr.train', 'train_pipeline') == 0
    assert sys.argv == argv
    assert seen[0]['train']['warmup_itre'] == -1
    assert seen[0]['train']['total_iter'] == 7
    monkeypatch.setattr(sys, 'argv', argv[:-1])
    assert entry.run('basicsr.train', 'train_pipeline') == 2
