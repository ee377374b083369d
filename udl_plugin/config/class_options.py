"""Checks sections that are passed to a class as keyword arguments against its signature."""
import inspect
from typing import Literal, Optional

import torch
from pydantic import (
    StrictInt,
    ValidationError,
)

from udl_plugin.config.problems import OptionError, missing_section, wrong_value
from udl_plugin.config.value_types import (
    Betas,
    Better,
    CountOrNone,
    Flag,
    NotNegative,
    Number,
    Numbers,
    Positive,
    Text,
    adapters,
    constrained,
)
from udl_plugin.errors import UserError, check_kwargs, did_you_mean, lookup_class


def build_loss(section, where):
    """The loss that a section of a yml describes: an instance of one of ours, which knows its `required_outputs`; the class of
    one of BasicSR's, which needs nothing.

    Raises:
        UserError: there is none of that name, or not with these options.
    """
    from basicsr.utils.registry import LOSS_REGISTRY
    cls = resolve_class(LOSS_REGISTRY, section, where)
    if not hasattr(cls, 'required_outputs'):
        return cls
    try:
        return cls(**{key: value for key, value in section.items() if key != 'type'})
    except UserError as err:
        raise UserError(f'{where}{err}') from err


def scale_key(network):
    """What a class of network calls its scale: `upscale`, or as RRDBNet does."""
    return 'upscale' if 'upscale' in inspect.signature(network).parameters else 'scale'


OPTIMIZERS = {'Adam': torch.optim.Adam}  # those that upstream's BaseModel knows; their options: as the class has them
# what the signature does not tell of the options of optimizers and metrics
OF_OPTIMIZERS = adapters(lr=Positive, betas=Betas, eps=NotNegative, weight_decay=NotNegative)
OF_METRICS = adapters(crop_border=CountOrNone, better=Optional[Better])
OF_ANNOTATIONS = adapters(bool=Flag, int=constrained(StrictInt, 'a whole number'), float=Number, str=Text)
OF_LOSSES = adapters(reduction=constrained(Literal['mean', 'sum', 'none'], 'mean, sum or none'),
                      criterion=constrained(Literal['l1', 'fro'], 'l1 or fro'))  # upstream's l2 wants what PyTorch lacks
# upstream writes res_scale=1 of what may be 0.1
OF_DEFAULTS = adapters(bool=Optional[Flag], int=Optional[Number], float=Optional[Number], str=Optional[Text],
                        numbers=Optional[Numbers])
# by BasicSR or the model, and no options
GIVEN = ('params', 'optimizer', 'img', 'img2', 'log_var', 'db_paths', 'client_keys')


# ---- sections that are handed to a class


def resolve_class(registry, section, where, key='type'):
    """The class that `section[key]` names.

    Args:
        registry (Registry | dict): Of BasicSR, or name to class.
        where (str): Where the section stands, such as `network_g: `.

    Raises:
        UserError: there is none of that name; says what may have been meant.
    """
    name = section.get(key)
    if name is None:
        raise UserError(f'{where}{key}: is missing.')
    if not isinstance(registry, dict):
        return lookup_class(registry, name, f'{where}{key}: ')
    if str(name) not in registry:
        raise UserError(f"{where}{key}: there is no '{name}'{did_you_mean(name, registry)}; write one of "
                         f'{", ".join(registry)}.')
    return registry[str(name)]


def check_class_options(registry, section, place, kinds=None):
    """Yields what is wrong with a section that is handed to a class: names, those that are missing, and types.

    Args:
        registry (Registry | dict): Where the class is.
        section (dict): With a `type`.
        place (str): Where it stands, such as `network_g`.
        kinds (dict): Option to a TypeAdapter, where the class itself does not tell.
    """
    try:
        cls = resolve_class(registry, section, f'{place}: ')
    except UserError as err:
        yield OptionError(f'{place}: type', str(err))
        return
    parameters = inspect.signature(cls).parameters
    for name, value in section.items():
        if name == 'type':
            continue
        here = f'{place}: {name}'
        try:
            check_kwargs(cls, [name], f'{place}: ', GIVEN)
        except UserError as err:
            yield OptionError(here, str(err))
            continue
        if name == 'backbone' and name in parameters:
            yield from check_class_options(registry, value, here) if isinstance(value, dict) else [missing_section(here)]
        else:
            yield from _type_problems((kinds or {}).get(name) or _adapter_of(parameters.get(name)), value, here)
    for name, parameter in parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty \
                and name not in section and name not in GIVEN:
            advice = 'write the scale' if name == 'crop_border' else f'type: {cls.__name__} needs it'
            yield OptionError(f'{place}: {name}', f'{place}: {name}: is missing; {advice}.')


def _type_problems(kind, value, place):
    if kind is None:
        return
    try:
        kind.validate_python(value)
    except ValidationError as err:
        yield wrong_value(place, value, err.errors()[0]['msg'])


def _adapter_of(parameter):
    """What a parameter takes, by its annotation or else its default; None where neither tells."""
    if parameter is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return None
    annotation, default = parameter.annotation, parameter.default
    if annotation in (bool, int, float, str):
        return OF_ANNOTATIONS[annotation.__name__]
    if isinstance(default, (list, tuple)) and default and all(type(one) in (int, float) for one in default):
        return OF_DEFAULTS['numbers']
    return OF_DEFAULTS.get(type(default).__name__)
