"""BasicSR's SRModel for both steps of uncertainty-driven training, with faster training and checkpoints that last."""
from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import Tensor, nn

from udl_plugin.archs.mixed_precision import keep_image_convs_in_fp32
from udl_plugin.archs.outputs import (
    EXTRA_OUTPUTS,
    forward_with_outputs,
    get_sr_image,
    provides_output,
    required_outputs_of,
)
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.archs.two_step import TwoStep
from udl_plugin.checkpoints.network_file import find_error_loss
from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import (
    fingerprint,
    get_error_scale,
    get_uncertainty_loss,
    load_matching_state_dict,
)
from udl_plugin.config.cross_checks import (
    check_map_fingerprint,
    check_options,
    get_param_key,
    is_resumed,
    metrics_of_maps,
)
from udl_plugin.config.problems import errors_at
from udl_plugin.config.schema import LOG_IMAGES, keeps_images_on_device
from udl_plugin.data.image_cache import CROP, ImageCache
from udl_plugin.errors import UserError
from udl_plugin.inference.tiles import find_overlap, get_receptive_radius, run_in_tiles
from udl_plugin.inference.visualize import describe_owner
from udl_plugin.losses.build import describe_loss, get_head_loss
from udl_plugin.losses.uncertainty_loss import explain_loss
from udl_plugin.metrics.uncertainty_metrics import ERROR_SCALES
from udl_plugin.models.captured_step import CapturedStep, computes_from_tensors, why_not_captured
from udl_plugin.models.checkpoint_manager import CheckpointManager, fit_state_to_parameters, schedule_of_options
from udl_plugin.models.nonfinite_guard import NonFiniteGuard
from udl_plugin.models.teacher import Teacher
from udl_plugin.models.train_step import TrainStep
from udl_plugin.models.training_scalars import get_training_scalars
from udl_plugin.models.validation import COLLAPSED_SPREAD, map_spread, validate
from udl_plugin.utils.distributed import all_over_ranks, gather_over_ranks
from udl_plugin.utils.user_imports import get_imports, import_user_modules

DTYPES = {None: None, 'bf16': torch.bfloat16, 'fp16': torch.float16}  # of `amp`


