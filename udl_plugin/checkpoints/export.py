"""Writes networks for other tools: .pth, .safetensors, .onnx."""
from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch

from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.checkpoints.safe_load import PathLike
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.packages import import_optional
from udl_plugin.utils.plain import to_builtins

VALUE_RANGE = 'RGB in [0, 1], float32'
CHECKED_SIZES = ((17, 40), (33, 16))  # height and width of LR images, other than the one that the exporter traces
SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx')


def export_network(path: PathLike, file: NetworkFile, layout: str = 'plain') -> list[str]:
    """Writes a network atomically, in the format of the suffix of `path`.

    Args:
        path: `.pth` or `.pt` for BasicSR, `.safetensors`, `.onnx`.
        file: What to write.
        layout: `plain`, only the SR network; `udl`, everything in `file`, but not as `.onnx`.

    Returns:
        What was checked, for the user.

    Raises:
        UserError: another suffix or a layout that it does not support, a missing package, or a network that cannot be
            exported.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"'{path}': the suffix must be one of {', '.join(SUFFIXES)}.")
    if layout != 'plain' and suffix == '.onnx':
        raise UserError(f"'{path}': .onnx holds only the plain network; --layout {layout} needs another suffix.")
    if layout == 'plain':
        file = file.base()
    if suffix == '.onnx':
        return _write_onnx(path, file)
    if suffix == '.safetensors':
        _write_safetensors(path, file)
    else:
        save_checkpoint(path, {'params': file.state_dict}, file.network_g, file.uncertainty_loss)
    return []


def _write_safetensors(path: PathLike, file: NetworkFile) -> None:
    tensors = {name: value.clone().contiguous() for name, value in file.state_dict.items()}  # they may not share memory
    metadata = {'format': 'pt', 'network_g': json.dumps(to_builtins(file.network_g))}
    if file.uncertainty_loss is not None:
        metadata['uncertainty_loss'] = file.uncertainty_loss
    atomic_write(path, import_optional('safetensors.torch').save(tensors, metadata))


def _write_onnx(path: PathLike, file: NetworkFile) -> list[str]:
    """Writes `lq` to `sr`, both `(1, C, H, W)` in [0, 1], for any H and W, once onnxruntime gives the same images."""
    for name in ('onnx', 'onnxscript'):
        import_optional(name)
    runtime = import_optional('onnxruntime')
    net, (channels, _) = file.build(), file.channels_and_scale
    net.register_forward_hook(lambda _module, _args, output: get_sr_image(output))
    try:
        content = _to_onnx(net, channels, {'network_g': json.dumps(to_builtins(file.network_g)), 'range': VALUE_RANGE})
        session, worst = runtime.InferenceSession(content, providers=['CPUExecutionProvider']), 0.0
        for size in CHECKED_SIZES:
            lq = torch.rand(1, channels, *size)
            with torch.no_grad():
                sr = net(lq)
            found = torch.from_numpy(session.run(None, {'lq': lq.numpy()})[0])
            worst = max(worst, (sr - found).abs().max().item() if sr.shape == found.shape else math.inf)
    except Exception as err:  # a network that requires certain sizes, for example, may raise anything
        raise UserError(f"'{path}': {type(net).__name__} cannot be exported with free height and width "
                        f'({" ".join(str(err).split())[:200] or type(err).__name__}).') from err
    if not worst < 1e-4:
        raise UserError(f"'{path}' is not written: in onnxruntime the network gives other images (by {worst:.2g}).")
    atomic_write(path, content)
    return [f'In onnxruntime, on images of {" and ".join(f"{w} x {h}" for h, w in CHECKED_SIZES)}, it differs by up to '
            f'{worst:.1g} from PyTorch; 1/255 is one 8-bit level.']


def _to_onnx(net: torch.nn.Module, channels: int, metadata: dict[str, str]) -> bytes:
    lq, names = (torch.rand(1, channels, 24, 32),), {'input_names': ['lq'], 'output_names': ['sr']}
    export: Any = torch.onnx.export  # its arguments differ between versions of PyTorch
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter('ignore')
        if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 9):
            free: Any = torch.export.Dim.DYNAMIC
            program = export(net, lq, **names, dynamo=True, dynamic_shapes=({2: free, 3: free},), verbose=False)
            proto = program.model_proto
        else:  # its newer exporter fails on the mean of BasicSR's networks
            buffer, free = io.BytesIO(), {2: 'height', 3: 'width'}
            export(net, lq, buffer, **names, dynamic_axes={'lq': free, 'sr': free}, opset_version=17)
            proto = import_optional('onnx').load_from_string(buffer.getvalue())
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()
