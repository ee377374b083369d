"""Base network <-> networks of step 1 and step 2: their configs and the names in their state dicts.

Works on configs and state dicts alone; builds no network.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

HEAD = 'var_conv'  # key of the variance head in state dicts, as in the reference implementation
HEAD_OPTIONS = ('features', 'detach_features')  # of the networks with it, beside those of the base network
NAMED_STEPS = ('EDSR', 'DPDNN')  # base networks with registered classes for the steps, such as EDSRVar and EDSRTwo
WRAPPERS = {'step 1': ('Var', 'WithVariance'), 'step 2': ('Two', 'TwoStep')}  # suffix of NAMED_STEPS, general class


# ---- configs

def base_config(network_g: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of the base network inside that of a network of either step; another one as it is."""
    if 'backbone' in network_g:
        return network_g['backbone']
    for name in NAMED_STEPS:
        if network_g.get('type') in (f'{name}Var', f'{name}Two'):
            return {**{key: value for key, value in network_g.items() if key not in HEAD_OPTIONS}, 'type': name}
    return dict(network_g)


def wrapped_config(stage: str, base: dict[str, Any], features: str | None = None,
                   detach_features: bool = False) -> dict[str, Any]:
    """Returns the config of the network of a stage around a base network.

    Args:
        stage: `plain`, `step 1` or `step 2`.
        base: Config of the base network.
        features, detach_features: As in `WithVariance`; the latter for step 1 only.
    """
    if stage == 'plain':
        return base
    suffix, wrapper = WRAPPERS[stage]
    of_head: dict[str, Any] = {} if features is None else {'features': features}
    if detach_features:
        of_head['detach_features'] = True
    if base['type'] in NAMED_STEPS and features is None:
        return {**base, 'type': base['type'] + suffix, **of_head}
    return {'type': wrapper, 'backbone': base, **of_head}


# ---- state dicts

def sub_state_dict(state_dict: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Returns the tensors of one submodule, such as `sr_net`, by their names in it; an empty dict if there is none."""
    prefix = f'{name}.'
    return {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}


def base_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of the base network in a state dict of any stage: what the base network's class loads."""
    return sub_state_dict(state_dict, 'sr_net') or {name: value for name, value in state_dict.items()
                                                    if not name.startswith(f'{HEAD}.')}


def network_stage(state_dict: Mapping[str, Tensor]) -> str:
    """Returns the stage of the network that a state dict is from: `plain`, `step 1` or `step 2`."""
    if sub_state_dict(state_dict, 'sr_net'):
        return 'step 2'
    return 'step 1' if sub_state_dict(state_dict, HEAD) else 'plain'
