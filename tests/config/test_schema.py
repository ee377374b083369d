"""The table of options holds what is read, and what is wrong is reported by the path of its key."""
import ast
import copy
import inspect
import re
from pathlib import Path

import basicsr
import pytest
import torch
import yaml
from basicsr.models import lr_scheduler
from basicsr.models.base_model import BaseModel
from basicsr.utils import dist_util
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import OPTIONS

import udl_plugin
from udl_plugin.config import schema
from udl_plugin.config.class_options import GIVEN, OF_OPTIMIZERS, OF_SCHEDULERS, OPTIMIZERS, SCHEDULERS
from udl_plugin.config.completion import complete_options
from udl_plugin.config.cross_checks import validate_options
from udl_plugin.config.schema import validate_file, validate_sections
from udl_plugin.config.yaml_loader import OptionFile
from udl_plugin.models.udl_model import UDLModel

YMLS = sorted(path for path in OPTIONS.rglob('*.yml') if path.parent.name != 'studies')
DERIVED = {'phase', 'dist', 'rank', 'world_size', 'is_train', 'auto_resume', 'root_path', *schema.DERIVED_PATHS}
# variables in BasicSR's code -> mappings in an option file
SECTIONS = {'train_opt': 'train', 'dataset_opt': 'datasets', 'io_backend_opt': 'io_backend', 'path_opt': 'path'}


# ---- the table has what is read


def keys_read(name, root='top'):
    """Section and key of all options that a source of BasicSR reads: `opt['x']`, `.get('x')`, `'x' in opt`."""
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


def read_by_basicsr():
    files = ('train.py', 'test.py', 'models/base_model.py', 'models/sr_model.py', 'data/__init__.py',
             'utils/options.py', 'utils/logger.py', 'utils/misc.py')
    read = set().union(*map(keys_read, files)) | keys_read('data/paired_image_dataset.py', 'datasets')
    # datasets.train.x is found as train.x
    return {('datasets' if section == 'train' and key in schema.DatasetOptions.model_fields else section, key)
            for section, key in read if key not in DERIVED}


def table():
    """Section and key of every option in it."""
    sections = {'top': schema.OptionsFile, 'train': schema.TrainOptions, 'val': schema.ValOptions,
                'path': schema.PathOptions,
                'logger': schema.LogOptions, 'wandb': schema.WandbOptions, 'datasets': schema.PairedTrainSet}
    return {(section, key) for section, model in sections.items() for key in model.model_fields}


def test_every_key_that_basicsr_reads_is_in_the_table():
    # options of classes are checked against the classes
    of_classes = {'optim_g', 'scheduler', 'io_backend'}
    read = {(section, key) for section, key in read_by_basicsr() if section not in of_classes}
    assert len(read) > 50
    others = {('datasets', 'scale'), ('datasets', 'train'), ('name', 'debug')}  # derived, a phase, part of a name
    assert read - table() == others


def test_every_key_of_the_table_is_read():
    own = set()
    for path in Path(udl_plugin.__file__).parent.rglob('*.py'):
        if path.name != 'schema.py':
            own |= {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
                    and isinstance(node.value, str)}
    unread = {key for section, key in table() - read_by_basicsr() if key not in own}
    assert not unread


def test_keys_for_udlmodel_alone_are_not_read_by_basicsr():
    for section, model in (('train', schema.TrainOptions), ('val', schema.ValOptions), ('logger', schema.LogOptions)):
        for key in model.model_fields:
            found = errors(f'{section}.{key}', 'x', model_type='SRModel')
            is_refused = any('SRModel does not support it' in error.message for error in found)
            assert is_refused == ((section, key) not in read_by_basicsr())


def parameters(cls):
    return {name: parameter for name, parameter in inspect.signature(cls).parameters.items()
            if name not in GIVEN}


def test_schedulers_and_optimizers_are_those_of_basicsr():
    source = inspect.getsource(BaseModel.setup_schedulers)
    for name, cls in SCHEDULERS.items():
        assert f"'{name}'" in source
        assert cls is getattr(lr_scheduler, 'MultiStepRestartLR' if name == 'MultiStepLR' else name)
    assert {*OF_SCHEDULERS} <= {key for cls in SCHEDULERS.values() for key in parameters(cls)}
    names = re.findall("== '(.*)'", inspect.getsource(BaseModel.get_optimizer))
    assert {'Adam': torch.optim.Adam} == OPTIMIZERS
    assert names == ['Adam'] or {'Adam', 'AdamW'} < {*names}, 'the last commit has more, for Python 3.13 alone'
    assert OF_OPTIMIZERS.keys() <= parameters(torch.optim.Adam).keys()


