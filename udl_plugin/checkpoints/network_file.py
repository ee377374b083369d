"""Networks in files: which network a file holds, whoever wrote it.

Our checkpoints record their network's config. For other files, the weights tell the stage and the shape of an EDSR or
DPDNN; what they cannot tell is assumed, with a note.
"""
from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY

from udl_plugin.archs.build import build_network, get_network_class, probe_shapes, with_defaults
from udl_plugin.archs.dpdnn_arch import infer_dpdnn_config
from udl_plugin.archs.edsr_arch import infer_edsr_config
from udl_plugin.archs.wrapping import base_config, base_state_dict, network_stage, wrapped_config
from udl_plugin.checkpoints.reference_names import REFERENCE_CONFIG, from_reference, is_reference
from udl_plugin.checkpoints.safe_load import PathLike, load_checkpoint
from udl_plugin.checkpoints.state_dict import (
    COST_ONLY,
    StateDict,
    describe_contradiction,
    describe_mismatch,
    ensure_state_dict,
    get_error_scale,
    get_uncertainty_loss,
)
from udl_plugin.errors import UserError, check_kwargs, truncate_repr
from udl_plugin.metrics.uncertainty_metrics import ERROR_SCALES
from udl_plugin.utils.packages import import_optional
from udl_plugin.utils.plain import to_builtins

PACKAGED = Path(__file__).resolve().parents[1] / 'weights'
SMALL = ('{} comes with the package for first tries: a small EDSR, trained for 5,000 iterations on 15 photos. '
         '--model FILE, in Python load(FILE), selects another network.')
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'  # in a folder of `save_pretrained`
KEYS = ('params_ema', 'params', 'state_dict', 'model')  # where a state dict may be; the first one found is used
# options with which a network's constructor reads another file
READS_FILES = re.compile(r'(^|_)(paths?|files?|pretrain\w*|url|weights|ckpt|load)(_|$)')
SHAPES = {'EDSR': infer_edsr_config, 'DPDNN': infer_dpdnn_config}  # networks whose shape is inferred from the weights


@dataclass
class NetworkFile:
    """The content of a file that holds a network.

    Attributes:
        state_dict: Name to tensor, under our names.
        network_g: Config that builds the network.
        notes: What a user should know: what was assumed, what was left out.
        uncertainty_loss: Loss that the variance head was trained with, as far as the file records it.
        error_scale: Factor on the expected error, from `udl-upscale --calibrate`.
        param_key: Key of the state dict in the file; None: the file is a state dict itself.
    """

    state_dict: StateDict = field(repr=False)
    network_g: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    uncertainty_loss: str | None = None
    error_scale: float = 1.0
    param_key: str | None = None

    @property
    def architecture(self) -> str:
        """The `type` of the network, such as `EDSRTwo`; of a `WithVariance` or `TwoStep`, that of its backbone."""
        return self.network_g.get('backbone', self.network_g)['type']

    @property
    def stage(self) -> str:
        """`plain`, `step 1` or `step 2`."""
        return network_stage(self.state_dict)

    def build(self) -> torch.nn.Module:
        """Builds the network with its weights, in eval mode on the CPU.

        Raises:
            UserError: the weights do not fit `network_g`.
        """
        net = build_network(self.network_g)
        mismatch = describe_mismatch(net, self.state_dict)
        if mismatch:
            raise UserError(f'the weights do not fit network_g: {self.network_g}: {mismatch}.')
        net.load_state_dict(self.state_dict)
        return net.eval()

    @functools.cached_property
    def channels_and_scale(self) -> tuple[int, int]:
        """Channels and upscaling factor of the images, found by running the network once.

        Raises:
            UserError: it cannot be built or run, or its output has other channels than its input.
        """
        lq, sr = probe_shapes(self.build())
        if lq[1] != sr[1]:
            raise UserError(f'the network turns an image of {lq[1]} channels into one of {sr[1]}.')
        return lq[1], sr[2] // lq[2]

    def base(self) -> NetworkFile:
        """The SR network without its variance head or frozen branch."""
        return NetworkFile(base_state_dict(self.state_dict), base_config(self.network_g), self.notes)

    plain = base  # as an earlier version called it


