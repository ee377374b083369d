"""Data sets for BasicSR's loaders."""
from udl_plugin.register import register

register()  # see there

from udl_plugin.datasets.paired_uncertainty_dataset import PairedImageUncertaintyDataset  # noqa: E402

__all__ = ['PairedImageUncertaintyDataset']