def test_dist_params_are_what_slurm_takes():
    taken = {*inspect.signature(dist_util.init_dist).parameters, *inspect.signature(
        dist_util._init_dist_slurm).parameters} - {'launcher', 'kwargs'}
    assert schema.DistParams.model_fields.keys() == taken


# ---- good options


@pytest.mark.parametrize('path', YMLS, ids=lambda path: str(path.relative_to(OPTIONS)))
def test_shipped_files_pass(path):
    option_file = OptionFile(path)
    before = copy.deepcopy(option_file.data)
    assert validate_file(option_file.data, path.name.startswith('train')) == []
    assert validate_sections(option_file.data) == []
    assert option_file.data == before


def example(phase='train'):
    return yaml.safe_load((OPTIONS / ('train_udl_step1.yml' if phase == 'train' else 'test_udl.yml')).read_text())


def errors(key, value=..., phase='train', **changes):
    """Errors of the example with another value at a dotted key, or without that key."""
    opt = {**example(phase), **changes}
    *sections, key = key.split('.')
    section = opt
    for name in sections:
        section = section[name]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    return validate_file(opt, phase == 'train')


def assert_one_error(found, key, message):
    """One error, and none that only follows from it."""
    assert len(found) == 1, found
    assert found[0].path == tuple(key.split('.'))
    assert message in found[0].message
    assert found[0].message.endswith('.')


@pytest.mark.parametrize(('key', 'values'), [
    ('train.total_iter', [1, 5e3]), ('train.warmup_iter', [-1, 0, 100.0]), ('train.ema_decay', [0, 0.999]),
    ('train.optim_g.lr', [1, 1e-4]), ('train.optim_g.betas', [[0, 0.9]]), ('train.optim_g.amsgrad', [True]),
    ('train.scheduler.milestones', [[], [5e3, 10000]]), ('train.scheduler.gamma', [1, 0.5]),
    ('train.scheduler', [{'type': 'CosineAnnealingRestartLR', 'periods': [15000, 15e3], 'restart_weights': [1, 0.5],
                          'eta_min': 0}]),
    ('train.cuda_graph', [None, 'auto', True, False]), ('train.tf32', [None, True, False]),
    ('train.max_skips', [None, 3]), ('train.grad_clip', [None, 1, 0.5]), ('val.save_best', [None, 'psnr', 'Set5/ssim']),
    ('logger.save_keep', [2]), ('datasets.train.on_bad_record', ['stop', 'skip']), ('val', [None]),
    ('val.uncertainty_limits', [None, [0, 4]]),
    ('num_gpu', ['auto', 0, 2]), ('manual_seed', [None, 0]), ('name', ['train_EDSR-S x4.1', 'a..b', 'Größe']),
    ('val.suffix', [None, 'x']), ('val.metrics', [None, {}]), ('path.ignore_resume_networks', [['network_g']]),
    ('network_g.res_scale', [1, 0.1, None]), ('network_g.rgb_mean', [[0, 0.5, 1]]),
    ('train.pixel_opt.loss_weight', [1, 0.5]), ('find_unused_parameters', [True]),
    ('logger.log_images', [0, 1, 9]), ('dist_params', [None]),
])
def test_good_value(key, values):
    for value in values:
        assert errors(key, value) == []


# ---- wrong options


