"""Import hook that completes `import basicsr`: BasicSR discovers no plugins, so we wait for it.

The start-up line (see setup.py) calls `install` when `basicsr` is about to be imported, unless the environment says
`UDL_PLUGIN_AUTOLOAD=0`; our own modules and entry points call it too. The hook then sees to it that

1. the one name that BasicSR 1.4.2 misses since torchvision 0.17 is there while `basicsr` itself is being imported:
   `torchvision.transforms.functional_tensor.rgb_to_grayscale`, wanted by `basicsr/data/degradations.py`. It now lives
   in `torchvision.transforms.functional`. Afterwards the module is gone again: nobody else sees it;
2. our archs, losses and model are put into BasicSR's registries afterwards (`udl_plugin.register`).
"""
import sys


def install():
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
            missing_module = _FunctionalTensorFinder()
            sys.meta_path.append(missing_module)  # last: asked only for what no other finder has
            try:
                exec_module(module)
            finally:
                sys.meta_path.remove(missing_module)
                missing_module.forget()
            from udl_plugin.register import register
            register()

        loader.exec_module = exec_module_and_register


class _FunctionalTensorFinder:
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
