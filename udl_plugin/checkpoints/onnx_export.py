"""Writes a network as .onnx, with its uncertainty map if asked for, once onnxruntime gives the same results."""
from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.variance_head import UpsampleConv2d
from udl_plugin.checkpoints.network_file import NetworkFile, find_error_loss
from udl_plugin.checkpoints.safe_load import PathLike
from udl_plugin.errors import UserError
from udl_plugin.metrics.uncertainty_metrics import ERROR_SCALES, describe_expected_error
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.packages import import_optional
from udl_plugin.utils.plain import to_builtins

TRACED_SIZE = (2, 24, 32)  # number, height and width of the LR images that the exporter traces
CHECKED_SIZES = ((1, 17, 40), (3, 33, 16))  # of those on which the written network is compared with PyTorch
# largest difference of an SR image, in 8-bit levels, and of an expected error, relative to it, by dtype of the network
LIMITS = {torch.float32: (0.025, 0.001), torch.float16: (1.0, 0.05)}


class _OnnxNetwork(nn.Module):
    """Returns what the file does: the SR image, and with a loss the expected error, both `(N, C, H, W)`."""

    def __init__(self, file: NetworkFile, loss: str | None):
        super().__init__()
        self.net, self.loss, self.error_scale = file.build(), loss, file.error_scale

    def forward(self, lq: Tensor) -> tuple[Tensor, ...]:
        if self.loss is None:
            return (get_sr_image(self.net(lq)),)
        sr, log_var = self.net(lq, return_log_var=True)
        factor, power = ERROR_SCALES[self.loss]
        return sr, self.error_scale * factor * torch.exp(power * log_var)


def write_onnx(path: PathLike, file: NetworkFile, with_map: bool = False, half: bool = False) -> list[str]:
    """Writes a network atomically, for images of any number and size.

    Its input is `lq`, `(batch, C, height, width)`, RGB or Y in [0, 1]. Its output is `sr`, `(batch, C, sr_height,
    sr_width)`, in the same range but not clipped; `with_map` also `expected_error`, of that shape, in 8-bit levels. The
    metadata has `network_g`, `range`, `scale`, and of a map `uncertainty_loss` and `expected_error`, its unit.

    Args:
        path: An `.onnx` file.
        file: What to write.
        with_map: Whether to write the expected error too; of a file of step 2, both of its networks.
        half: Whether weights, input and outputs are float16 instead of float32.

    Returns:
        What was assumed and checked, for the user.

    Raises:
        UserError: a missing package, `with_map` for a plain network, a network that cannot be exported, or whose
            results differ by more than `LIMITS` from those of PyTorch in float32.
    """
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        import_optional(name)
    if with_map and file.stage == 'plain':
        raise UserError(f"'{path}': the input holds a plain network, without a variance head, and cannot give a map. "
                        'Use the checkpoint of step 1 or step 2, or --layout plain.')
    file = file if with_map else file.base()
    loss, note = find_error_loss(file.uncertainty_loss) if with_map else (None, '')
    dtype = torch.float16 if half else torch.float32
    net = _OnnxNetwork(file, loss)
    try:
        written = _merge_kernels(_OnnxNetwork(file, loss)).to(dtype)
        content = _to_onnx(written, file.channels_and_scale[0], dtype, _make_metadata(file, dtype, loss))
        differences = _compare(net, written, file.channels_and_scale[0], dtype, content)
    except Exception as err:  # a network that requires certain sizes, for example, may raise anything
        raise UserError(f"'{path}': {type(net.net).__name__} cannot be exported with free height and width "
                        f'({" ".join(str(err).split())[:200] or type(err).__name__}).') from err
    if not all(difference <= limit for difference, limit in zip(differences, LIMITS[dtype])):
        where, advice = ('as float16', ' Leave out --fp16.') if half else ('in onnxruntime', '')
        raise UserError(f"'{path}' is not written: {where} the network gives other images ({_describe(differences)}; "
                        f'accepted: {_describe(LIMITS[dtype][:len(differences)])}).{advice}')
    atomic_write(path, content)
    sizes = ' and '.join(f'{number} x {width} x {height}' for number, height, width in CHECKED_SIZES)
    checked = (f'In onnxruntime, on smooth random images ({sizes}), it differs from PyTorch'
               f'{" in float32" if half else ""} by up to {_describe(differences)}.')
    return [f'Note: {note}', checked] if note else [checked]