INTEGER, FLAG, PLAIN = 'expected an integer', 'expected true or false', 'expected a plain file name'


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('train.total_iter', 0, 'expected an integer number of iterations, at least 1, got 0.'),
    ('train.total_iter', 5000.5, ', got 5000.5.'), ('train.total_iter', True, f'{INTEGER} number'),
    ('train.total_iter', ..., 'is missing.'), ('train.optim_g', ..., 'is missing.'),
    ('train.optim_g.lr', '1e-4', "expected a number above 0, got the string '1e-4' (YAML 1.1 reads it so; write "
                                 '1.0e-4).'),
    ('train.optim_g.lr', '2.5E3', 'write 2.5e+3)'), ('train.optim_g.lr', 0, 'expected a number above 0, got 0.'),
    ('train.optim_g.lr', float('nan'), 'got nan.'), ('train.optim_g.lr', ..., 'is missing; type: Adam'),
    ('train.optim_g.weight_decay', -1, 'expected a number of at least 0, got -1.'),
    ('train.optim_g.betas', [0.9], 'expected two numbers'), ('train.optim_g.betas', [0.9, 1], 'expected two numbers'),
    ('train.optim_g.amsgrad', 1, FLAG),
    ('train.optim_g.type', 'AdamW', "there is no 'AdamW' (did you mean 'Adam'?). Write one of Adam."),
    ('train.scheduler.type', 'MultistepLR', "there is no 'MultistepLR' (did you mean 'MultiStep"),
    ('train.scheduler.milestones', 5, 'expected a list of iterations'),
    ('train.scheduler.milestones', [1.5], 'expected a list of iterations'),
    ('train.scheduler.milestones', ..., 'is missing; type: MultiStepRestartLR requires it.'),
    ('train.scheduler.gamma', 0, 'expected a number above 0'), ('train.ema_decay', 1, 'expected a number from 0 to'),
    ('train.max_skips', 0, f'{INTEGER} of at least 1'), ('logger.save_keep', 1.5, INTEGER),
    ('logger.log_images', -1, 'expected an integer of at least 0, got -1.'),
    ('train.amp', 'bfloat16', "expected bf16, fp16, or ~ for float32, got 'bfloat16'."),
    ('val.amp', True, 'expected bf16, fp16'), ('train.channels_last', 'yes', f"{FLAG}, got 'yes'."),
    ('train.compile', 'max', FLAG), ('train.accumulate', 0, 'got 0.'), ('train.accumulate', True, 'got True.'),
    *(('val.uncertainty_limits', limits, 'expected a lower and a higher number of 8-bit')
      for limits in ([4, 1], [-1, 4], [1], 4, ['a', 'b'], [1, 1])),
    ('val.uncertainty_colormap', 'jet', "expected inferno or authors, got 'jet'"),
    ('val.tile', 32, f'{INTEGER} of at least 64 (LR pixels), got 32.'), ('val.tile', True, f'{INTEGER} of at least 64'),
    ('train.cuda_graph', 'on', "expected auto, true or false, got 'on'"),
    ('train.grad_clip', 0, 'expected a number above 0'), ('train.grad_clip', True, 'expected a number above 0'),
    ('logger.print_freq', 0, INTEGER), ('logger.use_tb_logger', ..., 'is missing.'),
    ('datasets.train.on_bad_record', 'go on', "expected stop or skip, got 'go on'."),
    ('datasets.train.batch_size_per_gpu', 0, 'expected an integer of at least 1, got 0.'),
    ('datasets.train.batch_size_per_gpu', '16', "got the string '16' (write 16, without quotes)."),
    ('datasets.train.num_worker_per_gpu', -1, 'expected an integer from 0 to 256'),
    ('datasets.train.gt_size', ..., 'is missing.'), ('datasets.train.use_hflip', 'yes', f"{FLAG}, got 'yes'."),
    ('datasets.train.type', 'PairedImageDatset', "(did you mean 'PairedImageDataset'"),
    ('datasets.train.name', '../x', PLAIN), ('datasets.train.prefetch_mode', 'gpu', 'expected cpu, cuda, or ~'),
    ('datasets.train.io_backend.type', 'imdb', "expected disk or lmdb, got 'imdb'."),
    ('datasets.train.io_backend.type', ['lmdb'], 'expected disk or lmdb'),
    ('datasets.train.io_backend.type', ..., 'is missing.'),
    ('datasets.train.io_backend', ..., 'is missing.'),
    ('datasets.train', ..., 'is missing.'), ('datasets.valid', {}, 'is not a phase of a training'),
    ('name', '../x', f"{PLAIN}: a string of at most 150 bytes without / and \\, got '../x'."),
    ('name', '/tmp/x', PLAIN),
    ('name', 'a\\b', PLAIN), ('name', '..', PLAIN), ('name', '', PLAIN), ('name', 'a\0b', PLAIN),
    ('name', 5, "(write '5')"),
    ('val.suffix', 'a/b', PLAIN), ('num_gpu', -1, 'expected auto or an integer of at least 0, got -1.'),
    ('num_gpu', True, 'expected auto or'), ('scale', 0, INTEGER), ('manual_seed', -1, INTEGER),
    ('val.val_freq', ..., 'is missing.'), ('val.save_img', 1, FLAG),
    ('val.metrics.psnr.crop_border', 2, '2 does not agree with scale: 4; write 4 (--no-check accepts 2).'),
    ('val.metrics.psnr.crop_border', ..., 'is missing; write the scale'),
    ('val.metrics.psnr.better', 'more', 'expected higher or lower'),
    ('val.metrics.psnr.test_y_channel', 1, FLAG), ('val.metrics.psnr', 5, 'expected a mapping of options, got 5.'),
    ('val.save_best', 'psrn', "'psrn' is neither a name in val.metrics nor DATASET/METRIC (did you mean 'psnr'?)"),
    ('val.save_best', 'Set6/psnr', 'is neither'),
    ('network_g.num_feat', '64', "got the string '64' (write 64, without quotes)."),
    ('network_g.rgb_mean', 0, 'expected a list of numbers'),
    ('network_g.num_in_ch', ..., 'is missing; type: EDSRVar requires it'),
    ('network_g', 5, 'expected a mapping of options, got 5.'),
    ('train.pixel_opt.img_range', 'all', 'expected a number'), ('train.pixel_opt', ..., 'is missing: there is no loss'),
    ('train.pixel_opt.reduction', 'meen', 'expected mean or sum'),
    ('datasets.train.std', 1, 'expected a list of numbers'),
    ('datasets.val.use_hflip', 'True', 'write true, without quotes'),
    ('datasets.train.use_shuffle', True, 'BasicSR always shuffles training data and ignores this option; delete it.'),
    ('path.strict_load_g', 'no', FLAG), ('path.pretrain_network_g', 3, "expected a string, got 3 (write '3')"),
    ('train', ..., 'is missing.'), ('path', [], 'expected a mapping of options, got []'),
    ('model_type', 'UDLmodel', "there is no 'UDLmodel' (did you mean 'UDLModel'?)"),
])
def test_bad_value(key, value, message):
    assert_one_error(errors(key, value), key, message)


