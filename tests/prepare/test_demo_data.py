from conftest import read_pairs

from udl_plugin.prepare.demo_data import CROP, SCALE, training_photos, validation_photos, write_demo_data


def test_training_set(demo_data):
    pairs = read_pairs(demo_data / 'demo_train_HR_sub.lmdb', demo_data / f'demo_train_LR_bicubic_X{SCALE}_sub.lmdb')
    assert len(pairs) > 400
    photos = {key.rsplit('_s', 1)[0] for key in pairs}
    assert photos == set(training_photos())
    assert not photos & set(validation_photos())
    for gt, lq in pairs.values():
        assert gt.shape == (CROP, CROP, 3)
        assert lq.shape == (CROP // SCALE, CROP // SCALE, 3)


def test_validation_set(demo_data):
    assert list(validation_photos()) == ['astronaut']
    for folder in (f'GTmod{SCALE}', f'LRbicx{SCALE}'):
        assert [path.name for path in (demo_data / 'val' / folder).iterdir()] == ['astronaut.png']


def test_is_written_once(demo_data):
    assert write_demo_data(demo_data) == []
