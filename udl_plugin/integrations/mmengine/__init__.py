"""mmengine's side: our networks, losses, data sets and metrics in its registries, for its `Runner`.

In a config:

    custom_imports = dict(imports=['udl_plugin.mm'], allow_failed_imports=False)
    default_scope = 'mmengine'

Importing it also lets `torch.load`, with `weights_only` as it is, read what mmengine writes into its checkpoints.
"""
try:
    from mmengine.logging import HistoryBuffer
except ImportError as err:
    raise ImportError("udl_plugin.mm needs mmengine: pip install 'udl_plugin[mm]', or the fork that is maintained, pip "
                      'install onedl-mmengine. All of BasicSR\'s side works without it.') from err

import importlib

import torch
from mmengine.registry import MODELS

from udl_plugin.checkpoints.mmengine_format import mmengine_globals
from udl_plugin.plugin import REGISTERED, register

register()  # see there: BasicSR's first


def _register_networks_and_losses():
    for registry in ('ARCH_REGISTRY', 'LOSS_REGISTRY'):
        for name, module in REGISTERED[registry].items():
            MODELS.register_module(name=name, module=getattr(importlib.import_module(module), name), force=True)


_register_networks_and_losses()
torch.serialization.add_safe_globals(mmengine_globals(HistoryBuffer))

from udl_plugin.integrations.mmengine.dataset import BasicSRDataset  # noqa: E402
from udl_plugin.integrations.mmengine.hooks import NetworkCheckpointHook, UncertaintyVisualizationHook  # noqa: E402
from udl_plugin.integrations.mmengine.metrics import PSNR, SSIM  # noqa: E402
from udl_plugin.integrations.mmengine.model import UDLRestorer  # noqa: E402
from udl_plugin.integrations.mmengine.strategies import ResumableFSDPStrategy  # noqa: E402

__all__ = ['PSNR', 'SSIM', 'BasicSRDataset', 'NetworkCheckpointHook', 'ResumableFSDPStrategy', 'UDLRestorer',
           'UncertaintyVisualizationHook']
