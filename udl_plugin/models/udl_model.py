"""BasicSR's SRModel for both steps: hands the loss the log-variance that it asks for, saves maps in validation, and
trains faster or in less memory where it is asked to."""
import contextlib
import io
import math
from collections import OrderedDict
from os import path as osp

import numpy as np
import torch
from basicsr.utils import get_root_logger

from udl_plugin.archs.mixed_precision import keep_image_convs_in_fp32
from udl_plugin.archs.outputs import EXTRA_OUTPUTS, forward_with_outputs, required_outputs_of
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.archs.two_step import TwoStep
from udl_plugin.checkpoints.state_dict import load_matching_state_dict
from udl_plugin.config.cross_checks import check_map_fingerprint, check_options, metrics_of_maps
from udl_plugin.inference.visualize import encode_png, uncertainty_picture
from udl_plugin.models.lasting_model import LastingModel
from udl_plugin.training import signals
from udl_plugin.utils.atomic_io import atomic_write

USUAL_SCALE = 1024  # of the gradients under fp16: overflows above it are the scaler's way
LEAST_SCALE = 1e-4  # of the gradients under fp16, halved from 65536 with every overflow
COLLAPSED_SPREAD = 0.05  # spread of a log-variance that tells nothing: weights of step 2 from 1 to 1.05
DTYPES = {None: None, 'bf16': torch.bfloat16, 'fp16': torch.float16}  # of amp