def _describe(differences: Sequence[float]) -> str:
    texts = [f'{differences[0]:.2g} of an 8-bit level in sr', *(f'{100 * value:.2g} % of expected_error'
                                                                for value in differences[1:])]
    return ' and '.join(texts)


def _merge_kernels(net: _OnnxNetwork) -> _OnnxNetwork:
    """Replaces, in place, each `UpsampleConv2d` by what it computes: some runtimes lack the einsum of its weights."""
    for parent in list(net.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, UpsampleConv2d) and layer.upscale > 1:
                merged = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, layer.upscale + 2, layer.upscale, 1)
                merged.load_state_dict({'weight': layer.merge_kernel().contiguous(), 'bias': layer.bias})
                setattr(parent, name, merged)
    return net.eval()


def _make_metadata(file: NetworkFile, dtype: torch.dtype, loss: str | None) -> dict[str, str]:
    channels, scale = file.channels_and_scale
    metadata = {'network_g': json.dumps(to_builtins(file.network_g)), 'scale': str(scale),
                'range': f'{"RGB" if channels == 3 else "Y"} in [0, 1], {str(dtype).replace("torch.", "")}'}
    if file.uncertainty_loss is not None:
        metadata['uncertainty_loss'] = file.uncertainty_loss
    if loss is not None:
        of = 'of sr' if file.stage == 'step 1' else 'of the image of the frozen network of step 1, not of sr'
        formula = describe_expected_error(loss, file.error_scale)
        metadata['expected_error'] = f'expected absolute error {of}, in 8-bit levels: {formula}'
    return metadata


def _compare(net: nn.Module, written: nn.Module, channels: int, dtype: torch.dtype, content: bytes) -> list[float]:
    """Largest difference of each output from that of `net`, in the units of `LIMITS`; infinity if there is none.

    As float16, `written` is compared too: on the CPU, onnxruntime computes much of it in float32, and a GPU does not.
    """
    session = import_optional('onnxruntime').InferenceSession(content, providers=['CPUExecutionProvider'])
    worst: dict[int, float] = {}
    for number, height, width in CHECKED_SIZES:
        # smooth images: on noise, which no photo is like, the map of a trained network may exceed float16
        coarse = torch.rand(number, channels, height // 4 + 2, width // 4 + 2)
        lq = F.interpolate(coarse, (height, width), mode='bilinear').to(dtype)
        with torch.no_grad():
            expected, rounded = net(lq.float()), written(lq)
        for outputs in ([*map(torch.from_numpy, session.run(None, {'lq': lq.numpy()}))], rounded):
            for index, (found, target) in enumerate(zip(outputs, expected)):
                difference = _difference(found, target, is_map=index == 1)
                worst[index] = max(worst.get(index, 0.0), difference)
    return list(worst.values())


def _difference(found: Tensor, expected: Tensor, is_map: bool) -> float:
    if found.shape != expected.shape:
        return math.inf
    if is_map:  # an error is at most 255; a map that expects more, or infinity, says the same
        found, expected = (values.float().clamp(max=255) for values in (found, expected))
    difference = (found.float() - expected).abs()
    value = (difference / expected if is_map else 255 * difference).max().item()
    return value if math.isfinite(value) else math.inf


def _to_onnx(net: _OnnxNetwork, channels: int, dtype: torch.dtype, metadata: dict[str, str]) -> bytes:
    number, *size = TRACED_SIZE
    lq = (torch.rand(number, channels, *size).to(dtype),)
    outputs = ['sr'] if net.loss is None else ['sr', 'expected_error']
    names, free = {'input_names': ['lq'], 'output_names': outputs}, {0: 'batch', 2: 'height', 3: 'width'}
    export: Any = torch.onnx.export  # its arguments differ between versions of PyTorch
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter('ignore')
        if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 9):
            proto = export(net, lq, **names, dynamo=True, dynamic_shapes=(free,), verbose=False).model_proto
        else:  # its newer exporter fails on the mean of BasicSR's networks
            buffer = io.BytesIO()
            export(net, lq, buffer, **names, dynamic_axes=dict.fromkeys(('lq', *outputs), free), opset_version=17,
                   dynamo=False)
            proto = import_optional('onnx').load_from_string(buffer.getvalue())
    for output in proto.graph.output:
        for axis, name in ((0, 'batch'), (2, 'sr_height'), (3, 'sr_width')):
            output.type.tensor_type.shape.dim[axis].dim_param = name
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()
