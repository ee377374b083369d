"""The names in the authors' released files, and ours. Facts: key names as their code has them, EDSR only.

Step 1 (`edsr_s_x4_step1.pt`): `head.0`, `body.N.body.0|2`, `body.16`, `tail.0.0|2`, `tail.1`, `var_conv.0|2|4`. Step 2:
the same twice, after `EDSR_var.` and `EDSR_U.`.
"""
import re

import torch

from udl_plugin.archs.edsr_arch import infer_edsr_config
from udl_plugin.archs.wrapping import sub_state_dict
from udl_plugin.errors import UserError
from udl_plugin.utils.plain import to_builtins

REFERENCE_CONFIG = {'type': 'EDSR', 'res_scale': 0.1, 'img_range': 255.0, 'rgb_mean': [0, 0, 0]}  # what their code computes
FROM_REFERENCE = (
    (r'head\.0\.', 'conv_first.'),
    (r'body\.(\d+)\.body\.0\.', r'body.\1.conv1.'),
    (r'body\.(\d+)\.body\.2\.', r'body.\1.conv2.'),
    (r'body\.\d+\.(?=weight$|bias$)', 'conv_after_body.'),
    (r'tail\.0\.', 'upsample.'),
    (r'tail\.1\.', 'conv_last.'),
    (r'var_conv\.', 'var_conv.'),
)
BRANCHES = {'EDSR_var': 'var_net', 'EDSR_U': 'sr_net'}


def is_reference(state_dict):
    """Whether its names are those of the authors' released files, of either step."""
    return any(f'{start}head.0.weight' in state_dict for start in ('', *(f'{theirs}.' for theirs in BRANCHES)))


def from_reference(state_dict, path):
    """The authors' names to ours.

    Their step 2 carries a second variance head, in `EDSR_U`, that nothing uses: training leaves it as it was, a copy of
    the other. It is left out; `to_authors` puts it back.

    Returns:
        tuple[dict, list[str]]: The state dict, and a note where that head is not the copy that it should be.

    Raises:
        UserError: a name that has no place in an EDSR of ours.
    """
    unknown = []

    def renamed(name):
        for pattern, ours in FROM_REFERENCE:
            new, found = re.subn(f'^{pattern}', ours, name)
            if found:
                return new
        unknown.append(name)
        return name

    parts, idle = {ours: sub_state_dict(state_dict, theirs) for theirs, ours in BRANCHES.items()}, {}
    if not any(parts.values()):
        converted, notes = {renamed(name): value for name, value in state_dict.items()}, []
    else:
        unknown += [name for name in state_dict if not name.startswith(tuple(f'{theirs}.' for theirs in BRANCHES))]
        idle = {name: value for name, value in parts['sr_net'].items() if name.startswith('var_conv.')}
        converted = {f'{ours}.{renamed(name)}': value for ours, part in parts.items() for name, value in part.items()
                     if not (ours == 'sr_net' and name in idle)}
        differ = any(name not in parts['var_net'] or not torch.equal(value, parts['var_net'][name])
                     for name, value in idle.items())
        notes = [f"'{path}': EDSR_U.var_conv is left out: nothing uses it, but it is no copy of EDSR_var.var_conv, so "
                 'that the way back gives another file.'] if differ else []
    if unknown:
        raise UserError(f"'{path}' looks like a file of the authors, but for: {', '.join(unknown[:3])}"
                         + (', ...' if len(unknown) > 3 else '') + '.')
    if any(parts.values()) and not all(parts.values()):
        raise UserError(f"'{path}' looks like step 2 of the authors, but has only one of {', '.join(BRANCHES)}.")
    if len(converted) + len(idle) != len(state_dict):
        raise UserError(f"'{path}' looks like a file of the authors, but two of its layers "
                         'are one in EDSR, such as two last ones of the body.')
    return converted, notes


def to_reference(state_dict, network_g):
    """A state dict of ours, of either step or plain, under the authors' names.

    Args:
        state_dict (dict): Name to tensor.
        network_g (dict): The section of a yml of its plain network, complete.

    Raises:
        UserError: it is no EDSR, or one that computes something else than the authors' does.
    """
    shape = infer_edsr_config(state_dict)
    if shape is None:
        raise UserError("the authors' layout is for EDSR only.")
    differing = [f'{key}: {network_g[key]}' for key, value in REFERENCE_CONFIG.items() if to_builtins(network_g[key]) != value]
    if differing:
        raise UserError(f"the authors' code computes {REFERENCE_CONFIG}, and this network has {', '.join(differing)}: under "
                         'their names it would be another network.')
    pairs = (('conv_first.', 'head.0.'), ('conv_after_body.', f'body.{shape["num_block"]}.'),
             ('upsample.', 'tail.0.'), ('conv_last.', 'tail.1.'))

    def renamed(part):
        result = {}
        for name, value in part.items():
            name = re.sub(r'^body\.(\d+)\.conv([12])\.', lambda m: f'body.{m[1]}.body.{2 * int(m[2]) - 2}.', name)
            for ours, theirs in pairs:
                if name.startswith(ours):
                    name = theirs + name[len(ours):]
            result[name] = value
        return result

    var_net, sr_net = sub_state_dict(state_dict, 'var_net'), sub_state_dict(state_dict, 'sr_net')
    if not sr_net:
        return renamed(state_dict)
    head = {name: value for name, value in var_net.items() if name.startswith('var_conv.')}
    return {f'{theirs}.{name}': value for theirs, part in (('EDSR_var', var_net), ('EDSR_U', {**sr_net, **head}))
            for name, value in renamed(part).items()}
