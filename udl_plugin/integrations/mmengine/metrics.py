"""BasicSR's PSNR and SSIM, on its 8-bit images, for mmengine's evaluators."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Callable

import numpy as np
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import tensor2img
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from udl_plugin.errors import UserError


class ImageMetric(BaseMetric):
    """Mean over the images of each dataset, reported as `DATASET/METRIC`.

    Args:
        crop_border: Pixels to cut from each side; by convention the scale.
        convert_to: `Y` to compare luma, as papers do; None for RGB.
        options: `collect_device`, `prefix` and `collect_dir` of mmengine's `BaseMetric`.
    """

    default_prefix = ''  # the names of the datasets are the prefixes
    calculate: Callable[..., float]

    def __init__(self, crop_border: int, convert_to: str | None = 'Y', **options: Any):
        super().__init__(**options)
        if convert_to not in ('Y', None):
            raise UserError(f"{type(self).__name__}: convert_to is 'Y' or None, not {convert_to!r}.")
        self.options = {'crop_border': crop_border, 'test_y_channel': convert_to == 'Y'}

    def process(self, data_batch: Any, data_samples: Iterable[Mapping[str, Any]]) -> None:
        """Scores what `UDLRestorer` predicts, `sr` against `gt` `(C, H, W)`."""
        for sample in data_samples:
            score = self.calculate(*tensor2img([sample['sr'], sample['gt']]), **self.options)
            self.results.append((f"{sample['set']}/{type(self).__name__}", float(score)))

    def compute_metrics(self, results: Iterable[tuple[str, float]]) -> dict[str, float]:
        scores = defaultdict(list)
        for name, score in results:
            scores[name].append(score)
        return {name: float(np.mean(values)) for name, values in scores.items()}


@METRICS.register_module()
class PSNR(ImageMetric):
    """Peak signal-to-noise ratio in dB; see `ImageMetric`."""

    calculate = staticmethod(calculate_psnr)


@METRICS.register_module()
class SSIM(ImageMetric):
    """Structural similarity; see `ImageMetric`."""

    calculate = staticmethod(calculate_ssim)
