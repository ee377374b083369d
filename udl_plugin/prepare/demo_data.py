"""The demo's data sets, made from photos in scikit-image's wheel: real photos without a download."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from udl_plugin.data.lmdb_io import encode
from udl_plugin.prepare.datasets import prepare_benchmark, prepare_train
from udl_plugin.utils.atomic_io import atomic_write

SCALE = 2
CROP, STEP = 120, 60  # of the training photos, in GT pixels


def training_photos() -> dict[str, np.ndarray]:
    """Name to photo, uint8 `(H, W, 3)`, BGR. None of them is a validation photo."""
    from skimage import data
    left, right, _ = data.stereo_motorcycle()
    return _to_bgr(coffee=data.coffee(), chelsea=data.chelsea(), rocket=data.rocket(), motorcycle_left=left,
                   motorcycle_right=right, hubble=data.hubble_deep_field())


def validation_photos() -> dict[str, np.ndarray]:
    """Name to photo, as `training_photos`."""
    from skimage import data
    return _to_bgr(astronaut=data.astronaut())


def _to_bgr(**photos: np.ndarray) -> dict[str, np.ndarray]:
    return {name: photo[..., ::-1].copy() for name, photo in photos.items()}


def write_demo_data(root: str | Path, scale: int = SCALE) -> list[Path]:
    """Writes the photos to `root`/photos/ and prepares them as a user would; for scale 2:

        demo_train_HR_sub.lmdb, demo_train_LR_bicubic_X2_sub.lmdb    sub-images of 120 x 120 and 60 x 60
        val/GTmod2/*.png, val/LRbicx2/*.png

    Skips what exists already.

    Args:
        root: Folder; made if missing.
        scale: 2 or more.

    Returns:
        The LMDBs and folders that it wrote.
    """
    root = Path(root)
    written: list[Path] = []
    if not _exist(root / 'demo_train_HR_sub.lmdb', root / f'demo_train_LR_bicubic_X{scale}_sub.lmdb'):
        hr = _write_photos(root / 'photos' / 'train', training_photos())
        written += prepare_train([hr], [scale], root, name='demo', crop=CROP, step=STEP, force=True).folders
    if not _exist(root / 'val' / f'GTmod{scale}', root / 'val' / f'LRbicx{scale}'):
        hr = _write_photos(root / 'photos' / 'val', validation_photos())
        written += prepare_benchmark(hr, [scale], root, name='val', force=True).folders
    return written


def _exist(*paths: Path) -> bool:
    return all(path.exists() for path in paths)


def _write_photos(folder: Path, photos: dict[str, np.ndarray]) -> Path:
    for name, photo in photos.items():
        atomic_write(folder / f'{name}.png', encode(photo))
    return folder
