"""UDL's two steps as a model of mmengine's `Runner`."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import MODELS
from torch import Tensor

from udl_plugin.archs.build import build_network
from udl_plugin.archs.mixed_precision import keep_image_convs_in_fp32
from udl_plugin.archs.outputs import (
    EXTRA_OUTPUTS,
    TEACHER_OUTPUTS,
    forward_with_outputs,
    get_sr_image,
    required_outputs_of,
)
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.config.cross_checks import check_required_outputs
from udl_plugin.errors import raise_errors
from udl_plugin.losses.build import build_loss
from udl_plugin.models.teacher import Teacher
from udl_plugin.utils.plain import to_builtins


@MODELS.register_module()
class UDLRestorer(BaseModel):
    """Step 1 (`EDSRVar` with ESU), step 2 (`EDSRTwo` with UDL) or plain training (`EDSR` with L1Loss), and their test.

    `generator` and `pixel_loss` are BasicSR's `network_g` and `pixel_opt`; any of its networks and losses can be named.
    Step 2 starts from a checkpoint of step 1, of mmengine or BasicSR, in `load_from` (see `NetworkCheckpointHook`).

    Args:
        generator: `dict(type='EDSRTwo', num_in_ch=3, num_out_ch=3, ..., upscale=4)`.
        pixel_loss: `dict(type='UDL')`; only training requires it.
        data_preprocessor: Default: mmengine's base class, because `BasicSRDataset` returns images in [0, 1].
        init_cfg: As in any module of mmengine.
        teacher: `dict(path=...)`, options of `Teacher`, for a loss that weights by another network.

    Raises:
        UserError: an unknown network, loss or option; a loss that requires what the network does not provide.
    """

    predict_log_var = False  # whether 'predict' returns it; UncertaintyVisualizationHook sets it

    def __init__(self, generator: Mapping[str, Any], pixel_loss: Mapping[str, Any] | None = None,
                 data_preprocessor: Any = None, init_cfg: Any = None, teacher: Mapping[str, Any] | None = None):
        super().__init__(data_preprocessor, init_cfg)
        self.network_g = to_builtins(generator)
        self.generator = build_network(self.network_g)
        keep_image_convs_in_fp32(self.generator)  # when an optimizer wrapper autocasts
        self.pixel_loss: Any = build_loss(to_builtins(pixel_loss), 'pixel_loss: ') if pixel_loss else None
        self.required_outputs = required_outputs_of(self.pixel_loss)
        self.teacher = Teacher(to_builtins(teacher), convert=keep_image_convs_in_fp32) if teacher else None
        raise_errors(check_required_outputs(type(self.generator), self.pixel_loss, TEACHER_OUTPUTS if teacher else (),
                                            names=('pixel_loss', 'generator')))

    def forward(self, inputs: Tensor, data_samples: Mapping[str, Any] | None = None,
                mode: str = 'tensor') -> Tensor | dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            inputs: LR images `(N, C, H, W)`, RGB in [0, 1].
            data_samples: The other items of `BasicSRDataset`, collated: `gt` `(N, C, upscale * H, upscale * W)`; with
                cached maps `log_var`; for 'predict' also `set`, `lq_path` and so on.
            mode: 'tensor', 'loss' for training, or 'predict' for metrics.

        Returns:
            'tensor': the SR images `(N, C, upscale * H, upscale * W)`. 'loss': `loss_pix`. 'predict': for each image
            its data sample with `sr`, and `log_var` if `predict_log_var` is set, `(C, H, W)` on the CPU.
        """
        samples = data_samples or {}
        if mode == 'tensor':
            return get_sr_image(self.generator(inputs))
        if mode == 'loss':
            if hasattr(self.pixel_loss, 'set_progress'):
                info = MessageHub.get_current_instance().runtime_info  # RuntimeInfoHook keeps it
                self.pixel_loss.set_progress(info.get('iter', 0) + 1, info.get('max_iters', 1))
            available = {name: samples[name] for name in EXTRA_OUTPUTS if name in samples}
            if self.teacher:
                available.update(self.teacher.run(inputs, self.required_outputs))
            sr, outputs = forward_with_outputs(self.generator, inputs, self.required_outputs, available)
            return {'loss_pix': self.pixel_loss(sr, samples['gt'], **outputs)}
        if mode == 'predict':
            return self._predict(inputs, samples)
        raise ValueError(f"mode is 'tensor', 'loss' or 'predict', not '{mode}'.")

    @torch.no_grad()
    def _predict(self, inputs: Tensor, samples: Mapping[str, Any]) -> list[dict[str, Any]]:
        height, width = inputs.shape[2:]
        lq = pad_to_multiple(inputs, get_required_multiple(self.network_g))
        sr, outputs = forward_with_outputs(self.generator, lq, ['log_var'] * self.predict_log_var, {})
        scale = sr.shape[2] // lq.shape[2]
        images = {name: image[:, :, :scale * height, :scale * width].cpu() for name, image in
                  {'sr': sr, **outputs}.items()}
        return [{name: values[number] for name, values in {**samples, **images}.items()}
                for number in range(len(inputs))]


def get_model(model: Any) -> Any:
    """The model itself, without mmengine's wrapper for distributed training."""
    return model.module if is_model_wrapper(model) else model
