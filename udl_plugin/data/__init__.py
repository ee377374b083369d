"""Data sets, and the files they read: LMDBs, images, uncertainty maps."""
