"""The protocol's PSNR and SSIM for mmengine's evaluators: BasicSR's functions, on BasicSR's 8-bit images."""
from collections import defaultdict

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import tensor2img
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from udl_plugin.errors import UserError


class ImageMetric(BaseMetric):
    """A mean over the images of each data set, as `SET/NAME`.

    Args:
        crop_border (int): Pixels that are cut from each side: the scale, by the field's habit.
        convert_to (str | None): `Y`, as papers have it; None: RGB.
        collect_device, prefix, collect_dir: As of any metric of mmengine.
    """

    default_prefix = ''  # names of sets are

    def __init__(self, crop_border, convert_to='Y', **options):
        super().__init__(**options)
        if convert_to not in ('Y', None):
            raise UserError(f"{type(self).__name__}: convert_to is 'Y' or None, not {convert_to!r}.")
        self.crop_border, self.on_luma = crop_border, convert_to == 'Y'

    def process(self, data_batch, data_samples):
        """Takes what `UDLRestorer` predicts.

        Raises:
            UserError: there is nothing to compare with.
        """
        for sample in data_samples:
            if 'gt' not in sample:
                raise UserError(f"{type(self).__name__}: data set {sample['set']} has no images to compare with (gt), "
                                 'as one of type: PairedImageDataset has; udl-upscale takes images without.')
            sr, gt = tensor2img([sample['sr'], sample['gt']])
            score = self.calculate(sr, gt, crop_border=self.crop_border, test_y_channel=self.on_luma)
            self.results.append((sample['set'], float(score)))

    def compute_metrics(self, results):
        scores = defaultdict(list)
        for name, score in results:
            scores[name].append(score)
        return {self._name(name): float(np.mean(values)) for name, values in scores.items()}

    def _name(self, data_set):
        return f'{data_set}/{type(self).__name__}'

    def full_name(self, data_set):
        """What the figure of a data set is called, as in `save_best`."""
        return '/'.join(filter(None, (self.prefix, self._name(data_set))))


@METRICS.register_module()
class PSNR(ImageMetric):
    __doc__ = f'Peak signal-to-noise ratio in dB. {ImageMetric.__doc__}'
    calculate = staticmethod(calculate_psnr)


@METRICS.register_module()
class SSIM(ImageMetric):
    __doc__ = f'Structural similarity. {ImageMetric.__doc__}'
    calculate = staticmethod(calculate_ssim)
