"""Checkpoints: safe reading, matching with a network, and export."""
