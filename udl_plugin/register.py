"""The names that BasicSR finds, in one table, and the function that puts them into its registries.

Any of our modules may be the first that a user imports. What keeps that free of circles: importing `udl_plugin.archs`
or `udl_plugin.models` registers everything first, and no other module that those two need imports basicsr or them.
"""
import importlib
import inspect

from udl_plugin.autoload import install

# registry in basicsr.utils.registry -> registered name -> module that defines the class of that name
NAMES = {
    'ARCH_REGISTRY': {
        'EDSRVar': 'udl_plugin.archs.edsr_arch',
        'EDSRTwo': 'udl_plugin.archs.edsr_arch',
    },
    'LOSS_REGISTRY': {
        'GaussianNLL': 'udl_plugin.losses.uncertainty_loss',
        'EU': 'udl_plugin.losses.uncertainty_loss',
        'ESU': 'udl_plugin.losses.uncertainty_loss',
        'UDL': 'udl_plugin.losses.uncertainty_loss',
    },
    'MODEL_REGISTRY': {
        'UDLModel': 'udl_plugin.models.udl_model',
    },
}

_running = False


def register():
    """Puts our classes into BasicSR's registries. May be called any number of times.

    Raises:
        RuntimeError: one of our names is already taken by another class; says by which. Nothing is registered then.
    """
    global _running
    if _running:  # importing basicsr below fires the hook, which calls us
        return
    _running = True
    try:
        install()
        registries = importlib.import_module('basicsr.utils.registry')
        missing = []
        for registry_name, modules in NAMES.items():
            registry = getattr(registries, registry_name)
            for name, module in modules.items():
                cls = getattr(importlib.import_module(module), name)
                if name not in registry:
                    missing.append((registry, cls))
                elif registry.get(name) is not cls:
                    raise RuntimeError(_taken(registry_name, name, registry.get(name)))
        for registry, cls in missing:
            registry.register(cls)
    finally:
        _running = False


def _taken(registry_name, name, other):
    try:
        place = inspect.getsourcefile(other)
    except TypeError:
        place = None
    by = f'{other.__module__}.{other.__qualname__}' + (f' ({place})' if place else '')
    return (f"udl_plugin cannot register '{name}': the name is taken in BasicSR's {registry_name} by {by}. "
            'Rename that one, or set UDL_PLUGIN_AUTOLOAD=0 to run BasicSR without udl_plugin.')