class UDLModel(LastingModel):
    """Step 1 (`EDSRVar`, ESU), step 2 (`EDSRTwo`, UDL), and their test. All options of SRModel, and these:

        train:
          amp: bf16                    # or fp16: autocast; images, losses, weights and checkpoints stay float32
          channels_last: true          # memory format of weights and features
          compile: true                # torch.compile, of the training alone
          accumulate: 4                # each batch goes through in so many parts; as one batch, in less memory
          max_skips: 10                # ends after so many iterations in a row whose loss or gradients are not finite
        logger:
          save_keep: 3                 # checkpoints and states that are kept; without it, all
        val:
          save_best: psnr              # net_g_best.pth: best by this metric, on the first set; or SET/METRIC
          amp: bf16                    # or fp16, as in training
          save_uncertainty: true       # beside each SR image: IMAGE_uncertainty.png, the map as a picture, and
                                       # IMAGE_log_var.npy, float32 (C, H, W): log of the error's scale in 8-bit levels
          uncertainty_limits: [-1, 4]  # of all pictures, from blue to red; without it, each map's own

    Metrics of maps (`udl_plugin/metrics/`) go under `val: metrics` as BasicSR's own do.

    A loss that has `required_outputs`, names such as `log_var`, is called as `loss(sr, gt, log_var=...)`, with what is in the
    batch under that name (see `PairedImageUncertaintyDataset`), or else with what the network gives under
    `return_log_var=True`; any other as `loss(sr, gt)`.

    Args:
        opt (dict): As BasicSR's `parse_options` returns it.

    Raises:
        UserError: options, data or checkpoint do not fit each other; before the first iteration.
    """

    def __init__(self, opt):
        check_options(opt)
        self.save_uncertainty = (opt.get('val') or {}).get('save_uncertainty', False)
        self.map_metrics = metrics_of_maps(opt)
        self.wants_log_var = self.save_uncertainty or bool(self.map_metrics)  # of the network, in validation
        self.log_var = None  # of the last image that was tested
        self.validating = None  # the data set's name and the iteration, during validation
        train_opt = opt.get('train') or {}
        self.amp, self.val_amp = (DTYPES[(opt.get(section) or {}).get('amp')] for section in ('train', 'val'))
        self.channels_last = train_opt.get('channels_last', False)
        self.accumulate = train_opt.get('accumulate') or 1
        super().__init__(opt)

    def model_to_device(self, net):
        return super().model_to_device(self.arrange(net))

    def arrange(self, net):
        """Makes a network, in place, one for the precision and memory format of the options."""
        if self.amp or self.val_amp:
            keep_image_convs_in_fp32(net)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def autocast(self, dtype):
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def init_training_settings(self):
        super().init_training_settings()
        net = self.get_bare_model(self.net_g)
        if isinstance(net, TwoStep):
            check_map_fingerprint(self.opt, net.var_net.state_dict())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        # beside the network itself, which is validated, saved and averaged under its own names
        self.net_of_step = torch.compile(self.net_g) if self.opt['train'].get('compile') else self.net_g
        if self.ema_decay > 0:
            self.arrange(self.net_g_ema)
        if isinstance(net, TwoStep) and self.ema_decay > 0:
            # upstream may have read `params` into one and `params_ema` into the other; the frozen branch is one
            self.net_g_ema.var_net.load_state_dict(net.var_net.state_dict())
        self.last_log_var = None
        self.loss_outputs = required_outputs_of(self.cri_pix)

    def optimize_parameters(self, current_iter):
        self.optimizer_g.zero_grad()
        parts, means = self._parts(), {}
        before = [(buffer, buffer.clone()) for buffer in self.running_statistics()]
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            # under DistributedDataParallel, gradients travel once
            with contextlib.nullcontext() if last or not self.opt['dist'] else self.net_g.no_sync():
                losses = self.compute_losses(**part)
                self.scaler.scale(sum(losses.values()) / len(parts)).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / len(parts)
        told, finite = self.agreed(signals.pending() or 0, self.is_finite(means))
        if finite:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
            overflowed = self.scaler.get_scale() < scale  # then the scaler has left the weights as they are
            if self.ema_decay > 0 and not overflowed:
                self.model_ema(decay=self.ema_decay)
            # the scaler begins high, and finds its place; below it, gradients are not finite by themselves
            self.own_finite = finite = not (overflowed and self.scaler.get_scale() < USUAL_SCALE)
        if not finite:
            for buffer, value in before:
                buffer.copy_(value)
        self.log_dict = self.reduce_loss_dict(means)
        self.count_skips(current_iter, finite)
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise FloatingPointError('train: amp: fp16: the gradients overflow in every iteration; write bf16.')
        self.finish(current_iter, told)

    def _parts(self):
        """The batch in hand in as many parts as `accumulate` says: each what `compute_losses` takes."""
        batch = {'lq': self.lq, 'gt': self.gt, **self.given}
        return [dict(zip(batch, part)) for part in zip(*(tensor.chunk(self.accumulate) for tensor in batch.values()))]

    def compute_losses(self, lq, gt, **given):
        """Runs the network on a batch and returns upstream's losses by upstream's names, weighted.

        Args:
            lq, gt (Tensor): `(N, C, H, W)`, `(N, C, upscale * H, upscale * W)`.
            given (Tensor): What the loss needs, as far as it is there already.
        """
        losses = OrderedDict()
        with self.autocast(self.amp):
            self.output, maps = forward_with_outputs(self.net_of_step, lq, self.loss_outputs, given)
        if self.cri_pix:
            if 'log_var' in maps:
                self.last_log_var = maps['log_var'].detach()
            try:
                losses['l_pix'] = self.cri_pix(self.output, gt, **maps)
            except FloatingPointError as err:  # our losses say what is to blame; others are just not finite
                self.blamed = f' {err}'
                losses['l_pix'] = math.nan * sum(part.sum() for part in (self.output, *maps.values()))
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(self.output, gt)
            losses.update({name: loss for name, loss in (('l_percep', perceptual), ('l_style', style))
                           if loss is not None})
        return losses

    @staticmethod
    def _refuse_overflow(amp, section, *tensors):
        """Where upstream's losses and images would go on with what is no number."""
        if amp is torch.float16 and not all(torch.isfinite(tensor).all() for tensor in tensors):
            raise FloatingPointError(f'{section}: amp: fp16: the network gives values beyond 65504, where fp16 ends; '
                                     'write bf16.')

    def load_network(self, net, load_path, strict=True, param_key='params'):
        """As upstream's, but a checkpoint that does not fit is explained, and step 2 takes one of step 1.

        Raises:
            UserError: names the option, the file and the mismatch.
        """
        net = self.get_bare_model(net)
        if self.opt['path'].get('param_key_g', 'params') is None:
            param_key = None  # the file is a state dict itself, for EMA too, where upstream asks for `params_ema`
        state_dict, found_key, mismatch = load_matching_state_dict(net, load_path, param_key, strict)
        logger = get_root_logger()
        if found_key != param_key:
            logger.info(f'Loading: {param_key} does not exist, use {found_key}.')
        logger.info(f'Loading {type(net).__name__} model from {load_path}, with param key: [{found_key}].')
        if mismatch:
            self._print_different_keys_loading(net, state_dict, strict)  # also drops what has another shape
            # the moving average starts where the network does, with what the file does not have too
            state_dict = {**self.get_bare_model(self.net_g).state_dict(), **state_dict}
        net.load_state_dict(state_dict, strict=strict)

    def feed_data(self, data):
        super().feed_data(data)
        self.given = {name: data[name].to(self.device) for name in EXTRA_OUTPUTS if name in data}

    def test(self):
        """As upstream's, for images of any size: SwinIR's windows, say, are filled up. A signal may end it before."""
        if not self.opt['dist']:  # others would wait for this process
            signals.check()
        lq = self.lq
        height, width = (self.opt['scale'] * size for size in lq.shape[2:])
        self.lq = pad_to_multiple(lq, get_required_multiple(self.opt['network_g']))
        with self.autocast(self.val_amp):
            self.log_var = self._test()
        self._refuse_overflow(self.val_amp, f'{", ".join(self.lq_path or [])}: val', self.output)
        self.lq, self.output = lq, self.output[:, :, :height, :width].float()
        if self.log_var is not None:
            self.log_var = self.log_var[:, :, :height, :width].float().cpu()
            for metric in self.map_metrics:
                metric['log_var'] = self.log_var[0].numpy()  # upstream hands metrics the images and their options
            if self.save_uncertainty and self.validating:
                self._write_uncertainty(self.log_var[0].numpy())

    def _test(self):
        """Sets `self.output`; returns the log-variance where it is wanted."""
        if not self.wants_log_var:
            super().test()
            return None
        # not through DataParallel: with keyword arguments it cannot split a batch of one
        net = self.get_bare_model(getattr(self, 'net_g_ema', self.net_g))
        net.eval()
        with torch.no_grad():
            self.output, log_var = net(self.lq, return_log_var=True)
        if self.is_train:
            self.net_g.train()
        return log_var

    def get_current_visuals(self):
        """As upstream's, and `log_var` where validation asked for it."""
        visuals = super().get_current_visuals()
        if self.log_var is not None:
            visuals['log_var'] = self.log_var
        return visuals

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img):
        name = dataloader.dataset.opt['name']
        if self.is_train:
            current_iter = min(current_iter, int(self.opt['train']['total_iter']))  # upstream counts on, in the end
            self._warn_of_flat_map()
        self.validating = (name, current_iter)
        with _emptied_once():
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        self.validating = None
        for metric in self.map_metrics:
            metric.pop('log_var', None)
        if self.is_train:
            self.keep_best(name, current_iter)
            self.note_validation(name, current_iter)

    def _warn_of_flat_map(self):
        """Of the batch that was trained last, in each validation."""
        if self.last_log_var is None:
            return
        spread = map_spread(self.last_log_var)
        if spread < COLLAPSED_SPREAD:
            get_root_logger().warning(
                f'The log-variance is nearly one value ({float(self.last_log_var.mean()):.3f} ± {spread / 2:.3f} in an '
                'image): it tells no pixel from another, and step 2 with it is plain L1. After the first hundreds of '
                'iterations that means a variance head that is dead or saturated: train step 1 with img_range: 255 in '
                'pixel_opt, and images that vary.')

    def _write_uncertainty(self, log_var):
        """Writes the map beside where upstream puts the SR image of `self.lq_path`."""
        dataset_name, current_iter = self.validating
        image_name = osp.splitext(osp.basename(self.lq_path[0]))[0]
        folder = osp.join(self.opt['path']['visualization'], image_name if self.is_train else dataset_name)
        suffix = current_iter if self.is_train else self.opt['val'].get('suffix') or self.opt['name']
        stem = osp.join(folder, f'{image_name}_{suffix}')
        raw = io.BytesIO()
        np.save(raw, log_var)
        atomic_write(f'{stem}_log_var.npy', raw.getvalue())
        atomic_write(f'{stem}_uncertainty.png', encode_png(
            uncertainty_picture(log_var, self.opt['val'].get('uncertainty_limits'))))


def map_spread(log_var):
    """How far apart the 5th and 95th percentiles of an image in `(N, C, H, W)` are: the most of channels and images."""
    low, high = torch.quantile(log_var[:4].float().flatten(2), torch.tensor([0.05, 0.95], device=log_var.device), dim=2)
    return float((high - low).max())


@contextlib.contextmanager
def _emptied_once():
    """Upstream gives the GPU's memory back after each image, and has to ask for it again for the next one. PyTorch
    gives it back by itself where it runs short; here, at the end of the block."""
    empty_cache = torch.cuda.empty_cache
    torch.cuda.empty_cache = lambda: None
    try:
        yield
    finally:
        torch.cuda.empty_cache = empty_cache
        empty_cache()
