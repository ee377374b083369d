"""Import hook that completes `import basicsr`: BasicSR discovers no plugins, so we wait for it.

The start-up line (see setup.py) calls `install` when `basicsr` is about to be imported, unless the environment says
`UDL_PLUGIN_AUTOLOAD=0`; our own modules and entry points call it too. The hook then sees to it that

1. the one name that BasicSR 1.4.2 misses since torchvision 0.17 is there while `basicsr` itself is being imported:
   `torchvision.transforms.functional_tensor.rgb_to_grayscale`, wanted by `basicsr/data/degradations.py`. It now lives
   in `torchvision.transforms.functional`. Afterwards the module is gone again: nobody else sees it;
2. our archs, losses and model are put into BasicSR's registries afterwards (`udl_plugin.plugin`).
"""
import importlib
import inspect
import sys


def install_import_hook():
    """Puts the hook in place, once, and returns it."""
    for finder in sys.meta_path:
        if type(finder).__qualname__ == _BasicSRFinder.__qualname__:  # by name: this module may have been reloaded
            return finder
    sys.meta_path.insert(0, _BasicSRFinder())
    return sys.meta_path[0]


class _BasicSRFinder:
    """Finds `basicsr` as the other finders do, and has its loader do our part as well."""

    searching = False

    def find_spec(self, name, path=None, target=None):
        if name != 'basicsr' or self.searching:
            return None
        self.searching = True  # another finder may ask all finders in turn, as we do
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
            self.searching = False

    @staticmethod
    def _extend(loader):
        exec_module = loader.exec_module

        def exec_module_and_register(module):
            missing_module = _FunctionalTensorShim()
            sys.meta_path.append(missing_module)  # last: asked only for what no other finder has
            try:
                exec_module(module)
            finally:
                sys.meta_path.remove(missing_module)
                missing_module.forget()
            from udl_plugin.plugin import register
            register()

        loader.exec_module = exec_module_and_register


class _FunctionalTensorShim:
    """Finder and loader of the module that torchvision dropped, with the one name that BasicSR takes from it."""

    parent, child = 'torchvision.transforms', 'functional_tensor'
    name = f'{parent}.{child}'
    module = None

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        from importlib.machinery import ModuleSpec
        return ModuleSpec(name, self)

    def create_module(self, spec):
        return None  # the default module

    def exec_module(self, module):
        from torchvision.transforms.functional import rgb_to_grayscale
        module.rgb_to_grayscale = rgb_to_grayscale
        self.module = module

    def forget(self):
        """Takes the module out of sight again, if it is ours."""
        if self.module is not None and sys.modules.get(self.name) is self.module:
            del sys.modules[self.name]
            delattr(sys.modules[self.parent], self.child)


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
        'PairedImageUncertaintyDataset': 'udl_plugin.data.paired_uncertainty_dataset',
    },
    'LOSS_REGISTRY': {
        'GaussianNLL': 'udl_plugin.losses.uncertainty_loss',
        'EU': 'udl_plugin.losses.uncertainty_loss',
        'ESU': 'udl_plugin.losses.uncertainty_loss',
        'UDL': 'udl_plugin.losses.uncertainty_loss',
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


def register():
    """Puts our classes into BasicSR's registries. May be called any number of times, also while it runs.

    Raises:
        RuntimeError: one of our names is already taken by another class; says by which. Nothing is registered then.
    """
    install_import_hook()
    registries = importlib.import_module('basicsr.utils.registry')  # fires the hook, which calls us, if it is the first
    ours = [(getattr(registries, registry), name, getattr(importlib.import_module(module), name))
            for registry, modules in REGISTERED.items() for name, module in modules.items()]
    for registry, name, cls in ours:
        if name in registry and not _same(registry.get(name), cls):
            raise RuntimeError(_taken(registry, name))
    for registry, name, cls in ours:
        if name not in registry:
            registry.register(cls)


def _same(one, other):
    """Whether two classes are one, or one and its reloaded self."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _taken(registry, name):
    other = registry.get(name)
    try:
        place = f' ({inspect.getsourcefile(other)})'
    except TypeError:
        place = ''
    return (f"udl_plugin cannot register '{name}': the name is taken in BasicSR's {registry._name} registry by "
            f'{other.__module__}.{other.__qualname__}{place}. '
            'Rename that one, or set UDL_PLUGIN_AUTOLOAD=0 to run BasicSR without udl_plugin.')
