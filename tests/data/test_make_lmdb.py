import numpy as np
import pytest
from basicsr.data import build_dataset

from udl_plugin.data.demo import SCALE, training_photos, validation_photos, write_demo_data
from udl_plugin.data.make_lmdb import crops, write_lmdb


def images(count=3, size=12):
    generator = np.random.default_rng(0)
    return {f'image_{number}': generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for number in range(count)}


def dataset(gt, lq, **changes):
    return build_dataset({'name': 'x', 'type': 'PairedImageDataset', 'phase': 'val', 'scale': 2,
                          'io_backend': {'type': 'lmdb'}, 'dataroot_gt': str(gt), 'dataroot_lq': str(lq), **changes})


def test_upstream_reads_what_was_written(tmp_path):
    gt, lq = images(size=12), images(size=6)
    write_lmdb(tmp_path / 'gt.lmdb', gt)
    write_lmdb(tmp_path / 'lq.lmdb', lq)
    pairs = dataset(tmp_path / 'gt.lmdb', tmp_path / 'lq.lmdb')
    assert len(pairs) == 3
    for pair in (pairs[number] for number in range(3)):
        for side, written in (('gt', gt), ('lq', lq)):
            read = (pair[side] * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]  # RGB tensor to BGR image
            np.testing.assert_array_equal(read, written[pair['lq_path']])


def test_noise_of_mixed_sizes_fits(tmp_path):
    """Upstream's own maker takes the room from the first image, and fails here."""
    write_lmdb(tmp_path / 'x.lmdb', {'small': images(1, 4)['image_0'], 'large': images(1, 600)['image_0']})
    assert (tmp_path / 'x.lmdb' / 'meta_info.txt').read_text().splitlines()[1] == 'large.png (600,600,3) 1'


def test_existing_folder_stays(tmp_path):
    write_lmdb(tmp_path / 'x.lmdb', images())
    before = (tmp_path / 'x.lmdb' / 'data.mdb').read_bytes()
    with pytest.raises(FileExistsError, match=r'x\.lmdb'):
        write_lmdb(tmp_path / 'x.lmdb', images(1))
    assert (tmp_path / 'x.lmdb' / 'data.mdb').read_bytes() == before


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_lmdb(tmp_path / 'x.lmdb', {'a': images()['image_0'], 'ä': images()['image_1']})
    assert list(tmp_path.iterdir()) == []


def test_crops():
    image = np.arange(5 * 7 * 3).reshape(5, 7, 3)
    found = crops(image, size=3, step=2)
    assert len(found) == 2 * 3
    np.testing.assert_array_equal(found[4], image[2:5, 2:5])


def test_demo_data(demo_data):
    train = dataset(demo_data / 'train_GT.lmdb', demo_data / f'train_LQ_x{SCALE}.lmdb')
    assert len(train) > 400
    photos = {key['lq_path'].rsplit('_s', 1)[0] for key in train.paths}
    assert photos == set(training_photos())
    validation = dataset(demo_data / 'val_GT.lmdb', demo_data / f'val_LQ_x{SCALE}.lmdb')
    assert [path['lq_path'] for path in validation.paths] == list(validation_photos()) == ['astronaut']
    assert not photos & set(validation_photos())
    pair = train[0]
    assert pair['gt'].shape == (3, 120, 120)
    assert pair['lq'].shape == (3, 60, 60)
    small = pair['gt'].unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    assert (small - pair['lq']).abs().mean() < 0.02  # the same part of the same photo


def test_demo_data_is_written_once(demo_data):
    assert write_demo_data(demo_data) == []
