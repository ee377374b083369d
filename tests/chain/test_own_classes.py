"""Classes of a user, named in a yml with `imports`, in the process of udl-train."""
import re

import pytest


@pytest.fixture
def train(runner):
    """Trains with an own file; returns exit status and output."""
    def train(source, code, **changes):
        (runner.folder / 'mine.py').write_text(code)
        process = runner.train(runner.write_yml('own', f'demo/{source}', imports=['mine.py'], **changes))
        return process.returncode, process.stdout

    return train


METRIC_AND_DATASET = """
import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY

@METRIC_REGISTRY.register()
def calculate_error(img, img2):
    assert img.dtype == img2.dtype == np.uint8 and img.shape == img2.shape == (64, 64, 3)
    return np.abs(img.astype(float) - img2).mean()

@METRIC_REGISTRY.register()
def calculate_worst(img, img2, level, **kwargs):
    return np.quantile(np.abs(img.astype(float) - img2), level)

@DATASET_REGISTRY.register()
class Squares(torch.utils.data.Dataset):
    def __init__(self, opt):
        self.opt = opt

    def __len__(self):
        return self.opt['count']

    def __getitem__(self, index):
        size = self.opt['size']
        gt = torch.zeros(3, size, size)
        gt[:, size // 4:-(size // 4), size // 4:-(size // 4)] = index / len(self)
        return {'lq': gt[:, ::2, ::2], 'gt': gt, 'lq_path': f'square_{index}.png'}
"""
SQUARES = {'name': 'squares', 'type': 'Squares', 'count': 3, 'size': 64}
TRAIN_SQUARES = {**SQUARES, 'num_worker_per_gpu': 1, 'batch_size_per_gpu': 2}


def test_own_metric_and_data_set(train):
    status, output = train('train_udl_step1', METRIC_AND_DATASET, val__metrics={
        'mae': {'type': 'calculate_error'}, 'worst': {'type': 'calculate_worst', 'level': 0.9, 'better': 'lower'}},
        datasets={'train': TRAIN_SQUARES, 'val': SQUARES}, train__total_iter=2)
    assert status == 0, output
    assert 'Dataset [Squares] - squares is built.' in output
    assert re.search(r'Validation squares\n\t # mae: \d+\.\d+\tBest.*\n\t # worst: \d+\.\d+', output)


def test_own_metric_and_data_set_with_wrong_names(train):
    metrics = {'mae': {'type': 'calculate_eror'}, 'lower': {'type': 'calculate_error', 'better': 'lower'},
               'worst': {'type': 'calculate_worst'}}
    status, output = train('train_udl_step1', METRIC_AND_DATASET, val__metrics=metrics,
                           datasets={'train': {**TRAIN_SQUARES, 'type': 'Sqares'}, 'val': SQUARES})
    assert status == 2
    for message in ("datasets.train.type: there is no 'Sqares' (did you mean 'Squares'?).",
                    "val.metrics.mae.type: there is no 'calculate_eror' (did you mean 'calculate_error'?).",
                    'val.metrics.worst.level: is missing; type: calculate_worst requires it.',
                    'val.metrics.lower.better: is passed to calculate_error as well, by BasicSR; end its parameters '
                    'with **kwargs.'):
        assert message in output


MODEL = """
from basicsr.utils.registry import MODEL_REGISTRY
from udl_plugin.models import UDLModel

@MODEL_REGISTRY.register()
class OwnModel(UDLModel):
    extra_options = {'train': {'my_weight': float}}

    def compute_losses(self, lq, gt, **given):
        losses = super().compute_losses(lq, gt, **given)
        losses['l_own'] = self.opt['train']['my_weight'] * self.output.abs().mean()
        return losses
"""


def test_own_model(train):
    status, output = train('train_udl_step1', MODEL, model_type='OwnModel', train__my_weight=2.5, train__total_iter=2,
                           train__grad_clip=10, val=None)
    assert status == 0, output
    assert 'Model [OwnModel] is created.' in output
    assert len(re.findall(r'l_pix: \S+ l_own: \S+ grad_norm: ', output)) == 2
    status, output = train('train_udl_step1', MODEL, model_type='OwnModl', train__my_wieght='1e-3', val=None)
    assert status == 2
    assert "model_type: there is no 'OwnModl' (did you mean 'OwnModel'?)" in output
    status, output = train('train_udl_step1', MODEL, model_type='OwnModel', train__my_weight='1e-3', train__my_wieght=1)
    assert status == 2
    assert "train.my_weight: expected a number, got the string '1e-3' (YAML 1.1 reads it so; write 1.0e-3)." in output
    assert "train.my_wieght: is not an option (did you mean 'my_weight'?)" in output
