"""What is wrong in a config, before training: mmengine finds it late, with a traceback, or reads over it."""
import difflib
import inspect

from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
)
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader

from udl_plugin.config.value_types import NUMBER
from udl_plugin.errors import did_you_mean

OF_ALL = {'custom_imports', 'runner_type'}
# besides the arguments of each runner, what it looks for in the config
READ_BY = {
    'Runner': {*inspect.signature(Runner.__init__).parameters, 'activation_checkpointing', 'compile',
               'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', *OF_ALL},
    'FlexibleRunner': {*inspect.signature(FlexibleRunner.__init__).parameters, 'init_weights_for_test_or_val', *OF_ALL}}
READ = set().union(*READ_BY.values()) - {'self', 'cfg', 'launcher'}

IN_LOADERS = {*inspect.signature(DataLoader.__init__).parameters, 'num_batch_per_epoch',
              'disable_subprocess_warning'} - {'self', 'shuffle'}
BESIDE = {'type', '_scope_', 'constructor', 'paramwise_cfg', 'priority', 'convert_to_iter_based'}
GIVEN = {LOOPS: {'runner', 'dataloader', 'evaluator'}, OPTIMIZERS: {'params'},
         PARAM_SCHEDULERS: {'optimizer', 'param_name'}, DATA_SAMPLERS: {'dataset', 'seed', 'sampler', 'batch_size'}}
DEFAULTS = ('optim_wrapper', 'train_cfg', 'val_cfg', 'test_cfg')  # whose type need not be said


def unknown_overrides(cfg_options):
    """Those of `--cfg-options` that no runner reads; a variable of a base, such as `scale`, is in its place by then.

    Yields:
        str: A message each.
    """
    for key in cfg_options:
        if key.split('.')[0] not in READ:
            yield f"--cfg-options: '{key}' is not an option: a runner reads {', '.join(sorted(READ))}."


def name_problems(cfg):
    """What stands at the top of a config and is not read: by this runner, or by none but for a slip. A config's own
    variables stand there too.

    Yields:
        str: A message each.
    """
    kind = cfg.get('runner_type') or 'Runner'
    for key, value in cfg.items():
        near = difflib.get_close_matches(key, READ, n=1, cutoff=0.8)
        if key in READ and key not in READ_BY.get(kind, READ) and value is not None:
            other, = READ_BY.keys() - {kind}
            yield f"{key}: is read by runner_type = '{other}', and not by {kind}."
        elif near and key not in READ and key != 'launcher':
            yield f"{key}: nothing reads it (did you mean '{near[0]}'?)."


def section_problems(cfg):
    """What has no such type, is no argument of it, or is missing, below the sections of a training and a test: mmengine
    would end with a traceback, of some only when training has begun.

    Yields:
        str: A message each.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    sections = [(MODELS, 'model', cfg.get('model')), (OPTIM_WRAPPERS, 'optim_wrapper', wrapper),
                (OPTIMIZERS, 'optim_wrapper.optimizer', wrapper.get('optimizer'))]
    sections += [(LOOPS, name, cfg.get(name)) for name in ('train_cfg', 'val_cfg', 'test_cfg')]
    sections += [(HOOKS, f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items()]
    for registry, name in ((HOOKS, 'custom_hooks'), (METRICS, 'val_evaluator'), (METRICS, 'test_evaluator'),
                           (PARAM_SCHEDULERS, 'param_scheduler')):
        listed = cfg.get(name) or []
        if isinstance(listed, dict):
            listed = listed.get('metrics', [listed])  # of an `Evaluator`
        sections += [(registry, f'{name}.{number}', section) for number, section in
                     enumerate(listed if isinstance(listed, (list, tuple)) else [listed])]
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if isinstance(cfg.get(name), dict):
            yield from _loader_problems(name, cfg[name], cfg.get('model') or {})
            sections += [(DATA_SAMPLERS, f'{name}.{key}', cfg[name].get(key)) for key in ('sampler', 'batch_sampler')]
            sections += [(DATASETS, *found) for found in _datasets(f'{name}.dataset', cfg[name].get('dataset'))]
    for registry, where, section in sections:
        if isinstance(section, dict) and (section or where not in DEFAULTS):
            yield from _problems_of(registry, where, section)


def _loader_problems(name, loader, model):
    for key in loader.keys() - IN_LOADERS:
        yield f"{name}: '{key}' is not an option of a loader{did_you_mean(key, IN_LOADERS)}."
    for key in ('dataset', 'sampler'):
        if key not in loader:
            yield f'{name}: {key} is missing.'
    batch = loader.get('batch_size', 1)
    if not isinstance(batch, int) or batch < 1:
        yield f'{name}: batch_size is a number of images, not {batch}.'
    if model.get('type') != 'UDLRestorer' or model.get('data_preprocessor'):
        return
    collate = loader.get('collate_fn', {'type': 'pseudo_collate'})  # as mmengine has it
    if isinstance(collate, dict) and collate.get('type') == 'pseudo_collate':
        yield f"{name}: collate_fn: write dict(type='default_collate'): UDLRestorer takes batches, not lists."


def _datasets(where, section):
    """The sections of data sets, and of those in mmengine's wrappers."""
    if not isinstance(section, dict):
        return
    yield where, section
    if section.get('type') in DATASETS.module_dict.keys() - {'BasicSRDataset'}:  # whose `dataset` is BasicSR's
        yield from _datasets(f'{where}.dataset', section.get('dataset'))
        for number, part in enumerate(section.get('datasets') or ()):
            yield from _datasets(f'{where}.datasets.{number}', part)


def _problems_of(registry, where, section):
    kind = section.get('type')
    if kind is None:
        if where not in DEFAULTS:
            yield f'{where}: type is missing.'
        return
    cls = registry.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        near = did_you_mean(kind, registry.module_dict)
        yield f"{where}: type: there is no '{kind}' in mmengine's {registry.name}s{near}."
        return
    for key, value in section.items() if registry in (OPTIMIZERS, PARAM_SCHEDULERS, LOOPS) else ():
        if isinstance(value, str) and NUMBER.fullmatch(value):
            yield f"{where}: {key}: '{value}' is a text; write {value.strip()}."
    options, takes_more = _options(cls)
    for key in section.keys() - options.keys() - BESIDE:
        near = did_you_mean(key, options)
        if near or not takes_more:
            yield f"{where}: '{key}' is not an option of {cls.__name__}{near}, which has: {', '.join(options)}."
    for key, option in options.items():
        if option.default is option.empty and key not in section.keys() | GIVEN.get(registry, set()):
            yield f'{where}: {key} is missing, an option of {cls.__name__}.'


def _options(cls):
    """The options of a class by name, and whether it takes others. mmengine's and ours hand `**kwargs` to the class
    that they extend."""
    options, takes_more = {}, False
    known = inspect.isclass(cls) and cls.__module__.startswith(('mmengine.', 'udl_plugin.'))
    for owner in cls.__mro__[:-1] if known else [cls]:
        if known and '__init__' not in vars(owner):
            continue
        own = inspect.signature(owner).parameters.values()
        takes_more = any(option.kind is option.VAR_KEYWORD for option in own)
        options.update({option.name: option for option in own if option.kind not in (
            option.VAR_KEYWORD, option.VAR_POSITIONAL) and option.name not in options})
        if not takes_more:
            break
    return options, takes_more
