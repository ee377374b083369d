"""What is wrong in a config, before training: mmengine finds it late, with a traceback, or reads over it."""
import inspect

from mmengine.registry import (
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

# besides the arguments of `Runner`, what it looks for in the config
READ = {*inspect.signature(Runner.__init__).parameters, *inspect.signature(FlexibleRunner.__init__).parameters,
        'activation_checkpointing', 'compile', 'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg',
        'runner_type', 'sync_bn'} - {'self', 'cfg', 'launcher'}


def unread(cfg_options):
    """Those of `--cfg-options` that no runner reads; a variable of a base, such as `scale`, is in its place by then.

    Yields:
        str: A message each.
    """
    for key in cfg_options:
        if key.split('.')[0] not in READ:
            yield f"--cfg-options: '{key}' is not an option: a runner reads {', '.join(sorted(READ))}."


def section_problems(cfg):
    """What has no such type, or is no argument of it, below the sections that every training has: mmengine would end
    with a traceback, of some only when training has begun.

    Yields:
        str: A message each.
    """
    if 'model' not in cfg:
        yield 'model: is missing.'
    sections = [(MODELS, 'model', cfg.get('model')), (OPTIM_WRAPPERS, 'optim_wrapper', cfg.get('optim_wrapper')),
                (LOOPS, 'train_cfg', cfg.get('train_cfg'))]
    if cfg.get('optim_wrapper'):
        sections.append((OPTIMIZERS, 'optim_wrapper.optimizer', cfg.optim_wrapper.get('optimizer')))
    for name in ('train_dataloader', 'val_dataloader'):
        sections.append((DATASETS, f'{name}.dataset', (cfg.get(name) or {}).get('dataset')))
    sections += [(HOOKS, f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items()]
    for registry, name in ((HOOKS, 'custom_hooks'), (METRICS, 'val_evaluator'), (PARAM_SCHEDULERS, 'param_scheduler')):
        listed = cfg.get(name) or []
        sections += [(registry, f'{name}.{number}', section) for number, section in
                     enumerate(listed if isinstance(listed, (list, tuple)) else [listed])]
    for registry, where, section in sections:
        if isinstance(section, dict):
            yield from _problems_of(registry, where, section)


def _problems_of(registry, where, section):
    kind = section.get('type')
    if kind is None:
        if where.startswith(('default_hooks', 'custom_hooks')):
            yield f'{where}: type is missing.'
        return
    cls = registry.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        yield f"{where}: type: there is no '{kind}' in mmengine's {registry.name}s."
        return
    options = inspect.signature(cls).parameters
    if not any(option.kind is option.VAR_KEYWORD for option in options.values()):
        beside = {'type', '_scope_', 'constructor', 'paramwise_cfg', 'priority', 'convert_to_iter_based'}
        for key in section.keys() - options.keys() - beside:
            yield f"{where}: '{key}' is not an option of {cls.__name__}, which has: {', '.join(options)}."
