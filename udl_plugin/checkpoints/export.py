"""Writes networks for other tools: .pth, .safetensors, .onnx."""
import contextlib
import io
import json
import math
import warnings
from pathlib import Path

import torch

from udl_plugin.archs.build import with_defaults
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints.reference_names import to_reference
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.packages import import_optional
from udl_plugin.utils.plain import to_builtins

RANGE = 'RGB in [0, 1], float32'
CHECKED_SIZES = ((17, 40), (33, 16))  # of LR images; another than the exporter sees
SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx')


# ---- out

def export_network(path, model, layout='plain'):
    """Writes a network in the form that the suffix of `path` says; it is there when it is whole.

    Args:
        path (str | Path): `.pth` or `.pt` for BasicSR, `.safetensors`, `.onnx`.
        model (Model): What to write.
        layout (str): `plain`, the SR network alone; `udl`, all of it under our names; `authors`, all of it under the
            authors' names, not under a key. Only a `.pth` or `.pt` takes others than `plain`.

    Returns:
        list[str]: What was checked, to tell the user.

    Raises:
        UserError: another suffix, a layout that it does not take, a missing package.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"'{path}': the suffix is none of {', '.join(SUFFIXES)}.")
    if layout != 'plain' and suffix in ('.safetensors', '.onnx'):
        raise UserError(f"'{path}': {suffix} holds the plain network; --layout {layout} wants .pth or .pt.")
    if layout == 'authors':
        return _write_authors(path, model)
    if layout == 'plain':
        model = model.plain()
    if suffix == '.safetensors':
        return _write_safetensors(path, model)
    if suffix == '.onnx':
        return _write_onnx(path, model)
    save_checkpoint(path, {'params': model.state_dict}, model.network_g)
    return []


def _write_authors(path, model):
    if 'features' in model.network_g:
        raise UserError("the authors' head takes what enters the upsampler, not features: "
                         f'{model.network_g["features"]}.')
    buffer = io.BytesIO()
    plain = base_config(model.network_g)
    torch.save(to_reference(model.state_dict, with_defaults(plain)), buffer)
    atomic_write(path, buffer.getvalue())
    return []


def _write_safetensors(path, model):
    tensors = {name: value.clone().contiguous() for name, value in model.state_dict.items()}  # none may share memory
    metadata = {'format': 'pt', 'network_g': json.dumps(to_builtins(model.network_g))}
    atomic_write(path, import_optional('safetensors.torch').save(tensors, metadata))
    return []


def _write_onnx(path, model):
    """For any height and width, `lq` to `sr`, `(1, C, H, W)` in [0, 1] both. Compared before it is written."""
    for name in ('onnx', 'onnxscript'):
        import_optional(name)
    runtime = import_optional('onnxruntime')
    net, (channels, _) = model.build(), model.channels_and_scale
    try:
        content = _exported(net, channels, {'network_g': json.dumps(to_builtins(model.network_g)), 'range': RANGE})
        session, worst = runtime.InferenceSession(content, providers=['CPUExecutionProvider']), 0
        for size in CHECKED_SIZES:
            lq = torch.rand(1, channels, *size)
            with torch.no_grad():
                sr = net(lq)
            found = torch.from_numpy(session.run(None, {'lq': lq.numpy()})[0])
            worst = max(worst, (sr - found).abs().max().item() if sr.shape == found.shape else math.inf)
    except Exception as err:  # with a network that needs certain sizes, say, all of it may raise anything
        raise UserError(f"'{path}': {type(net).__name__} cannot be exported with free height and width "
                         f'({" ".join(str(err).split())[:200] or type(err).__name__}).') from err
    if not worst < 1e-4:
        raise UserError(f"'{path}' is not written: in onnxruntime the network gives other images (by {worst:.2g}).")
    atomic_write(path, content)
    return [f'In onnxruntime, on images of {" and ".join(f"{w} x {h}" for h, w in CHECKED_SIZES)}, it differs by up to '
            f'{worst:.1g} from the network here; 1/255 is one 8-bit level.']


def _exported(net, channels, metadata):
    """The bytes of the ONNX file."""
    lq, names = (torch.rand(1, channels, 24, 32),), {'input_names': ['lq'], 'output_names': ['sr']}
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter('ignore')
        if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 9):
            free = torch.export.Dim.DYNAMIC
            proto = torch.onnx.export(net, lq, **names, dynamo=True, dynamic_shapes=({2: free, 3: free},),
                                      verbose=False).model_proto
        else:  # whose newer exporter fails over the mean of BasicSR's networks
            buffer, free = io.BytesIO(), {2: 'height', 3: 'width'}
            torch.onnx.export(net, lq, buffer, **names, dynamic_axes={'lq': free, 'sr': free}, opset_version=17)
            proto = import_optional('onnx').load_from_string(buffer.getvalue())
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()
