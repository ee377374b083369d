"""Reads the reference implementation's released EDSR files: their key names are mapped to ours.

Step 1 (`edsr_s_x4_step1.pt`): `head.0`, `body.N.body.0|2`, `body.16`, `tail.0.0|2`, `tail.1`, `var_conv.0|2|4`. Step 2:
the same twice, under `EDSR_var.` and `EDSR_U.`. These names are facts taken from the authors' code.
"""
from __future__ import annotations

import re

from udl_plugin.archs.edsr_arch import infer_edsr_config
from udl_plugin.checkpoints.safe_load import PathLike
from udl_plugin.checkpoints.state_dict import StateDict
from udl_plugin.errors import UserError

# options that give what the authors' code computes
REFERENCE_CONFIG = {'type': 'EDSR', 'res_scale': 0.1, 'img_range': 255.0, 'rgb_mean': [0, 0, 0]}
NAMES = (  # what is replaced in a name, one after the other
    (r'^EDSR_var\.', 'var_net.'),
    (r'^EDSR_U\.', 'sr_net.'),
    (r'\bhead\.0\.', 'conv_first.'),
    (r'\bbody\.(\d+)\.body\.0\.', r'body.\1.conv1.'),
    (r'\bbody\.(\d+)\.body\.2\.', r'body.\1.conv2.'),
    (r'\bbody\.\d+\.(?=weight$|bias$)', 'conv_after_body.'),
    (r'\btail\.0\.', 'upsample.'),
    (r'\btail\.1\.', 'conv_last.'),
)


def is_reference(state_dict: StateDict) -> bool:
    """Whether the names are those of the released files, of either step."""
    return any(f'{prefix}head.0.weight' in state_dict for prefix in ('', 'EDSR_var.', 'EDSR_U.'))


def from_reference(state_dict: StateDict, path: PathLike) -> StateDict:
    """Renames the tensors of a released file; drops `EDSR_U.var_conv`, which step 2 carries and does not use.

    Raises:
        UserError: the layers are not those of an EDSR.
    """
    converted = {}
    for name, value in state_dict.items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if not name.startswith('sr_net.var_conv.'):
            converted[name] = value
    if infer_edsr_config(converted) is None:
        raise UserError(f"'{path}' looks like a file of the reference implementation, but its layers are not those of "
                        'an EDSR.')
    return converted
