"""The demo's data sets, from the photos inside scikit-image's wheel: real photos without a download."""
from pathlib import Path

from udl_plugin.data.imresize import imresize
from udl_plugin.data.make_lmdb import crops, write_lmdb

SCALE = 2
CROP, STEP = 120, 60  # of the training photos, in GT pixels


def training_photos():
    """Name to photo, uint8 `(H, W, 3)`, BGR, H and W multiples of 12. None of them is a validation photo."""
    from skimage import data
    left, right, _ = data.stereo_motorcycle()
    return _prepared(coffee=data.coffee(), chelsea=data.chelsea(), rocket=data.rocket(), motorcycle_left=left,
                     motorcycle_right=right, hubble=data.hubble_deep_field())


def validation_photos():
    """As `training_photos`."""
    from skimage import data
    return _prepared(astronaut=data.astronaut())


def _prepared(**photos):
    """RGB to BGR, sides cut to multiples of 12 so that x2, x3 and x4 fit."""
    return {name: photo[:photo.shape[0] // 12 * 12, :photo.shape[1] // 12 * 12, ::-1].copy()
            for name, photo in photos.items()}


def write_demo_data(root, scale=SCALE):
    """Writes `train_GT.lmdb` and `val_GT.lmdb` below `root`, with `train_LQ_x2.lmdb` and `val_LQ_x2.lmdb` for scale 2.

    Training photos are cut into 120 x 120 crops at distances of 60, LR ones to match, after resizing. What is there
    already is left as it is.

    Args:
        root (str | Path): Folder; made where needed.
        scale (int): 2, 3 or 4.

    Returns:
        list[Path]: The LMDBs that were written now.
    """
    def cut(photos, divisor):
        return {f'{name}_s{number:03d}': crop for name, photo in photos.items()
                for number, crop in enumerate(crops(photo, CROP // divisor, STEP // divisor), 1)}

    def shrunk(photos):
        return {name: imresize(photo, 1 / scale) for name, photo in photos.items()}

    contents = {
        'train_GT.lmdb': lambda: cut(training_photos(), 1),
        f'train_LQ_x{scale}.lmdb': lambda: cut(shrunk(training_photos()), scale),
        'val_GT.lmdb': validation_photos,
        f'val_LQ_x{scale}.lmdb': lambda: shrunk(validation_photos()),
    }
    missing = {Path(root, name): images for name, images in contents.items() if not Path(root, name).exists()}
    for path, images in missing.items():
        write_lmdb(path, images())
    return list(missing)