@pytest.mark.parametrize(('criterion', 'key', 'message'), [
    (None, None, None), ({'type': 'CharbonnierLoss', 'reduction': 'none', 'eps': 1e-6}, None, None),
    (5, '', 'expected a mapping of options, got 5.'), ({'reduction': 'none'}, '.type', 'is missing.'),
    ({'type': 'CharbonierLoss', 'reduction': 'none'}, '.type', "(did you mean 'CharbonnierLoss'?)"),
    ({'type': 'L1Loss', 'reduction': 'mean'}, '.reduction', "expected none, as each pixel is weighted, got 'mean'."),
    ({'type': 'L1Loss'}, '.reduction', 'is missing; write none: each pixel is weighted.'),
    ({'type': 'CharbonnierLoss', 'reduction': 'none', 'eps': '1e-6'}, '.eps', 'YAML 1.1 reads it so; write 1.0e-6'),
])
def test_criterion_of_udl(criterion, key, message):
    found = errors('train.pixel_opt', {'type': 'UDL', 'criterion': criterion})
    if key is None:
        assert found == []
    else:
        assert_one_error(found, f'train.pixel_opt.criterion{key}', message)


@pytest.mark.parametrize(('scheduler', 'key', 'message'), [
    ({'periods': [10000, 10000], 'restart_weights': [1, 1]}, 'periods',
     'end at iteration 20000, before total_iter: 30000'),
    ({'periods': [20000, 20000]}, 'restart_weights', 'requires a number for each of periods: 2, got 1.'),
    ({'periods': []}, 'periods', 'expected a list of iterations'),
    ({'periods': [30000], 'gamma': 1}, 'gamma', 'is not an option'),
])
def test_cosine(scheduler, key, message):
    found = errors('train.scheduler', {'type': 'CosineAnnealingRestartLR', **scheduler})
    assert_one_error(found, f'train.scheduler.{key}', message)