def load_network_file(path: PathLike, param_key: str | None = None,
                      network_g: dict[str, Any] | None = None) -> NetworkFile:
    """Reads a network from a checkpoint of ours, BasicSR, mmengine or the reference implementation, or .safetensors.

    Args:
        path: The file, a folder of `save_pretrained`, or the name of a network in the package: `edsr_xs_x2`,
            `edsr_xs_x3` or `edsr_xs_x4`. Nothing in it is executed.
        param_key: Key of the state dict in it. None: the first of `KEYS` in the file, or the file itself.
        network_g: Config of the network, for files that do not record it.

    Raises:
        UserError: not a file of tensors, no state dict, its network cannot be identified, built or run, or `network_g`
            contradicts the config that the file records.
    """
    given, path = path, find_file(path)
    content, metadata = _load(path)
    keys = list(content) if isinstance(content, dict) else []
    if param_key is None:
        param_key = next((key for key in KEYS if key in keys and isinstance(content[key], dict)), None)
    elif param_key not in keys:
        raise UserError(f"'{path}' has no '{param_key}'; it has: {', '.join(map(str, keys)) or 'no keys'}.")
    state_dict = ensure_state_dict(content if param_key is None else content[param_key], path, param_key)
    for name, value in state_dict.items():
        if not torch.isfinite(value).all():
            raise UserError(f"'{path}': {name} has values that are not finite.")
    notes = []
    if path.parent == PACKAGED:
        notes.append(SMALL.format(given))
    if param_key == 'params_ema' and 'params' in keys:
        notes.append(f"'{path}': using params_ema, the moving average; --param-key params selects the other.")
    declared = metadata.get('network_g')
    if is_reference(state_dict):
        state_dict, declared = from_reference(state_dict, path), REFERENCE_CONFIG
    try:
        file = identify_network(state_dict, declared, network_g)
        _ = file.channels_and_scale  # raises if the network cannot be built or run
        contradiction = network_g and describe_contradiction(metadata.get('network_g'), network_g, '--opt')
        if contradiction:
            raise UserError(f'it {contradiction}. Pass the option file that trained it, or leave out --opt.')
    except UserError as err:
        raise UserError(f"'{path}': {err}{_import_hint(declared, metadata.get('imports'))}") from err
    file.notes, file.param_key = notes + file.notes, param_key
    if file.stage != 'plain':
        file.uncertainty_loss, file.error_scale = get_uncertainty_loss(metadata), get_error_scale(metadata)
    return file


def packaged_networks() -> list[str]:
    """The names of the networks in the package."""
    return sorted(file.stem for file in PACKAGED.glob('*.pth'))


def find_file(path: PathLike) -> Path:
    """The file of a network in the package, if `path` is the name of one and no file has it; otherwise `path`."""
    is_name = str(path) in packaged_networks() and not Path(path).exists()
    return PACKAGED / f'{path}.pth' if is_name else Path(path)


def find_error_loss(recorded: str | None) -> tuple[str, str]:
    """Finds the loss whose formula turns a map into the expected error; see `expected_error`.

    Args:
        recorded: `NetworkFile.uncertainty_loss`.

    Returns:
        The loss that is recorded, or `ESU`; and a note for the user if that is assumed, otherwise an empty string.
    """
    if recorded in ERROR_SCALES:
        return str(recorded), ''
    return 'ESU', (f'the loss that the file records for its variance head ({recorded or "none"}) is not one of '
                   f'{", ".join(ERROR_SCALES)}; the expected error assumes ESU.')


def _import_hint(declared: Any, imports: Any) -> str:
    """What to say of the modules that a file names, if its network is not registered. They are never imported."""
    base = base_config(declared) if isinstance(declared, dict) else {}
    if not imports or 'type' not in base or base['type'] in ARCH_REGISTRY:
        return ''
    return (f' It was trained with imports: {truncate_repr(imports)}; pass those that you trust with --import (in '
            'Python, import them first).')


