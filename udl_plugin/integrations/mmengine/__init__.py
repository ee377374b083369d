"""mmengine integration: our networks, losses, datasets and metrics in its registries, for its `Runner`.

In a config:

    custom_imports = dict(imports=['udl_plugin.integrations.mmengine'], allow_failed_imports=False)
    default_scope = 'mmengine'

Importing it also allows `torch.load(..., weights_only=True)` to read what mmengine writes into its checkpoints.
"""
try:
    from mmengine.logging import HistoryBuffer
except ImportError as err:
    raise ImportError("udl_plugin.integrations.mmengine requires mmengine: pip install 'udl_plugin[mm]', or its "
                      'maintained fork, pip install onedl-mmengine. Training with BasicSR works without it.') from err

import importlib

import torch
from mmengine.registry import MODELS

from udl_plugin.plugin import REGISTERED, register

register()  # before the imports below: they import basicsr, which this makes importable
for _registry in ('ARCH_REGISTRY', 'LOSS_REGISTRY'):
    for _name, _module in REGISTERED[_registry].items():
        MODELS.register_module(name=_name, module=getattr(importlib.import_module(_module), _name), force=True)

from udl_plugin.checkpoints.mmengine_format import mmengine_globals  # noqa: E402
from udl_plugin.integrations.mmengine.dataset import BasicSRDataset  # noqa: E402
from udl_plugin.integrations.mmengine.hooks import NetworkCheckpointHook, UncertaintyVisualizationHook  # noqa: E402
from udl_plugin.integrations.mmengine.metrics import PSNR, SSIM  # noqa: E402
from udl_plugin.integrations.mmengine.model import UDLRestorer  # noqa: E402
from udl_plugin.integrations.mmengine.strategies import ResumableFSDPStrategy  # noqa: E402

torch.serialization.add_safe_globals([*mmengine_globals(HistoryBuffer)])

__all__ = ['PSNR', 'SSIM', 'BasicSRDataset', 'NetworkCheckpointHook', 'ResumableFSDPStrategy', 'UDLRestorer',
           'UncertaintyVisualizationHook']