def test_basicsr_stops_where_the_periods_end():
    """Why that is an error."""
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    scheduler = lr_scheduler.CosineAnnealingRestartLR(optimizer, [2, 1], [1, 1])
    optimizer.step()
    for _ in range(3):
        scheduler.step()
    with pytest.raises(TypeError):
        scheduler.step()


@pytest.mark.parametrize('key', [
    'nmae', 'train.ema_deacy', 'train.optim_g.btas', 'train.scheduler.gama', 'train.pixel_opt.img_rnage', 'val.sufix',
    'val.metrics.psnr.crop_boarder', 'path.pretrain_network_h', 'logger.print_frq', 'logger.wandb.projct',
    'dist_params.prot', 'datasets.train.gt_sise', 'datasets.val.dataroot_q', 'network_g.num_feats',
    'datasets.val.on_bad_record', 'path.models', 'datasets.train.phase', 'is_train', 'datasets.val.io_backend.path',
])
@pytest.mark.parametrize('model_type', ['UDLModel', 'SRModel'])
def test_unknown_key(key, model_type):
    found = errors(key, 1, model_type=model_type)
    assert_one_error(found, key, 'is not an option')
    if key.split('.')[-1] not in ('on_bad_record', 'models', 'phase', 'is_train', 'path'):
        assert 'did you mean' in found[0].message


@pytest.mark.parametrize(('key', 'value'), [
    ('train.amp', 'bf16'), ('train.amp', 5), ('train.max_skips', 3), ('train.accumulate', 4), ('train.grad_clip', 1),
    ('val.save_best', 'psnr'), ('val.save_uncertainty', True), ('val.tile', 256), ('logger.save_keep', 2),
    ('logger.log_images', 2)])
def test_options_that_srmodel_does_not_support(key, value):
    off = {'amp': None, 'channels_last': False, 'compile': False, 'accumulate': 1}  # as in the files in options/
    assert errors('train', {**example()['train'], **off}, model_type='SRModel') == []
    assert errors(key, value, model_type='SRModel') == [
        (tuple(key.split('.')), 'model_type: SRModel does not support it; write model_type: UDLModel.')]


def test_other_models():
    """They may have options of their own. What BasicSR's training itself reads, and where it writes, is checked."""
    others = {'model_type': 'ESRGANModel', 'network_d': {'type': 'x'}}
    assert errors('train.gan_opt', {'type': 'GANLoss'}, **others) == []
    assert errors('path.pretrain_network_d', None, **others) == []
    assert errors('train.optim_g', ..., **others) == []
    assert_one_error(errors('path.elsewhere', '/tmp', **others), 'path.elsewhere', 'is not an option')
    assert_one_error(errors('name', '../x', **others), 'name', PLAIN)
    assert_one_error(errors('train.total_iter', ..., **others), 'train.total_iter', 'is missing.')


@pytest.fixture
def own_model(monkeypatch):
    cls = type('OwnModel', (UDLModel,), {'extra_options': {
        'train': {'my_weight': float, 'my_loss': dict}, 'val': {'my_sizes': list},
        'logger': {'my_name': str, 'my_flag': bool}}})
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'OwnModel', cls)
    return cls


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('train.my_weight', 0.5, None), ('train.my_weight', None, None), ('train.my_loss', {'type': 'x'}, None),
    ('val.my_sizes', [1, 'x'], None), ('logger.my_flag', True, None), ('train.amp', 'bf16', None),
    ('logger.save_keep', 2, None),
    ('train.my_weight', '1e-4', "expected a number, got the string '1e-4' (YAML 1.1 reads it so; write 1.0e-4)."),
    ('train.my_loss', 5, 'expected a mapping of options, got 5.'), ('val.my_sizes', 5, 'expected a list, got 5.'),
    ('logger.my_name', 5, "expected a string, got 5 (write '5')"), ('logger.my_flag', 1, FLAG),
    ('train.my_wieght', 1, "is not an option (did you mean 'my_weight'?). The options are: "),
    ('val.my_weight', 1, 'is not an option'), ('train.ema_deacy', 1, "did you mean 'ema_decay'"),
    ('train.optim_g', ..., 'is missing.'), ('val.save_best', 'psrn', "did you mean 'psnr'"),
    ('train.pixel_opt', ..., 'is missing: there is no loss')])
