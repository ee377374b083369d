"""The uncertainty losses, as functions and as modules with BasicSR's options."""
from udl_plugin.autoload import install
from udl_plugin.losses.uncertainty_loss import ESU, EU, UDL, GaussianNLL, esu, eu, gaussian_nll, udl
from udl_plugin.losses.weights import udl_weight

__all__ = ['ESU', 'EU', 'UDL', 'GaussianNLL', 'esu', 'eu', 'gaussian_nll', 'udl', 'udl_weight']

install()  # so that basicsr can be imported after us without the start-up line too
