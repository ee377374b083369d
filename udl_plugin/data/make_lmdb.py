"""Writes images as LMDBs of BasicSR's kind."""
import cv2
from basicsr.utils.lmdb_util import LmdbMaker

from udl_plugin.files import whole_folder

COMPRESS_LEVEL = 1  # of the PNGs inside; quick to read


def write_lmdb(path, images):
    """Writes `images` to the LMDB folder `path`, with upstream's LmdbMaker; complete, or not at all.

    Args:
        path (str | Path): Folder that ends in `.lmdb`.
        images (dict[str, ndarray]): Key (ASCII, no dot) to image, uint8 `(H, W, 3)`, BGR.

    Raises:
        FileExistsError: `path` exists.
    """
    records = {key: cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, COMPRESS_LEVEL])[1]
               for key, image in images.items()}
    room = 2 * sum(record.nbytes for record in records.values()) + (1 << 14) * len(records) + (1 << 20)
    with whole_folder(path) as unfinished:
        maker = LmdbMaker(str(unfinished), map_size=room, compress_level=COMPRESS_LEVEL)
        for key, record in records.items():
            maker.put(record, key, images[key].shape)
        maker.close()


def crops(image, size, step):
    """All `size` x `size` crops of `image`, `(H, W, 3)`, at distances of `step` from the top left, row by row."""
    height, width = image.shape[:2]
    return [image[top:top + size, left:left + size]
            for top in range(0, height - size + 1, step) for left in range(0, width - size + 1, step)]
