from udl_plugin.prepare.demo_data import CROP, SCALE, training_photos, validation_photos, write_demo_data
from udl_plugin.prepare.verify import check_images


def test_training_set(demo_data):
    names = 'demo_train_HR_sub.lmdb', f'demo_train_LR_bicubic_X{SCALE}_sub.lmdb'
    for name, size in zip(names, (CROP, CROP // SCALE)):
        shapes, problems = check_images(demo_data / name)
        assert problems == []
        assert len(shapes) > 400
        photos = {key.rsplit('_s', 1)[0] for key in shapes}
        assert photos == set(training_photos())
        assert not photos & set(validation_photos())
        assert set(shapes.values()) == {(size, size, 3)}


def test_validation_set(demo_data):
    assert list(validation_photos()) == ['astronaut']
    for folder in (f'GTmod{SCALE}', f'LRbicx{SCALE}'):
        assert [path.name for path in (demo_data / 'val' / folder).iterdir()] == ['astronaut.png']


def test_existing_data_is_not_written_again(demo_data):
    assert write_demo_data(demo_data) == []
