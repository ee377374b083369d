"""The model card of a network that is shared: what it is, how to use it, how to read its map, its scores."""
from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Union

import yaml

from udl_plugin import __version__
from udl_plugin.archs.build import get_network_class
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints.network_file import NetworkFile, find_error_loss
from udl_plugin.checkpoints.safe_load import PathLike
from udl_plugin.errors import UserError
from udl_plugin.metrics.uncertainty_metrics import describe_expected_error
from udl_plugin.utils.plain import to_builtins

Scores = Union[Mapping[str, Mapping[str, float]], str, 'os.PathLike[str]']
STAGES = {
    'plain': 'a plain network, without an uncertainty map',
    'step 1': 'step 1: with a variance head, which gives the uncertainty map',
    'step 2': 'step 2: trained with the uncertainty map of step 1, whose network is included',
}
USE = """\
This needs the package `udl_plugin` with its extra `hub`.

```python
{imports}import udl_plugin

upscaler = udl_plugin.from_pretrained({name!r})
result = upscaler.upscale('photo.png')
result.image  # the SR image, uint8 (H, W, 3), RGB
{map}```
"""
MAP = """\
`result.expected_error` is the mean absolute error that the network expects at each value, in 8-bit levels: 5 means that
the value is expected to be off by 5 of 255. It is `{formula}`, where `log_var` is the output of the variance head
(`result.log_var`), {loss}. {of}
"""


def build_model_card(file: NetworkFile, name: str, *, scores: Scores | None = None, license: str | None = None,
                     yml: str | None = None) -> str:
    """Builds a model card for the Hugging Face Hub: Markdown, after a header in YAML.

    Args:
        file: The network that is described.
        name: With which `udl_plugin.from_pretrained` finds it: `USER/NAME` on the Hub, or a folder.
        scores: Dataset to metric to value, such as `{'Set5': {'PSNR': 37.9, 'SSIM': 0.96}}`; or the path of a
            `scores.csv` of udl-compare, of whose networks the means are shown.
        license: Identifier of a license, such as `apache-2.0`; None: the card has none.
        yml: Name of the option file of its training, which lies beside the card.

    Raises:
        UserError: `scores` cannot be read.
    """
    header = {'library_name': 'udl_plugin', 'pipeline_tag': 'image-to-image',
              'tags': ['super-resolution', 'image-to-image'], **({'license': license} if license else {})}
    network_g = yaml.safe_dump({'network_g': to_builtins(file.network_g)}, sort_keys=False)
    channels, scale = file.channels_and_scale
    has_map = file.stage != 'plain'
    parts = [f'---\n{yaml.safe_dump(header, sort_keys=False)}---\n', f'# {name.rpartition("/")[2]}\n',
             f'Single image super-resolution x{scale} with {_type_of(file)}.\n',
             _table([('', ''), *_list_facts(file)]), f'```yaml\n{network_g}```\n', '## Use\n',
             USE.format(name=name, imports=_import_line(file), map=(
                 'result.expected_error  # the expected error, float32 '
                 f'(H, W, {channels}), in 8-bit levels\n' if has_map else ''))]
    if has_map:
        parts += ['## The uncertainty map\n', _describe_map(file)]
    if scores is not None:
        parts += ['## Scores\n', *_describe_scores(scores)]
    if yml is not None:
        parts += ['## Training\n', f'[{yml}]({yml}) is the option file. Its paths are those of the machine that it ran '
                  'on.\n']
    return '\n'.join(parts)


def _type_of(file: NetworkFile) -> str:
    return str(base_config(file.network_g)['type'])


def _list_facts(file: NetworkFile) -> list[tuple[str, str]]:
    channels, scale = file.channels_and_scale
    base = sum(parameter.numel() for parameter in file.base().build().parameters())
    total = sum(tensor.numel() for tensor in file.state_dict.values())
    facts = [('architecture', _type_of(file)), ('scale', f'x{scale}'),
             ('channels', f'{channels} ({"RGB" if channels == 3 else "Y"})'),
             ('parameters of the SR network', f'{base:,}'), ('values in the file', f'{total:,}'),
             ('stage', STAGES[file.stage])]
    if file.stage != 'plain':
        facts.append(('loss of the variance head', file.uncertainty_loss or 'not recorded'))
    if file.error_scale != 1:
        facts.append(('calibration of the expected error', f'times {file.error_scale:.4g}'))
    return [*facts, ('written by', f'udl_plugin {__version__}')]


def _import_line(file: NetworkFile) -> str:
    """Of the module that registers a network of the user's own; empty for those of BasicSR and this package."""
    name = _type_of(file)
    module = get_network_class(name).__module__
    if module.partition('.')[0] in ('basicsr', 'udl_plugin'):
        return ''
    return f'import {module}  # registers {name}; its folder has to be in sys.path\n'


def _describe_map(file: NetworkFile) -> str:
    loss, note = find_error_loss(file.uncertainty_loss)
    of = ('It is about the SR image of this network.' if file.stage == 'step 1' else
          'It is about the SR image of the frozen network of step 1, which is not that of step 2 in `result.image`.')
    return MAP.format(formula=describe_expected_error(loss, file.error_scale), of=of, loss=(
        'by the formula of ESU: the file does not record the loss that it was trained with' if note else
        f'trained with {loss}'))


def _describe_scores(scores: Scores) -> Iterable[str]:
    if isinstance(scores, (str, os.PathLike)):
        rows = _read_scores(scores)
        text = 'Means over the images, on Y, with the scale as the number of border pixels cropped (udl-compare).\n'
    else:
        rows, text = _tabulate_scores(scores), ''
    return _table(rows), *([text] if text else [])


def _tabulate_scores(scores: Mapping[str, Mapping[str, float]]) -> list[Sequence[str]]:
    try:
        metrics = list(dict.fromkeys(metric for values in scores.values() for metric in values))
        return [('dataset', *metrics), *((dataset, *(f'{values[metric]:.5g}' if metric in values else ''
                                                     for metric in metrics)) for dataset, values in scores.items())]
    except (AttributeError, TypeError, ValueError):
        raise UserError("scores: expected dataset to metric to number, such as {'Set5': {'PSNR': 37.9, 'SSIM': 0.96}}, "
                        "or the path of udl-compare's scores.csv.") from None


def _read_scores(path: PathLike) -> list[Sequence[str]]:
    """The rows of a table: of each network and benchmark of a `scores.csv`, the mean of each metric."""
    try:
        with open(path, newline='', encoding='utf-8') as file:
            header, *lines = csv.reader(file)
        if header[:3] != ['network', 'benchmark', 'image'] or not header[3:] or not lines:
            raise ValueError
        groups: dict[tuple[str, ...], list[list[float]]] = {}
        for line in lines:
            groups.setdefault(tuple(line[:2]), []).append([*map(float, line[3:])])
        return [('network', 'dataset', *map(str.upper, header[3:])),
                *((*group, *(f'{statistics.fmean(column):.5g}' for column in zip(*values)))
                  for group, values in groups.items())]
    except OSError as err:
        raise UserError(f"'{path}': {err.strerror}.") from None
    except ValueError:  # UnicodeDecodeError too
        raise UserError(f"'{path}' is not a scores.csv of udl-compare (network,benchmark,image,psnr,ssim).") from None


def _table(rows: Iterable[Sequence[str]]) -> str:
    header, *lines = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
    return '\n'.join([header, '|' + '---|' * (header.count(' | ') + 1), *lines]) + '\n'
