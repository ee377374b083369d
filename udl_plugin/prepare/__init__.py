"""Data preparation: LMDBs and folders for training and benchmarks, cached uncertainty maps, the demo data."""
