"""Metrics of uncertainty maps."""
