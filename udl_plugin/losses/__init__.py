"""The uncertainty losses, as functions and as modules with BasicSR's options."""
from udl_plugin.losses.uncertainty_loss import ESU, EU, UDL, GaussianNLL, JointUDL, esu, eu, gaussian_nll, udl
from udl_plugin.losses.weights import udl_weight

__all__ = ['ESU', 'EU', 'UDL', 'GaussianNLL', 'JointUDL', 'esu', 'eu', 'gaussian_nll', 'udl', 'udl_weight']
