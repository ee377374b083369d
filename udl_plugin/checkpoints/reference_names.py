"""Reads the reference implementation's released EDSR files: their key names are mapped to ours.

Step 1 (`edsr_s_x4_step1.pt`): `head.0`, `body.N.body.0|2`, `body.16`, `tail.0.0|2`, `tail.1`, `var_conv.0|2|4`. Step 2:
the same twice, under `EDSR_var.` and `EDSR_U.`. These names are facts taken from the authors' code.
"""
from __future__ import annotations

import re

import torch

from udl_plugin.archs.wrapping import sub_state_dict
from udl_plugin.checkpoints.safe_load import PathLike
from udl_plugin.checkpoints.state_dict import StateDict
from udl_plugin.errors import UserError

# options that give what the authors' code computes
REFERENCE_CONFIG = {'type': 'EDSR', 'res_scale': 0.1, 'img_range': 255.0, 'rgb_mean': [0, 0, 0]}
NAMES = (
    (r'head\.0\.', 'conv_first.'),
    (r'body\.(\d+)\.body\.0\.', r'body.\1.conv1.'),
    (r'body\.(\d+)\.body\.2\.', r'body.\1.conv2.'),
    (r'body\.\d+\.(?=weight$|bias$)', 'conv_after_body.'),
    (r'tail\.0\.', 'upsample.'),
    (r'tail\.1\.', 'conv_last.'),
    (r'var_conv\.', 'var_conv.'),
)
BRANCHES = {'EDSR_var': 'var_net', 'EDSR_U': 'sr_net'}


def is_reference(state_dict: StateDict) -> bool:
    """Whether the names are those of the released files, of either step."""
    return any(f'{prefix}head.0.weight' in state_dict for prefix in ('', *(f'{branch}.' for branch in BRANCHES)))


def from_reference(state_dict: StateDict, path: PathLike) -> tuple[StateDict, list[str]]:
    """Renames the tensors of a released file.

    Step 2 carries an unused second variance head, `EDSR_U.var_conv`, a copy of the other one. It is dropped.

    Returns:
        The state dict under our names, and a note if the dropped head is not a copy.

    Raises:
        UserError: a name that does not belong to an EDSR, two tensors for one name, or only one branch of step 2.
    """
    unknown = []

    def rename(name: str) -> str:
        for pattern, ours in NAMES:
            renamed, count = re.subn(f'^{pattern}', ours, name)
            if count:
                return renamed
        unknown.append(name)
        return name

    notes: list[str] = []
    branches = {ours: sub_state_dict(state_dict, theirs) for theirs, ours in BRANCHES.items()}
    unused = [name for name in branches['sr_net'] if name.startswith('var_conv.')]
    if any(branches.values()):
        unknown += [name for name in state_dict if not name.startswith(tuple(f'{theirs}.' for theirs in BRANCHES))]
        var_net = branches['var_net']
        if not all(name in var_net and torch.equal(branches['sr_net'][name], var_net[name]) for name in unused):
            notes.append(f"'{path}': EDSR_U.var_conv is dropped, as the network does not use it; it differs from "
                         'EDSR_var.var_conv.')
        converted = {f'{ours}.{rename(name)}': value for ours, branch in branches.items()
                     for name, value in branch.items() if not (ours == 'sr_net' and name in unused)}
    else:
        converted = {rename(name): value for name, value in state_dict.items()}
    looks_like = f"'{path}' looks like a file of the reference implementation, but"
    if unknown:
        raise UserError(f"{looks_like} has unknown tensors: {', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}.")
    if any(branches.values()) and not all(branches.values()):
        raise UserError(f"{looks_like} has only one of {', '.join(BRANCHES)}.")
    if len(converted) + len(unused) != len(state_dict):
        raise UserError(f'{looks_like} two of its layers would be the same layer of an EDSR, such as conv_after_body.')
    return converted, notes
