"""A short version of `make soak`: five trainings' worth of harm, none of it lasting."""
import shutil

import pytest
from conftest import TINY
from forked_python import Forked
from soak import KINDS, Lost, Process, Soak, demo_section


@pytest.fixture
def soak(tmp_path, small_data, monkeypatch):
    monkeypatch.setattr(Process, 'start', Forked)
    data = shutil.copytree(small_data, tmp_path / 'data')
    section = demo_section(data)
    section['network_g'].update(TINY)
    section['train']['total_iter'] = 60
    section['val']['val_freq'], section['logger']['save_checkpoint_freq'] = 24, 12
    section['logger']['use_tb_logger'] = False
    section['datasets']['train']['batch_size_per_gpu'] = 16  # 35 of them are an epoch
    return Soak(tmp_path, data, section, seed=0)


def test_five_faults(soak):
    soak.run(['sigkill', 'sigterm', 'full disk', 'truncated lmdb', 'sigint'])
    assert len(soak.injected) == 5
    assert soak.trainings >= 1


def test_it_would_tell(soak):
    """That one is not like the other, and what is torn."""
    soak.section['train']['total_iter'] = soak.section['logger']['save_checkpoint_freq'] = 4
    soak.finish('undisturbed')
    soak.undisturbed = soak.weights('undisturbed')
    soak.section['manual_seed'] = 1
    with pytest.raises(Lost, match='other weights'):
        soak.compare('other')
    state = soak.folder / 'experiments/other/training_states/4.state'
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(Lost, match='is torn'):
        soak.refuse_torn('other')
    assert set(KINDS) == {name.replace('_', ' ') for name in dir(Soak)} & set(KINDS) | {'read-only folder'}