class UDLModel(SRModel):
    """Step 1 (`EDSRVar`, ESU), step 2 (`EDSRTwo`, UDL), and their test. All options of SRModel, and these:

        train:
          amp: bf16                    # or fp16: autocast; images, losses, weights and checkpoints stay float32
          channels_last: true          # memory format of weights and features
          compile: true                # torch.compile, for training only
          cuda_graph: false            # the step as one CUDA graph; default: auto, where possible; true: or an error
          tf32: false                  # float32 convolutions in full precision; default: true, as in PyTorch
          accumulate: 4                # each batch passes through in so many parts: same result, less memory
          grad_clip: 10                # upper limit of the gradients' norm, logged as grad_norm
          max_skips: 10                # end after so many iterations in a row whose loss or gradients are not finite
          teacher: {path: FILE.pth}    # any SR network, for losses with `source: teacher_residual`; see `Teacher`
        logger:
          save_keep: 3                 # how many checkpoints and states to keep; default: all
          log_images: 4                # images of each validation set in TensorBoard, with their errors; 0: none
        val:
          save_best: psnr              # net_g_best.pth: best by this metric, on the first set; or SET/METRIC
          amp: bf16                    # or fp16, as in training
          tile: 256                    # in tiles of 256 x 256 LR pixels, to save memory; default: the full image
          save_uncertainty: true       # next to each SR image: IMAGE_expected_error.png, a picture in 8-bit levels,
                                       # IMAGE_expected_error.npy, float32 (H, W, C), and IMAGE_log_var.npy, (C, H, W)
          uncertainty_limits: [0, 20]  # of all pictures, in 8-bit levels; default: each map's own
          uncertainty_colormap: inferno  # or authors: JET, as in the paper

    Metrics of uncertainty maps (`udl_plugin/metrics/`) go under `val: metrics` like BasicSR's own.

    A loss with `required_outputs`, such as `log_var`, is called as `loss(sr, gt, log_var=...)`, with the batch's tensor
    of that name (see `PairedImageUncertaintyDataset`), or else the network's output under `return_log_var=True`; any
    other loss as `loss(sr, gt)`. Of a loss with a method `set_progress(iteration, total_iter)`, that is called before
    each iteration. If it changes nothing but tensors, in place, as a CUDA graph requires, declare
    `progress_in_tensors = True` in the class.

    A class derived from this one declares the options that it adds: section, name and type (bool, int, float, str, list
    or dict). They may be missing from a yml: `extra_options = {'train': {'my_weight': float}}`.

    Args:
        opt: As BasicSR's `parse_options` returns it.

    Raises:
        UserError: options, data and checkpoint do not fit each other; before the first iteration.
    """

    extra_options: ClassVar[dict[str, dict[str, type]]] = {}

    def __init__(self, opt: dict[str, Any]):
        import_user_modules(get_imports(opt))  # already done by udl-train; under BasicSR's command, here
        check_options(opt)
        opt['path']['param_key_g'] = get_param_key(opt)  # under BasicSR's command too; `opt` is a copy
        train_opt, val_opt = opt.get('train') or {}, opt.get('val') or {}
        self.amp, self.val_amp = (DTYPES[section.get('amp')] for section in (train_opt, val_opt))
        self.channels_last = train_opt.get('channels_last', False)
        self.val_tile, self.val_overlap = val_opt.get('tile'), 0
        if self.val_tile:
            self.val_overlap, seams = find_overlap(self.val_tile, get_receptive_radius(opt['network_g']))
            if seams:
                get_root_logger().info(f'val.tile: {self.val_tile}: {seams}')
        self.save_uncertainty = val_opt.get('save_uncertainty', False)
        self.map_metrics = list(metrics_of_maps(opt).values())
        self.validates_maps = self.save_uncertainty or bool(self.map_metrics)
        self.gets_map = self.validates_maps  # whether `test` does, for the next image
        self.lq: Tensor
        self.gt: Tensor
        self.output: Tensor
        self.log_var: Tensor | None = None  # of the last image tested
        self.batch: dict[str, Tensor] = {}  # the last one trained with
        self._log: dict[str, float] = {}
        self.run_step: TrainStep | CapturedStep | None = None
        self.image_cache: ImageCache | None = None
        self.loss_inputs: dict[str, Tensor] = {}  # of that batch, or its last part
        self.paths: list[str] = []  # of the current batch's LR images
        read = functools.lru_cache(maxsize=1)(load_checkpoint)  # the network's and the EMA's file are one
        self._read_checkpoint: Callable[[Any], Any] = read
        super().__init__(opt)
        read.cache_clear()

    def model_to_device(self, net: nn.Module) -> nn.Module:
        return super().model_to_device(self._convert(net))

    def _convert(self, net: nn.Module) -> nn.Module:
        """Prepares a network, in place, for the precision and memory format of the options."""
        if self.amp or self.val_amp:
            keep_image_convs_in_fp32(net)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def _autocast(self, dtype: torch.dtype | None) -> torch.autocast:
        # autocast's cache of cast weights would outlive the capture of a CUDA graph. Not off in the capture alone:
        # torch.compile would compile again
        keeps_casts = not isinstance(self.run_step, CapturedStep)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None, cache_enabled=keeps_casts)

    # ---- training

    def init_training_settings(self) -> None:
        super().init_training_settings()
        net, train_opt = self.get_bare_model(self.net_g), self.opt['train']
        if self.device.type == 'cuda':
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = train_opt.get('tf32') is not False
        layer = getattr(getattr(net, 'var_net', net), 'feature_layer', None)
        if layer:
            get_root_logger().info(f'Variance head: takes the {layer.num_feat} channels that enter {layer.module}, at '
                                   f'1/{layer.upscale} of the size of the SR image.')
        if isinstance(net, TwoStep):
            check_map_fingerprint(self.opt, net.var_net.state_dict())
        if self.ema_decay > 0:
            self._convert(self.net_g_ema)
            if isinstance(net, TwoStep):
                # BasicSR may have read `params` into one and `params_ema` into the other; both share the frozen net
                self.net_g_ema.var_net.load_state_dict(net.var_net.state_dict())
        # next to the network itself, which is validated, saved and averaged under its own names
        self.trained_net = torch.compile(self.net_g) if train_opt.get('compile') else self.net_g
        if train_opt.get('compile') and isinstance(self.cri_pix, nn.Module) and computes_from_tensors(self.cri_pix):
            self.cri_pix.compile()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        self.train_step = TrainStep(
            self.net_g, lambda **part: self.compute_losses(**part), self.optimizer_g, self.scaler,
            self._update_average if self.ema_decay > 0 else None,
            functools.partial(all_over_ranks, dist=self.opt['dist']),
            train_opt.get('accumulate') or 1, train_opt.get('grad_clip'))
        self.run_step = self._build_step(train_opt.get('cuda_graph'))
        self.guard = NonFiniteGuard(self.opt, at_once=not self.train_step.stays_on_device)
        self.loss_outputs = required_outputs_of(self.cri_pix)
        dataset_opt = (self.opt.get('datasets') or {}).get('train') or {}
        if keeps_images_on_device(dataset_opt):
            self.image_cache = ImageCache(dataset_opt, self.device)
        self.teacher = None
        if train_opt.get('teacher'):
            with errors_at('train', 'teacher'):
                self.teacher = Teacher(train_opt['teacher'], self.opt.get('scale'), self._convert)
        self.best_metric_results: dict[str, dict[str, dict]] = {}
        paths = self.opt['path']
        self.uncertainty_loss = self._uncertainty_loss()
        self.checkpoints = CheckpointManager(paths['models'], paths['training_states'], self.opt['network_g'],
                                             self.uncertainty_loss, (self.opt.get('logger') or {}).get('save_keep'))
        self.log_images = (self.opt.get('logger') or {}).get('log_images', LOG_IMAGES)
        self.error_limits: dict[str, float] = {}  # by picture, in 8-bit levels; see `draw_errors`
        self.map_loss = self._find_map_loss()
        for line in explain_loss(self.cri_pix):
            get_root_logger().info(line)
        self._network_is_saved = True  # the last time
        self._positions: list[Any] = []  # of all ranks, for the next state
        self._saved_state: dict[str, Any] = {}  # the last one that is on disk

    def _uncertainty_loss(self) -> str | None:
        """The loss that trains the variance head, or trained the one in the checkpoint, as far as that is recorded.

        None if the head is not trained on errors in 8-bit levels: its map has another unit.
        """
        loss = getattr(self, 'cri_pix', None)  # none in a test
        if getattr(loss, 'trains_log_var', False):
            return get_head_loss(loss) if getattr(loss, 'img_range', None) == 255 else None
        path = self.opt['path'].get('pretrain_network_g')
        return path and get_uncertainty_loss(self._read_checkpoint(path))

    @functools.cached_property
    def map_unit(self) -> dict[str, Any]:
        """What turns a map into an expected error and its picture: the arguments of `encode_map_files`."""
        val_opt, path = self.opt['val'], self.opt['path'].get('pretrain_network_g')
        scale = 1.0 if self.is_train or not path else get_error_scale(self._read_checkpoint(path))
        loss, note = find_error_loss(self._uncertainty_loss())
        if note:
            get_root_logger().warning(f'Uncertainty map: {note}')
        stage = 'step 2' if isinstance(self.get_bare_model(self.net_g), TwoStep) else 'step 1'
        return {'loss': loss, 'error_scale': scale, 'owner': describe_owner(stage, scale),
                'limits': val_opt.get('uncertainty_limits'),
                'colormap': val_opt.get('uncertainty_colormap') or 'inferno'}

    def _find_map_loss(self) -> str | None:
        """The loss whose formula turns the map into an expected error; None: no map, or its unit is not known."""
        if not provides_output(self.get_bare_model(self.net_g), 'log_var'):
            return None
        if getattr(self.cri_pix, 'trains_log_var', False):
            return self.uncertainty_loss if self.uncertainty_loss in ERROR_SCALES else None
        return find_error_loss(self.uncertainty_loss)[0]

    def get_optimizer(self, optim_type: str, params: list[nn.Parameter], lr: float,
                      **options: Any) -> torch.optim.Optimizer:
        """BasicSR's; on a GPU, Adam in one kernel, unless the yml says `fused: false`."""
        if self.device.type == 'cuda' and optim_type == 'Adam' and options.get('foreach') is None:
            options.setdefault('fused', True)
        return super().get_optimizer(optim_type, params, lr, **options)

    def _build_step(self, cuda_graph: bool | str | None) -> TrainStep | CapturedStep:
        """
        Raises:
            UserError: a CUDA graph is asked for and impossible.
        """
        reason = why_not_captured(self.train_step, self.opt, self.cri_pix, self.cri_perceptual)
        if cuda_graph is True and reason:
            raise UserError(f'train.cuda_graph: true: {reason}. Write auto to train without a graph.')
        is_known = type(self).compute_losses is UDLModel.compute_losses  # another may read numbers that change
        if reason or cuda_graph is False or (cuda_graph is not True and not is_known):
            return self.train_step
        return CapturedStep(self.train_step, is_required=cuda_graph is True)

    @torch.no_grad()
    def _update_average(self, applied: Tensor) -> None:
        """Updates the EMA, if `applied` is True."""
        if not self.train_step.stays_on_device:
            if applied:
                self.model_ema(decay=self.ema_decay)
            return
        averages = list(self.net_g_ema.parameters())
        changes = torch._foreach_sub(list(self.get_bare_model(self.net_g).parameters()), averages)
        torch._foreach_mul_(changes, (1 - self.ema_decay) * applied)
        torch._foreach_add_(averages, changes)

    def feed_data(self, data: dict[str, Any]) -> None:
        for tensor in data.values():  # of `prefetch_mode: cuda`, whose stream would use its memory again too soon
            if torch.is_tensor(tensor) and tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream())
        if CROP in data and self.image_cache:
            data = {**data, **self.image_cache.cut(data[CROP])}
        # of pinned memory this does not wait; mixed memory formats are slow on a GPU
        layout = torch.channels_last if self.channels_last and self.device.type == 'cuda' else torch.contiguous_format
        tensors = {name: data[name].to(self.device, non_blocking=True, memory_format=layout)
                   for name in ('lq', 'gt', *EXTRA_OUTPUTS) if name in data}
        super().feed_data(tensors)
        self.paths = data.get('lq_path') or []
        self.given = {name: tensors[name] for name in EXTRA_OUTPUTS if name in tensors}

    def optimize_parameters(self, current_iter: int) -> None:
        if hasattr(self.cri_pix, 'set_progress'):
            self.cri_pix.set_progress(current_iter, self.opt['train']['total_iter'])
        self.batch = {'lq': self.lq, 'gt': self.gt}
        assert self.run_step is not None
        self.result, self._log = self.run_step({**self.batch, **self.given}), {}
        self.guard.record(current_iter, self.result, self.paths)
        if self.guard.is_due(current_iter):
            self._check_skips()

    def _check_skips(self) -> None:
        self.guard.check(self.batch, self.loss_inputs)

    @property
    def log_dict(self) -> dict[str, float]:
        """Losses of the last iteration by name, means over all ranks, and `grad_norm` with `grad_clip`. The first look
        waits for the GPU; in distributed training all ranks have to take it."""
        if not self._log:
            self._log = self.reduce_loss_dict(self.result.losses)
            if self.train_step.grad_clip is not None:
                self._log['grad_norm'] = float(self.result.grad_norm)
        return self._log

    @log_dict.setter
    def log_dict(self, value: dict[str, float]) -> None:
        self._log = value

    def get_current_log(self) -> dict[str, float]:
        """`log_dict`, and what `get_training_scalars` says of this rank's batch, or of its last part."""
        return {**self.log_dict, **get_training_scalars(self.loss_inputs, self.cri_pix)}

    def compute_losses(self, lq: Tensor, gt: Tensor, **given: Tensor) -> dict[str, Tensor]:
        """Runs the network on a batch and returns BasicSR's losses under their names, weighted.

        Args:
            lq: `(N, C, H, W)` in [0, 1].
            gt: `(N, C, scale * H, scale * W)` in [0, 1].
            given: Outputs that the loss requires and the data set provides.
        """
        losses: dict[str, Tensor] = OrderedDict()
        with self._autocast(self.amp):
            if self.teacher:
                given = {**given, **self.teacher.run(lq, self.loss_outputs)}
            self.output, outputs = forward_with_outputs(self.trained_net, lq, self.loss_outputs, given)
        self.loss_inputs = {'pred': self.output.detach(), 'target': gt,
                            **{name: output.detach() for name, output in outputs.items()}}
        if self.cri_pix:
            losses['l_pix'] = self.cri_pix(self.output, gt, **outputs)
            if getattr(losses['l_pix'], 'shape', None) != ():
                raise UserError(f'train.pixel_opt: type: {type(self.cri_pix).__name__} returns '
                                f"{describe_loss(losses['l_pix'])}, not one number; return the mean over all pixels.")
        if self.cri_perceptual:
            perceptual, style = self.cri_perceptual(self.output, gt)
            losses.update({name: loss for name, loss in (('l_percep', perceptual), ('l_style', style))
                           if loss is not None})
        return losses

    # ---- validation

    def test(self) -> None:
        """Sets `output` and, if `gets_map`, `log_var`, for an image of any size."""
        if not self.val_tile:
            self._test_image()
            return

        def run(part: Tensor) -> Tensor:
            self.lq = part
            self._test_image()
            return self.output if self.log_var is None else torch.cat((self.output.cpu(), self.log_var), 1)

        lq = self.lq
        result = run_in_tiles(run, lq, self.opt['scale'], self.val_tile, self.val_overlap)
        channels = self.output.shape[1]
        self.lq, self.output = lq, result[:, :channels]
        if self.log_var is not None:
            self.log_var = result[:, channels:]

    def _test_image(self) -> None:
        lq, net = self.lq, self.get_bare_model(getattr(self, 'net_g_ema', self.net_g))
        height, width = (self.opt['scale'] * size for size in lq.shape[2:])
        self.lq = pad_to_multiple(lq, get_required_multiple(self.opt['network_g']))
        with self._autocast(self.val_amp):
            if self.gets_map:
                # not through DataParallel, which cannot split a batch of one with keyword arguments
                net.eval()
                with torch.no_grad():
                    self.output, self.log_var = net(self.lq, return_log_var=True)
                if self.is_train:
                    self.net_g.train()
            else:
                super().test()
                self.output, self.log_var = get_sr_image(self.output), None
        if self.val_amp is torch.float16 and not self.output.isfinite().all():
            raise FloatingPointError(f'{", ".join(self.paths)}: val.amp: fp16: the network returns values beyond '
                                     '65504, the limit of fp16; write bf16.')
        self.lq, self.output = lq, self.output[:, :, :height, :width].float()
        if self.log_var is not None:
            self.log_var = self.log_var[:, :, :height, :width].float().cpu()

    def get_current_visuals(self) -> dict[str, Tensor]:
        """BasicSR's, and `log_var` if validation needs it."""
        visuals = super().get_current_visuals()
        if self.log_var is not None:
            visuals['log_var'] = self.log_var
        return visuals

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        if self.is_train:
            current_iter = min(int(current_iter), int(self.opt['train']['total_iter']))  # BasicSR's count ends too high
            self._warn_if_collapsed()
        validate(self, dataloader, current_iter, tb_logger, save_img)
        if isinstance(current_iter, int) and self.is_train:
            self._save_best(dataloader.dataset.opt['name'], current_iter)

    def _warn_if_collapsed(self) -> None:
        log_var = self.loss_inputs.get('log_var')
        if log_var is None:
            return
        spread = map_spread(log_var)
        if spread < COLLAPSED_SPREAD:
            get_root_logger().warning(
                f'The uncertainty map has collapsed: log_var is {float(log_var.mean()):.3f} ± '
                f'{spread / 2:.3f} within an image. It does not tell pixels apart, and step 2 with it is plain L1. '
                'After the first few hundred iterations this means a dead or saturated variance head: train step 1 '
                'with img_range: 255 in pixel_opt, and images that vary.')

    # ---- checkpoints

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True,
                     param_key: str | None = 'params') -> None:
        """Like BasicSR's, but explains a checkpoint that does not fit, and step 2 accepts one of step 1.

        Raises:
            UserError: names the option, the file and the mismatch.
        """
        net = self.get_bare_model(net)
        if self.opt['path']['param_key_g'] is None:
            param_key = None  # the file is a state dict itself, for EMA too, where BasicSR reads `params_ema`
        state_dict, found_key, mismatch = load_matching_state_dict(
            net, load_path, param_key, strict, self._read_checkpoint, self.opt['network_g'], is_resumed(self.opt))
        logger = get_root_logger()
        if found_key != param_key:
            logger.info(f'Loading: {param_key} does not exist, use {found_key}.')
        logger.info(f'Loading {type(net).__name__} model from {load_path}, with param key: [{found_key}].')
        if mismatch:
            self._print_different_keys_loading(net, state_dict, strict)  # also drops what has another shape
            # the EMA starts where the network does, also for what the file does not have
            state_dict = {**self.get_bare_model(self.net_g).state_dict(), **state_dict}
        net.load_state_dict(state_dict, strict=strict)

    def save(self, epoch: int, current_iter: int, position: dict[str, Any] | None = None) -> None:
        """Writes network and training state.

        Args:
            epoch, current_iter: As in BasicSR; -1 writes net_g_latest.pth only.
            position: What this rank adds to the state so that it can be resumed exactly: `places`, the data loader's
                `state_dict`, and `random`, RNG states.

        Raises:
            UserError: net_g_latest.pth could not be written.
        """
        self._check_skips()
        self._positions = gather_over_ranks(position, self.opt) if current_iter != -1 else []
        super().save(epoch, current_iter)
        if current_iter == -1 and not self._network_is_saved:
            raise UserError(f"'{self.opt['path']['models']}': net_g_latest.pth could not be written, see above. Free "
                            'some disk space; --auto_resume continues from the last state.')

    @master_only
    def save_network(self, net: Any, net_label: str, current_iter: int | str, param_key: Any = 'params') -> None:
        """Like BasicSR's, but atomic, and the file says which network it holds; see `save_checkpoint`."""
        nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
        self._network_is_saved = self.checkpoints.save_network(
            net_label, 'latest' if current_iter == -1 else current_iter,
            {key: self.get_bare_model(net).state_dict() for net, key in zip(nets, keys)})

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Like BasicSR's, but atomic, never without its network, and with all that `resume_training` restores."""
        if current_iter == -1 or not self._network_is_saved:
            return
        state = {'epoch': epoch, 'iter': current_iter, 'optimizers': [part.state_dict() for part in self.optimizers],
                 'schedulers': [part.state_dict() for part in self.schedulers], 'scaler': self.scaler.state_dict(),
                 'best_metric_results': self.best_metric_results, 'skips': self.guard.skips,
                 'skips_in_row': self.guard.skips_in_row, 'validated': False,
                 'error_limits': dict(self.error_limits),
                 'network': fingerprint(self.get_bare_model(self.net_g).state_dict())}
        if all(self._positions):
            state.update({key: [rank[key] for rank in self._positions] for key in ('places', 'random')})
        if self.checkpoints.save_state(state):
            self._saved_state = state
            if not self.guard.skips_in_row:  # otherwise the older weights may be the last good ones
                self.checkpoints.remove_old(current_iter)

    @property
    def saved_iter(self) -> int | None:
        """Iteration of the last training state that was saved, or resumed from; None if there is none."""
        return self._saved_state.get('iter')

    @master_only
    def mark_validated(self, iteration: int, random: dict[str, Any]) -> None:
        """Rewrites the state of an iteration whose validation is done, with its results.

        Args:
            iteration: Whose state is the last one saved, or the one that was resumed; otherwise nothing is written.
            random: RNG states of this process behind the validation.
        """
        state = self._saved_state
        if self.saved_iter == iteration and not state['validated'] and 'random' in state:
            state['random'][self.opt['rank']] = random
            state.update(validated=True, best_metric_results=self.best_metric_results,
                         error_limits=dict(self.error_limits))
            self.checkpoints.save_state(state)

    def _save_best(self, dataset_name: str, iteration: int) -> None:
        """Writes net_g_best.pth if this validation is the best by the metric of `save_best`."""
        metric = self.opt['val'].get('save_best')
        if not metric:
            return
        sets = [part['name'] for phase, part in self.opt['datasets'].items() if phase.split('_')[0] == 'val']
        wanted, metric = metric.rsplit('/', 1) if '/' in metric else (sets[0], metric)
        if dataset_name == wanted and self.best_metric_results[wanted][metric]['iter'] == iteration:
            nets = [self.net_g, self.net_g_ema] if self.ema_decay > 0 else [self.net_g]
            self.save_network(nets, 'net_g', 'best', ['params', 'params_ema'])

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Like BasicSR's, plus best results, fp16's scale and skipped iterations. Learning rate, schedule and optimizer
        options are those of the yml at that iteration, where BasicSR takes the state's. The data loader's position and
        the RNG states are for the training loop to restore.

        Raises:
            UserError: the state does not fit this training.
        """
        iteration = resume_state['iter']
        with schedule_of_options(self, iteration):
            try:
                super().resume_training(resume_state)
            except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as err:
                raise UserError(f'The training state of iteration {iteration} is of another network or optimizer '
                                f'({type(err).__name__}: {err}). Resume it with the yml that wrote it, or start a new '
                                'training from its weights: path.pretrain_network_g.') from err
        for optimizer in self.optimizers:
            fit_state_to_parameters(optimizer)
        if resume_state.get('scaler') and self.scaler.is_enabled():  # not in BasicSR's states, nor in those of bf16
            self.scaler.load_state_dict(resume_state['scaler'])
        self.guard.skips = resume_state.get('skips', 0)
        self.guard.skips_in_row = resume_state.get('skips_in_row', 0)
        self.error_limits = dict(resume_state.get('error_limits', {}))
        if len(resume_state.get('random', ())) == self.opt['world_size'] and self.checkpoints.has(iteration):
            self._saved_state = resume_state
        metrics = ((self.opt.get('val') or {}).get('metrics') or {}).keys()
        self.best_metric_results = {name: record for name, record in resume_state.get('best_metric_results', {}).items()
                                    if record.keys() == metrics}
