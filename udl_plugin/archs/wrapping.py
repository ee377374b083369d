"""Base network <-> step 1 and step 2: the config and the names in the state dict. Needs no network to be built."""





OWN_STEPS = ('EDSR', 'DPDNN')  # networks whose steps have names of their own, such as EDSRVar and EDSRTwo


def base_config(network_g):
    """`network_g` of the plain network in a network of either step."""
    if 'backbone' in network_g:
        return network_g['backbone']
    for name in OWN_STEPS:
        if network_g.get('type') in (f'{name}Var', f'{name}Two'):
            return {**{key: value for key, value in network_g.items() if key != 'features'}, 'type': name}
    return network_g


def wrapped_config(kind, plain, features=None):
    """`network_g` of that kind of network around the plain one; `features` as in `WithVariance`."""
    if kind == 'plain':
        return plain
    step = ('step 1', 'step 2').index(kind)
    if plain['type'] in OWN_STEPS and features is None:
        return {**plain, 'type': plain['type'] + ('Var', 'Two')[step]}
    section = {'type': ('WithVariance', 'TwoStep')[step], 'backbone': plain}
    return section if features is None else {**section, 'features': features}


def sub_state_dict(state_dict, name):
    """The tensors of one of a `TwoStep`'s networks, `sr_net` or `var_net`; none where there is no such branch."""
    prefix = f'{name}.'
    return {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}


def base_state_dict(state_dict):
    """The tensors of the plain SR network inside a checkpoint of either step: what upstream's own arch loads."""
    return sub_state_dict(state_dict, 'sr_net') or {name: value for name, value in state_dict.items()
                                            if not name.startswith('var_conv.')}


def network_stage(state_dict):
    if sub_state_dict(state_dict, 'sr_net'):
        return 'step 2'
    return 'step 1' if sub_state_dict(state_dict, 'var_conv') else 'plain'
