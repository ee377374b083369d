"""Data: LMDB pairs, their check, and the demo's photos."""
