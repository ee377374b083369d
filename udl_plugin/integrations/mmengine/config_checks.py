"""Checks a training before its first iteration for mistakes that mmengine would train on with."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from udl_plugin.checkpoints.state_dict import fingerprint
from udl_plugin.data.map_format import read_metadata
from udl_plugin.integrations.mmengine.dataset import BasicSRDataset


def check_training(model: Any, dataset: Any, has_weights: bool) -> Iterator[str]:
    """Yields errors: no loss; step 2 without the weights of step 1; cached maps of another network, or for a loss that
    does not read them.

    Args:
        model: `UDLRestorer`.
        dataset: Of the training; `BasicSRDataset`s are also found in mmengine's wrappers, such as ConcatDataset.
        has_weights: Whether the weights come from a checkpoint.
    """
    if model.pixel_loss is None:
        yield "model.pixel_loss: is missing. Training requires a loss, such as dict(type='ESU')."
    if not has_weights and getattr(model.generator, 'trains_log_var', None) is False:
        yield (f"load_from: is missing. {model.network_g['type']} starts from a checkpoint of step 1 (train that "
               'first) or of step 2.')
    for root in filter(None, (part.opt.get('dataroot_uncertainty') for part in _get_parts(dataset))):
        where, metadata = 'train_dataloader: dataroot_uncertainty', read_metadata(root)
        if 'log_var' not in model.required_outputs or model.pixel_loss.trains_log_var:
            yield (f"{where}: {type(model.pixel_loss).__name__} does not weight by the maps in '{root}', as UDL does. "
                   'Write type: PairedImageDataset, without maps.')
        elif hasattr(model.generator, 'var_net') and metadata['fingerprint'] != fingerprint(
                model.generator.var_net.state_dict()):
            yield (f"{where}: the maps in '{root}' are not of the generator's frozen network, but of "
                   f"{metadata['model']} ({metadata['param_key']}) as it was then. Write them again with udl-prepare "
                   'uncertainty --force, or use a plain network, which accepts maps of any network.')


def _get_parts(dataset: Any) -> Iterator[BasicSRDataset]:
    if isinstance(dataset, BasicSRDataset):
        yield dataset
    for part in (*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)):
        yield from _get_parts(part) if part is not None else ()
