"""Mappings that BasicSR passes to a class as keyword arguments, checked against its signature."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import TypeAdapter, ValidationError

from udl_plugin.config import value_types as t
from udl_plugin.config.problems import KeyPath, OptionError
from udl_plugin.errors import UserError, explain_unknown_kwarg, lookup_class

Adapters = Mapping[Any, TypeAdapter[Any]]

# those that BasicSR's BaseModel knows
OPTIMIZERS = {'Adam': torch.optim.Adam}
SCHEDULERS = {'MultiStepLR': MultiStepRestartLR, 'MultiStepRestartLR': MultiStepRestartLR,
              'CosineAnnealingRestartLR': CosineAnnealingRestartLR}
GIVEN = ('params', 'optimizer', 'img', 'img2', 'log_var', 'db_paths', 'client_keys')  # passed by BasicSR or the model
REQUIRED = ('lr',)  # by BasicSR, although Adam has a default
# what signatures do not tell
OF_OPTIMIZERS: Adapters = {'lr': TypeAdapter(t.Positive), 'betas': TypeAdapter(t.Betas),
                           'eps': TypeAdapter(t.NotNegative), 'weight_decay': TypeAdapter(t.NotNegative)}
OF_SCHEDULERS: Adapters = {'milestones': TypeAdapter(t.Milestones), 'gamma': TypeAdapter(t.Positive),
                           'restarts': TypeAdapter(t.Milestones), 'periods': TypeAdapter(t.Periods),
                           'eta_min': TypeAdapter(t.NotNegative)}
OF_METRICS: Adapters = {'crop_border': TypeAdapter(t.CountOrNone), 'better': TypeAdapter(Optional[t.Better])}
OF_LOSSES: Adapters = {'reduction': TypeAdapter(t.Reduction), 'criterion': TypeAdapter(t.Criterion)}
OF_CRITERIA: Adapters = {'reduction': TypeAdapter(t.NoReduction)}
OF_ANNOTATIONS: Adapters = {  # as types, and as strings in a module with `from __future__ import annotations`
    name: TypeAdapter(value_type) for cls, value_type in ((bool, t.Flag), (int, t.Integer), (float, t.Number),
                                                          (str, t.Text)) for name in (cls, cls.__name__)}
OF_DEFAULTS: Adapters = {  # int takes fractions: BasicSR writes res_scale=1 of what may be 0.1
    bool: TypeAdapter(Optional[t.Flag]), int: TypeAdapter(Optional[t.Number]), float: TypeAdapter(Optional[t.Number]),
    str: TypeAdapter(Optional[t.Text]), list: TypeAdapter(Optional[t.Numbers]), tuple: TypeAdapter(Optional[t.Numbers])}


def is_udl_model(model_type: Any) -> bool:
    """Whether a `model_type` is UDLModel, or a registered class derived from it."""
    if not isinstance(model_type, str) or model_type not in MODEL_REGISTRY:
        return False
    cls = MODEL_REGISTRY.get(model_type)
    return isinstance(cls, type) and issubclass(cls, MODEL_REGISTRY.get('UDLModel'))


def scale_key(network: Callable) -> str:
    """What a network class calls its scale: `upscale`, or `scale` as RRDBNet does."""
    return 'upscale' if 'upscale' in inspect.signature(network).parameters else 'scale'


def check_class_options(registry: Any, options: Mapping[str, Any], path: KeyPath = (),
                        adapters: Adapters | None = None) -> Iterator[OptionError]:
    """Yields unknown, missing and wrong options of a class.

    Args:
        registry: Where the class is: one of BasicSR's, or a dict.
        options: Its keyword arguments, and a `type`. Under `backbone`, and UDL's `criterion`, options of another class
            of the registry.
        path: Of `options`.
        adapters: Types of options, where the signature does not tell them.
    """
    try:
        if options.get('type') is None:
            raise UserError('is missing.')
        cls = lookup_class(registry, options['type'])
    except UserError as err:
        names = f' Write one of {", ".join(registry)}.' if isinstance(registry, dict) else ''
        yield OptionError((*path, 'type'), f'{err}{names}')
        return
    parameters = inspect.signature(cls).parameters
    for name, value in options.items():
        if name == 'type':
            continue
        reason = explain_unknown_kwarg(cls, name, GIVEN)
        if reason and name == 'better' and registry is METRIC_REGISTRY:
            reason = f'is passed to {cls.__name__} as well, by BasicSR; end its parameters with **kwargs.'
        if reason:
            yield OptionError((*path, name), reason)
        elif name == 'backbone' and name in parameters:
            yield from _check_nested(registry, value, (*path, name))
        elif name == 'criterion' and name in parameters and parameters[name].default is None:  # not PerceptualLoss's
            if value is not None:
                yield from _check_nested(registry, value, (*path, name), OF_CRITERIA)
                if isinstance(value, Mapping) and 'reduction' not in value:
                    yield OptionError((*path, name, 'reduction'), 'is missing; write none: each pixel is weighted.')
        else:
            adapter = (adapters or {}).get(name) or _get_adapter(parameters.get(name), value, registry is ARCH_REGISTRY)
            try:
                if adapter:
                    adapter.validate_python(value)
            except ValidationError as err:
                yield OptionError((*path, name), err.errors()[0]['msg'])
    for name, parameter in parameters.items():
        is_required = parameter.default is parameter.empty or name in REQUIRED
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and is_required and name not in (*options, *GIVEN):
            advice = 'write the scale' if name == 'crop_border' else f'type: {cls.__name__} requires it'
            yield OptionError((*path, name), f'is missing; {advice}.')


def _check_nested(registry: Any, options: Any, path: KeyPath,
                  adapters: Adapters | None = None) -> Iterator[OptionError]:
    if isinstance(options, Mapping):
        yield from check_class_options(registry, options, path, adapters)
    else:
        yield OptionError(path, t.wrong_value(options, 'a mapping of options'))


def _get_adapter(parameter: inspect.Parameter | None, value: Any, is_network: bool) -> TypeAdapter[Any] | None:
    """The type of a parameter, by its annotation or else its default; None where neither tells.

    The default of a network's option says little about a list: where it is 8, [8, 8] may work, too.
    """
    if parameter is None or (value is None and parameter.default is None):
        return None
    default = parameter.default
    if isinstance(default, (list, tuple)) and not (default and all(type(one) in (int, float) for one in default)):
        return None
    of_default = None if is_network and isinstance(value, list) else OF_DEFAULTS.get(type(default))
    return OF_ANNOTATIONS.get(parameter.annotation) or of_default
