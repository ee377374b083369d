"""Writes networks for other tools: .pth, .safetensors, .onnx."""
from __future__ import annotations

import json
from pathlib import Path

from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.checkpoints.onnx_export import write_onnx
from udl_plugin.checkpoints.safe_load import PathLike
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.packages import import_optional
from udl_plugin.utils.plain import to_builtins
from udl_plugin.utils.user_imports import get_imported

SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx')


def export_network(path: PathLike, file: NetworkFile, layout: str = 'plain', half: bool = False) -> list[str]:
    """Writes a network atomically, in the format of the suffix of `path`.

    Args:
        path: `.pth` or `.pt` for BasicSR, `.safetensors`, `.onnx`.
        file: What to write.
        layout: `plain`, only the SR network; `udl`, everything in `file`: `.onnx` then returns the expected error too.
        half: Whether to write float16; only `.onnx`. See `write_onnx`.

    Returns:
        What was assumed and checked, for the user.

    Raises:
        UserError: another suffix or one that does not support `half`, a missing package, or a network that cannot be
            exported.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"'{path}': the suffix must be one of {', '.join(SUFFIXES)}; the name of a folder ends in /.")
    if suffix == '.onnx':
        return write_onnx(path, file, layout == 'udl', half)
    if half:
        raise UserError(f"'{path}': float16 is for .onnx only.")
    if layout == 'plain':
        file = file.base()
    if suffix == '.safetensors':
        _write_safetensors(path, file)
    else:
        save_checkpoint(path, {'params': file.state_dict}, file.network_g, file.uncertainty_loss,
                        file.error_scale)
    return []


def _write_safetensors(path: PathLike, file: NetworkFile) -> None:
    tensors = {name: value.clone().contiguous() for name, value in file.state_dict.items()}  # they may not share memory
    metadata = {'format': 'pt', 'network_g': json.dumps(to_builtins(file.network_g))}
    if file.uncertainty_loss is not None:
        metadata['uncertainty_loss'] = file.uncertainty_loss
    if file.error_scale != 1:
        metadata['error_scale'] = str(file.error_scale)
    if get_imported():
        metadata['imports'] = json.dumps(get_imported())  # as in `save_checkpoint`
    atomic_write(path, import_optional('safetensors.torch').save(tensors, metadata))
