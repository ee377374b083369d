"""Errors must be measured in 8-bit levels: of errors in [0, 1], the variance head saturates at its lower bound."""
import pytest
import torch
from basicsr.utils import img2tensor
from scipy.stats import spearmanr

from udl_plugin.archs import EDSRVar
from udl_plugin.losses import ESU
from udl_plugin.prepare.demo_data import training_photos
from udl_plugin.utils.imresize import imresize


@pytest.fixture(scope='module')
def photo():
    """GT `(1, 3, H, W)` and LR of half the size, in [0, 1]."""
    gt = training_photos()['rocket'][:240, :240]
    return tuple(img2tensor(image / 255.).unsqueeze(0) for image in (gt, imresize(gt, 1 / 2)))


def map_after_training(photo, img_range, iterations=400):
    """Spread of the map, and its rank correlation with the error."""
    gt, lq = photo
    torch.manual_seed(0)
    net = EDSRVar(3, 3, num_feat=8, num_block=1, upscale=2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    loss = ESU(img_range=img_range)
    for _ in range(iterations):
        corners = torch.randint(0, lq.shape[-1] - 16, (8, 2)).tolist()
        lq_patches = torch.cat([lq[..., y:y + 16, x:x + 16] for y, x in corners])
        gt_patches = torch.cat([gt[..., 2 * y:2 * y + 32, 2 * x:2 * x + 32] for y, x in corners])
        optimizer.zero_grad()
        sr, log_var = net(lq_patches, return_log_var=True)
        loss(sr, gt_patches, log_var).backward()
        optimizer.step()
    with torch.no_grad():
        sr, log_var = net(lq, return_log_var=True)
    correlation = spearmanr(log_var.flatten(), (sr - gt).abs().flatten()).statistic
    return float(log_var.max() - log_var.min()), correlation


def test_map_predicts_errors_in_8_bit_levels(photo):
    spread, correlation = map_after_training(photo, img_range=255)
    assert spread > 1
    assert correlation > 0.4


def test_map_saturates_with_errors_in_0_1(photo):
    spread, correlation = map_after_training(photo, img_range=1)
    assert spread < 0.5
    assert correlation < 0.4
