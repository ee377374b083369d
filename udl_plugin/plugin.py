"""How BasicSR finds our classes: the table of registered names, and an import hook that completes `import basicsr`.

BasicSR discovers no plugins, so we hook its import. The start-up line (see setup.py) calls `install_import_hook` when
`basicsr` is about to be imported, unless the environment sets `UDL_PLUGIN_AUTOLOAD=0`; `import udl_plugin` does too.
The hook

1. supplies, only while `basicsr` is being imported, the one name that BasicSR 1.4.2 misses since torchvision 0.17:
   `torchvision.transforms.functional_tensor.rgb_to_grayscale`, which `basicsr/data/degradations.py` imports. It now
   lives in `torchvision.transforms.functional`;
2. calls `register` afterwards, which adds our classes to BasicSR's registries.

This module imports nothing but the standard library until `register` runs.
"""
from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# registry in basicsr.utils.registry -> registered name -> module that defines the class or function of that name
REGISTERED = {
    'ARCH_REGISTRY': {
        'EDSRVar': 'udl_plugin.archs.edsr_arch',
        'EDSRTwo': 'udl_plugin.archs.edsr_arch',
        'DPDNN': 'udl_plugin.archs.dpdnn_arch',
        'DPDNNVar': 'udl_plugin.archs.dpdnn_arch',
        'DPDNNTwo': 'udl_plugin.archs.dpdnn_arch',
        'WithVariance': 'udl_plugin.archs.with_variance',
        'TwoStep': 'udl_plugin.archs.two_step',
    },
    'DATASET_REGISTRY': {
        'PairedImageUncertaintyDataset': 'udl_plugin.data.paired_datasets',
        'PairedImageCachedDataset': 'udl_plugin.data.paired_datasets',
    },
    'LOSS_REGISTRY': {
        'GaussianNLL': 'udl_plugin.losses.uncertainty_loss',
        'EU': 'udl_plugin.losses.uncertainty_loss',
        'ESU': 'udl_plugin.losses.uncertainty_loss',
        'UDL': 'udl_plugin.losses.uncertainty_loss',
        'JointUDL': 'udl_plugin.losses.uncertainty_loss',
    },
    'METRIC_REGISTRY': {
        'calculate_map_spearman': 'udl_plugin.metrics.uncertainty_metrics',
        'calculate_map_pearson': 'udl_plugin.metrics.uncertainty_metrics',
        'calculate_map_ause': 'udl_plugin.metrics.uncertainty_metrics',
        'calculate_map_calibration': 'udl_plugin.metrics.uncertainty_metrics',
        'calculate_map_sparsity': 'udl_plugin.metrics.uncertainty_metrics',
    },
    'MODEL_REGISTRY': {
        'UDLModel': 'udl_plugin.models.udl_model',
    },
}


# ---- registration

def register() -> None:
    """Adds the classes of `REGISTERED` to BasicSR's registries. Repeated and nested calls do no harm.

    Wherever `basicsr` is first imported, the hook calls this function, which imports the registered modules and what
    they depend on; no module of these may be half imported by then. So packages whose modules import both `basicsr` and
    each other (archs, checkpoints, config, inference, models) call `register` first, or import one that does. In
    `data`, which must stay cheap to import, the dataset's module calls it in its last line, and is skipped until then.

    Raises:
        RuntimeError: another class already has one of our names.
    """
    install_import_hook()
    registries = importlib.import_module('basicsr.utils.registry')  # the first time, the hook calls `register` in here
    for registry_name, modules in REGISTERED.items():
        registry = getattr(registries, registry_name)
        for name, module_name in modules.items():
            module = importlib.import_module(module_name)
            is_being_imported = getattr(module.__spec__, '_initializing', False)  # the flag that importlib itself uses
            if hasattr(module, name) or not is_being_imported:
                _register(registry, getattr(module, name))
    importlib.import_module('udl_plugin.utils.vector_math').warm_up()  # here, as no network of ours computes before


def _register(registry: Any, cls: Any) -> None:
    if cls.__name__ not in registry:
        registry.register(cls)
        return
    other = registry.get(cls.__name__)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):  # equal after a reload
        raise RuntimeError(f"udl_plugin cannot register '{cls.__name__}': BasicSR's registry has {other.__module__}."
                           f'{other.__qualname__} of that name. Rename that class, or set UDL_PLUGIN_AUTOLOAD=0 to run '
                           'BasicSR without udl_plugin.')


# ---- import hook

def install_import_hook() -> MetaPathFinder:
    """Adds the hook to `sys.meta_path`, once, and returns it."""
    for finder in sys.meta_path:
        if type(finder).__qualname__ == _BasicSRFinder.__qualname__:  # by name: this module may have been reloaded
            return finder  # type: ignore[return-value]
    hook = _BasicSRFinder()
    sys.meta_path.insert(0, hook)
    return hook


class _BasicSRFinder(MetaPathFinder):
    """Lets the other finders find `basicsr`, and extends its loader."""

    is_searching = False

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        if name != 'basicsr' or self.is_searching:
            return None
        self.is_searching = True  # another finder may ask all finders in turn, as we do
        try:
            for finder in sys.meta_path:
                find_spec = getattr(finder, 'find_spec', None)
                spec = find_spec and find_spec(name, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        self._extend(spec.loader)
                    return spec
            return None
        finally:
            self.is_searching = False

    @staticmethod
    def _extend(loader: Any) -> None:
        exec_module = loader.exec_module

        def exec_module_and_register(module: ModuleType) -> None:
            shim = _FunctionalTensorShim()
            sys.meta_path.append(shim)  # last: only for what no other finder has
            try:
                exec_module(module)
            finally:
                sys.meta_path.remove(shim)
                shim.remove_module()
            register()

        loader.exec_module = exec_module_and_register


class _FunctionalTensorShim(MetaPathFinder, Loader):
    """Finder and loader of the module that torchvision dropped, with the one name that BasicSR imports from it."""

    parent, child = 'torchvision.transforms', 'functional_tensor'
    name = f'{parent}.{child}'
    module: ModuleType | None = None

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.transforms.functional import rgb_to_grayscale
        module.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
        self.module = module

    def remove_module(self) -> None:
        """Removes the module again, so that no one else sees it; torchvision's own stays."""
        if self.module is not None and sys.modules.get(self.name) is self.module:
            del sys.modules[self.name]
            delattr(sys.modules[self.parent], self.child)
