"""Mappings that BasicSR passes to a class as keyword arguments, checked against its signature."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

import torch
from pydantic import TypeAdapter, ValidationError

from udl_plugin.config import value_types as t
from udl_plugin.config.problems import KeyPath, OptionError
from udl_plugin.errors import UserError, did_you_mean, explain_unknown_kwarg, lookup_class

Adapters = Mapping[str, TypeAdapter[Any]]

OPTIMIZERS = {'Adam': torch.optim.Adam}  # those that BasicSR's BaseModel knows
GIVEN = ('params', 'optimizer', 'img', 'img2', 'log_var', 'db_paths', 'client_keys')  # passed by BasicSR or the model
# what signatures do not tell
OF_OPTIMIZERS: Adapters = {'lr': TypeAdapter(t.Positive), 'betas': TypeAdapter(t.Betas),
                           'eps': TypeAdapter(t.NotNegative), 'weight_decay': TypeAdapter(t.NotNegative)}
OF_METRICS: Adapters = {'crop_border': TypeAdapter(t.CountOrNone), 'better': TypeAdapter(Optional[t.Better])}
OF_LOSSES: Adapters = {'reduction': TypeAdapter(t.Reduction), 'criterion': TypeAdapter(t.Criterion)}
OF_ANNOTATIONS: Mapping[type, TypeAdapter[Any]] = {
    bool: TypeAdapter(t.Flag), int: TypeAdapter(t.Integer), float: TypeAdapter(t.Number), str: TypeAdapter(t.Text)}
OF_DEFAULTS: Mapping[type, TypeAdapter[Any]] = {  # int takes fractions: BasicSR writes res_scale=1 of what may be 0.1
    bool: TypeAdapter(Optional[t.Flag]), int: TypeAdapter(Optional[t.Number]), float: TypeAdapter(Optional[t.Number]),
    str: TypeAdapter(Optional[t.Text]), list: TypeAdapter(Optional[t.Numbers])}


def build_loss(loss_opt: Mapping[str, Any], where: str = '') -> Any:
    """An instance of one of our losses, which knows its `required_outputs`; of BasicSR's losses, the class.

    Args:
        loss_opt: With a `type`.
        where: Its key, for messages, such as `pixel_loss: `.

    Raises:
        UserError: an unknown `type`, or one that does not accept these options.
    """
    from basicsr.utils.registry import LOSS_REGISTRY
    cls = resolve_class(LOSS_REGISTRY, loss_opt, where)
    if not hasattr(cls, 'required_outputs'):
        return cls
    try:
        return cls(**{key: value for key, value in loss_opt.items() if key != 'type'})
    except UserError as err:
        raise UserError(f'{where}{err}') from err


def scale_key(network: Callable) -> str:
    """What a network class calls its scale: `upscale`, or `scale` as RRDBNet does."""
    return 'upscale' if 'upscale' in inspect.signature(network).parameters else 'scale'


def resolve_class(registry: Any, options: Mapping[str, Any], where: str = '') -> Any:
    """The class that `options['type']` names.

    Args:
        registry: One of BasicSR's, or a dict.
        options: Keyword arguments of the class, and its `type`.
        where: Their key, for messages, such as `network_g: `.

    Raises:
        UserError: there is no such class; suggests the nearest name.
    """
    name = options.get('type')
    if name is None:
        raise UserError(f'{where}type: is missing.')
    if not isinstance(registry, dict):
        return lookup_class(registry, name, f'{where}type: ')
    if str(name) not in registry:
        raise UserError(f"{where}type: there is no '{name}'{did_you_mean(name, registry)}; write one of "
                        f'{", ".join(registry)}.')
    return registry[str(name)]


def check_class_options(registry: Any, options: Mapping[str, Any], path: KeyPath = (),
                        adapters: Adapters | None = None) -> Iterator[OptionError]:
    """Yields unknown, missing and wrong options of a class.

    Args:
        registry: Where the class is.
        options: Its keyword arguments, and a `type`. Under `backbone`, options of another class of the registry.
        path: Of `options`.
        adapters: Types of options, where the signature does not tell them.
    """
    try:
        cls = resolve_class(registry, options)
    except UserError as err:
        yield OptionError((*path, 'type'), str(err).removeprefix('type: '))
        return
    parameters = inspect.signature(cls).parameters
    for name, value in options.items():
        if name == 'type':
            continue
        reason = explain_unknown_kwarg(cls, name, GIVEN)
        if reason:
            yield OptionError((*path, name), reason)
        elif name == 'backbone' and name in parameters:
            if isinstance(value, Mapping):
                yield from check_class_options(registry, value, (*path, name))
            else:
                yield OptionError((*path, name), t.wrong_value(value, 'a mapping of options'))
        else:
            adapter = (adapters or {}).get(name) or _get_adapter(parameters.get(name))
            try:
                if adapter:
                    adapter.validate_python(value)
            except ValidationError as err:
                yield OptionError((*path, name), err.errors()[0]['msg'])
    for name, parameter in parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty \
                and name not in options and name not in GIVEN:
            advice = 'write the scale' if name == 'crop_border' else f'type: {cls.__name__} requires it'
            yield OptionError((*path, name), f'is missing; {advice}.')


def _get_adapter(parameter: inspect.Parameter | None) -> TypeAdapter[Any] | None:
    """The type of a parameter, by its annotation or else its default; None where neither tells."""
    if parameter is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return None
    annotation, default = parameter.annotation, parameter.default
    if isinstance(annotation, str):  # of a module with `from __future__ import annotations`
        annotation = {'bool': bool, 'int': int, 'float': float, 'str': str}.get(annotation)
    if isinstance(default, (list, tuple)):
        numbers = default and all(type(one) in (int, float) for one in default)
        return OF_DEFAULTS[list] if numbers else None
    return OF_ANNOTATIONS.get(annotation) or OF_DEFAULTS.get(type(default))
