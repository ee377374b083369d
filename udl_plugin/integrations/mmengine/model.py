"""Both steps as a model of mmengine's `Runner`."""
import inspect

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS

from udl_plugin.archs.build import build_network
from udl_plugin.archs.mixed_precision import keep_image_convs_in_fp32
from udl_plugin.archs.outputs import EXTRA_OUTPUTS, forward_with_outputs, required_outputs_of
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import match_state_dict
from udl_plugin.config.class_options import build_loss, check_class_options
from udl_plugin.config.cross_checks import check_required_outputs
from udl_plugin.errors import UserError, raise_errors
from udl_plugin.utils.plain import to_builtins


class _ToDevice(BaseDataPreprocessor):
    """mmengine's own, but never compiled, and in training without file names: for each new one, `torch.compile` would
    compile anew."""

    @torch.compiler.disable
    def forward(self, data, training=False):
        data = super().forward(data, training)
        if training and isinstance(data.get('data_samples'), dict):
            tensors = {name: value for name, value in data['data_samples'].items() if torch.is_tensor(value)}
            data = {**data, 'data_samples': tensors}
        return data


@MODELS.register_module()
class UDLRestorer(BaseModel):
    """Step 1 (`EDSRVar`, ESU), step 2 (`EDSRTwo`, UDL), plain training (`EDSR`, L1Loss), and their test.

    Both sections are those of a yml of BasicSR, `network_g` and `pixel_opt`, and may name any of its networks and
    losses. Step 2 begins with `load_from`, a checkpoint of step 1 of either host (see `NetworkCheckpointHook`).

    Args:
        generator (dict): `dict(type='EDSRTwo', num_in_ch=3, num_out_ch=3, ..., upscale=4)`.
        pixel_loss (dict): `dict(type='UDL')`; for a test it may be left out.
        data_preprocessor (dict): mmengine's own where it is not given: `BasicSRDataset` gives images in [0, 1].
        init_cfg (dict): As of any module of mmengine; `dict(type='Pretrained', checkpoint=...)` begins with a
            checkpoint of either host.

    Raises:
        UserError: an unknown network, loss or option; a loss that the network cannot feed.
    """

    wants_log_var = False  # in 'predict'; a hook that draws maps sets it

    def __init__(self, generator, pixel_loss=None, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor or _ToDevice(), init_cfg)
        self.network_g = to_builtins(generator)
        self.generator = build_network(self.network_g)
        self.gives_log_var = 'return_log_var' in inspect.signature(self.generator.forward).parameters
        keep_image_convs_in_fp32(self.generator)  # where an optimizer wrapper makes it autocast
        self.pixel_loss = pixel_loss and _build_loss(to_builtins(pixel_loss))
        self.loss_outputs = required_outputs_of(self.pixel_loss)
        raise_errors(check_required_outputs(type(self.generator), self.pixel_loss, names=('pixel_loss', 'generator')))

    @property
    def begins_with_checkpoint(self):
        return (self.init_cfg or {}).get('type') == 'Pretrained'

    def init_weights(self):
        """As of any module of mmengine, but a `Pretrained` checkpoint is read as `NetworkCheckpointHook` reads
        `load_from`: for engines whose own `load_from` takes nothing but their own checkpoints, such as DeepSpeed.

        Raises:
            UserError: the checkpoint does not fit the generator.
        """
        if not self.begins_with_checkpoint:
            return super().init_weights()
        path = self.init_cfg['checkpoint']
        state_dict, _, _ = match_state_dict(self.generator, load_checkpoint(path), path, option='generator')
        self.generator.load_state_dict(state_dict)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        """
        Args:
            inputs (Tensor): LR images `(N, C, H, W)`, RGB in [0, 1].
            data_samples (dict): What `BasicSRDataset` gives beside them, of the whole batch: `gt`, `(N, C, upscale * H,
                upscale * W)`; for step 2 with cached maps `log_var`; for 'predict' `set`, `lq_path` and so on.
            mode (str): What is returned: 'tensor', the SR images; 'loss', for training; 'predict', for metrics.

        Returns:
            Tensor | dict[str, Tensor] | list[dict]: The SR images `(N, C, upscale * H, upscale * W)`; `loss_pix`; for
            each image its data sample with `sr`, and `log_var` where a hook asked for it, `(C, H, W)` on the CPU.
        """
        if mode == 'tensor':
            return self.generator(inputs)
        if mode == 'loss':
            given = {name: data_samples[name] for name in EXTRA_OUTPUTS if name in data_samples}
            sr, maps = forward_with_outputs(self.generator, inputs, self.loss_outputs, given)
            return {'loss_pix': self.pixel_loss(sr, data_samples['gt'], **maps)}
        if mode == 'predict':
            return self._predict(inputs, data_samples or {})
        raise ValueError(f"mode is 'tensor', 'loss' or 'predict', not '{mode}'.")

    @torch.no_grad()
    def _predict(self, inputs, data_samples):
        height, width = inputs.shape[2:]
        lq = pad_to_multiple(inputs, get_required_multiple(self.network_g))
        sr, maps = forward_with_outputs(self.generator, lq, ['log_var'] * self.wants_log_var, {})
        scale = sr.shape[2] // lq.shape[2]
        images = {name: value[:, :, :scale * height, :scale * width].cpu() for name, value in
                  {'sr': sr, **maps}.items()}
        return [{name: value[number] for name, value in {**data_samples, **images}.items()}
                for number in range(len(inputs))]


def _build_loss(section):
    """The loss of BasicSR's registry that a section describes, ours or its own."""
    raise_errors(problem.message for problem in check_class_options(LOSS_REGISTRY, section, 'pixel_loss'))
    if section.get('reduction') == 'none':
        raise UserError('pixel_loss: reduction: none gives a map, and training needs a number; write mean.')
    loss = build_loss(section, 'pixel_loss: ')
    return loss(**{key: value for key, value in section.items() if key != 'type'}) if isinstance(loss, type) else loss
