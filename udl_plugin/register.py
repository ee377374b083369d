"""The names that BasicSR finds, in one table, and the function that puts them into its registries.

Any of our modules may be the first that a user imports. What keeps that free of circles: importing `udl_plugin.archs`,
`udl_plugin.datasets` or `udl_plugin.models` registers everything first, and no other module that they need imports
basicsr or them.
"""
import importlib
import inspect

from udl_plugin.autoload import install

# registry in basicsr.utils.registry -> registered name -> module that defines the class or function of that name
NAMES = {
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
        'PairedImageUncertaintyDataset': 'udl_plugin.datasets.paired_uncertainty_dataset',
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
    install()
    registries = importlib.import_module('basicsr.utils.registry')  # fires the hook, which calls us, if it is the first
    ours = [(getattr(registries, registry), name, getattr(importlib.import_module(module), name))
            for registry, modules in NAMES.items() for name, module in modules.items()]
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