def test_options_of_an_own_model(own_model, key, value, message):
    found = errors(key, value, model_type='OwnModel')
    if message is None:
        assert found == []
        assert validate_sections({**example(), 'model_type': 'OwnModel'}) == []
    else:
        assert_one_error(found, key, message)


@pytest.mark.parametrize('declared', [
    {'network_g': {'x': int}}, {'train': {'amp': str}}, {'train': {'x': 'float'}}, {'train': {'x': [float]}}])
def test_wrong_declaration_of_an_own_model(own_model, declared):
    own_model.extra_options = declared
    assert_one_error(errors('train.amp', 'bf16', model_type='OwnModel'), 'model_type', 'OwnModel.extra_options: ')


def test_options_of_an_own_model_belong_to_it_alone(own_model):
    assert_one_error(errors('train.my_weight', 1), 'train.my_weight', 'is not an option')


@pytest.mark.parametrize('model_type', ['UDLModel', 'SRModel', 'OwnModel'])
def test_gan_is_one_error(own_model, model_type):
    opt = {**example(), 'model_type': model_type, 'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3}}
    opt['train'].update(gan_opt={'type': 'GANLoss'}, optim_d={'type': 'Adam', 'lr': 1}, net_d_iters=1)
    opt['path'].update(pretrain_network_d=None, param_key_d='params')
    assert_one_error(validate_file(opt, True), 'network_d', 'GAN training is not supported; delete network_d and its')
    del opt['network_d']
    assert len(validate_file(opt, True)) == 5


def test_other_datasets():
    other = {'name': 'x', 'type': 'RealESRGANDataset', 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'blur': 3}
    assert errors('datasets.train', {**other, 'on_bad_record': 'skip'}) == []
    assert_one_error(errors('datasets.train', {**other, 'batch_size_per_gpu': 0}), 'datasets.train.batch_size_per_gpu',
                     INTEGER)
    assert_one_error(errors('datasets.val', {**other, 'name': 'a/b'}), 'datasets.val.name', PLAIN)


@pytest.mark.parametrize(('key', 'value', 'blamed', 'message'), [
    ('train', {'ema_deacy': 1}, 'train.ema_deacy', 'is not an option'), ('val', ..., 'val', 'is missing.'),
    ('val.suffix', ..., 'val.suffix', 'is missing; write suffix: ~'), ('val.val_freq', 0, 'val.val_freq', INTEGER),
    ('datasets.train', {}, 'datasets.train', 'is not a phase of a test')])
def test_files_of_tests(key, value, blamed, message):
    assert_one_error(errors(key, value, 'test'), blamed, message)


def test_unused_sections_of_a_test():
    assert errors('train', {'ema_decay': 0.9}, 'test') == []
    assert errors('logger', {}, 'test') == []


def test_dicts_made_by_hand_may_lack_keys():
    opt = {key: value for key, value in example().items() if key in ('model_type', 'network_g', 'path')}
    opt = {**opt, 'datasets': {}, 'train': {'optim_g': {'type': 'Adam', 'lr': 1}}, 'is_train': True, 'dist': False}
    opt['path'] = {**opt['path'], 'models': 'x'}
    assert validate_sections(opt) == []
    opt['train']['ema_deacy'] = opt['train']['ema_decay'] = 1
    assert [error.path for error in validate_sections(opt)] == [('train', 'ema_decay'), ('train', 'ema_deacy')]


JUNK = [5, -1.5, 'x', '', True, None, [], [[1]], {}, {'type': ['x']}, {'type': None}]


def key_paths(section, above=()):
    for key, value in section.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from key_paths(value, (*above, key))


@pytest.mark.parametrize('junk', JUNK, ids=repr)
def test_no_value_makes_the_checks_fail(junk):
    """Each key in turn: no exception, and at most one error for each path."""
    for keys in key_paths(example()):
        opt = example()
        opt['datasets'] = {phase: opt['datasets'][phase] for phase in ('train', 'val')} if keys[0] == 'datasets' else {
            'train': opt['datasets']['train']}
        section = opt
        for key in keys[:-1]:
            section = section.get(key, {})
        section[keys[-1]] = junk
        known = validate_file(opt, True)
        assert len({error.path for error in known}) == len(known)
        found = validate_options(complete_options(opt, '.', True), known)
        assert found[:len(known)] == known
        assert len(set(found)) == len(found)