def _load(path: PathLike) -> tuple[Any, dict[str, Any]]:
    """The content of a file, and where it may record `network_g`, `uncertainty_loss`, `error_scale` and `imports`."""
    weights = Path(path) / WEIGHTS
    if weights.is_file():
        content, metadata = _load(weights)
        return content, {**metadata, **_read_config(Path(path) / CONFIG)}  # in a folder, people edit this file
    if Path(path).suffix != '.safetensors':
        content = load_checkpoint(path)
        return content, content if isinstance(content, dict) else {}
    safe_open = import_optional('safetensors').safe_open
    try:
        with safe_open(path, 'pt') as file:
            metadata = dict(file.metadata() or {})
            for key in ('network_g', 'imports'):
                if key in metadata:
                    metadata[key] = json.loads(metadata[key])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"there is no file '{path}'.") from None
    except Exception as err:  # SafetensorError, JSONDecodeError and others
        raise UserError(f"'{path}' cannot be read as safetensors ({type(err).__name__}: {err}).") from err


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as err:  # JSONDecodeError and UnicodeDecodeError are the former
        raise UserError(f"'{path}' cannot be read as JSON ({err}).") from err
    if not isinstance(config, dict):
        raise UserError(f"'{path}' is not an object of JSON: {{...}}.")
    return config


def identify_network(state_dict: StateDict, declared: Any = None,
                     network_g: dict[str, Any] | None = None) -> NetworkFile:
    """Finds the config of the network that a state dict belongs to.

    Args:
        state_dict: Name to tensor, under our names.
        declared: `network_g` that the file records; not trusted, any registered network is accepted.
        network_g: Config from the user; replaces `declared`.

    Raises:
        UserError: the network cannot be identified, the config does not fit the weights, or `declared` would make a
            constructor read another file.
    """
    is_trusted = network_g is not None
    network_g = network_g if is_trusted else declared
    inferred = {name: shape for name, infer in SHAPES.items() if (shape := infer(state_dict))}
    stage = network_stage(state_dict)
    if network_g is None:
        if not inferred:
            raise UserError('its weights are neither an EDSR nor a DPDNN, and it does not record its network. Pass the '
                            'option file that it was trained with: --opt FILE.yml.')
        name, shape = next(iter(inferred.items()))
        assumed = {key: to_builtins(value) for key, value in with_defaults({'type': name}).items()
                   if key not in ('type', *shape) and not COST_ONLY.search(key)}
        note = (f"it does not record {', '.join(assumed)}, which cannot be inferred from the weights; using {name}'s "
                f"defaults ({', '.join(f'{key}: {value}' for key, value in assumed.items())}). If it was trained with "
                'others, pass its option file: --opt FILE.yml.')
        return NetworkFile(state_dict, wrapped_config(stage, {'type': name, **shape}), [note])
    base = base_config(network_g) if isinstance(network_g, dict) else None
    if not isinstance(base, dict) or 'type' not in base:
        raise UserError(f'network_g: {truncate_repr(network_g)} has no type.')
    options = {key: value for key, value in base.items() if key != 'type'}
    for key, value in options.items():
        if not is_trusted and _reads_file(key, value):
            raise UserError(f'network_g.{key}: {truncate_repr(value)} would read another file. If you trust it, pass '
                            "the network's option file: --opt FILE.yml.")
    check_kwargs(get_network_class(base['type'], 'network_g: '), options, 'network_g: ')
    shape = inferred.get(base['type'], {})
    wrong = [f'{key}: {value} (network_g: {base[key]})' for key, value in shape.items()
             if key in base and base[key] != value]
    if wrong:
        raise UserError(f'its weights have {", ".join(wrong)}.')
    return NetworkFile(state_dict, wrapped_config(stage, {**base, **shape}, network_g.get('features')))


def _reads_file(key: Any, value: Any) -> bool:
    """Whether an option, or one within it, looks like the path of a file. Numbers never do, `pretrained: true` does."""
    if isinstance(value, dict):
        return any(_reads_file(f'{key}_{inner}', item) for inner, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(_reads_file(key, item) for item in value)
    if type(value) in (int, float):  # such as drop_path_rate; but 1 may be meant as true
        return value == 1 and 'pretrain' in str(key)
    is_path = isinstance(value, str) and ('/' in value or '\\' in value)
    return bool(value) and (is_path or READS_FILES.search(str(key)) is not None)
