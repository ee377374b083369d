"""Corrupted option files, checkpoints and images: each is accepted, or rejected with a message; nothing else happens.

`make fuzz` runs 2,000 of each; here a few, always the same ones. A traceback is a bug.
"""
import contextlib
import os
import resource
import signal
import time

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import OPTIONS, TINY, random_images, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udl_plugin.archs import EDSRVar
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.config.completion import complete_options
from udl_plugin.config.cross_checks import network_errors, validate_options
from udl_plugin.config.problems import format_errors
from udl_plugin.config.schema import validate_file
from udl_plugin.config.yaml_loader import OptionFile
from udl_plugin.data.image_io import check_pixel_limit, decode, image_size, read_full_image, read_image
from udl_plugin.data.lmdb_io import read_meta_info
from udl_plugin.data.map_format import read_metadata
from udl_plugin.errors import UserError, UserErrors
from udl_plugin.training.resume import read_state

EXAMPLES = int(os.environ.get('UDL_FUZZ', 25))
SECONDS = 20  # that one example may take
fuzzed = settings(max_examples=EXAMPLES, derandomize='UDL_FUZZ' not in os.environ, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def bounded():
    """Limits the memory, and prints how many examples of a test were accepted and rejected."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    counts, start = {}, time.time()
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, limits[1]))
    yield counts
    resource.setrlimit(resource.RLIMIT_AS, limits)
    print(f'{counts}, {time.time() - start:.0f} s')


@contextlib.contextmanager
def in_time():
    def late(*_):
        raise AssertionError(f'it takes more than {SECONDS} s')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(counts, function, *arguments, expected=UserError):
    """Calls a function that may raise these errors and no others."""
    with in_time():
        try:
            function(*arguments)
            counts['accepted'] = counts.get('accepted', 0) + 1
        except expected:
            counts['rejected'] = counts.get('rejected', 0) + 1


# ---- option files

FILES = sorted(path for path in OPTIONS.rglob('*.yml') if 'studies' not in path.parts)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(
        [10 ** 30, -1, 0, '1e-4', '../..', '/etc', 'a/b', '\0', 'x' * 5000, [], {}, [[]], {'type': 'EDSR'}, [1, 'a'],
         '~', 'experiments', 'udl_plugin', 10 ** 9, {'x': {'x': {}}}, 'net_g_latest.pth', 'TwoStep', 'L1Loss', 'Adam']),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.integers(), max_size=2))
TEXTS = ('!!python/object/apply:os.system ["touch payload"]', '!!python/name:os.system', '&a [*a]', '<<: *x', '\t',
         ': :', '{', '!!binary x', '!!timestamp x', '!!int x', '? [a]', '- ', '\x07', '%', '!!set {a}')


def key_paths(section, path=()):
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from key_paths(value, (*path, key))


def is_large(value):
    """Whether a network with that many blocks or channels would take too long to build."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return any(isinstance(one, (int, float)) and abs(one) > 500 for one in values)


NETWORK_VALUES = VALUES.filter(lambda value: not is_large(value))


@st.composite
def option_files(draw):
    path = draw(st.sampled_from(FILES))
    opt = yaml.safe_load(path.read_text())
    opt['num_gpu'] = 0
    if draw(st.booleans()):  # data that exists, so that later checks are reached
        for phase, section in opt['datasets'].items():
            section.update(dataroot_gt='gt.lmdb', dataroot_lq=f'lq_x{opt["scale"]}.lmdb', io_backend={'type': 'lmdb'})
            section.update({'gt_size': 2 * opt['scale'], 'batch_size_per_gpu': 1} if phase == 'train' else {})
        opt['path']['pretrain_network_g'] = None
    for _ in range(draw(st.integers(1, 3))):
        *sections, key = draw(st.sampled_from(list(key_paths(opt))))
        section = opt
        for part in sections:
            section = section[part]
        change = draw(st.sampled_from(['near', 'near', 'value', 'value', 'delete', 'rename', 'move']))
        value = section.pop(key)
        if change == 'near' and isinstance(value, (bool, int, float)):
            section[key] = draw(st.sampled_from([not value, 2 * value, value / 2, value + 1, -value, float(value)]))
        elif change in ('near', 'value'):
            section[key] = draw(NETWORK_VALUES if 'network_g' in (key, *sections) else VALUES)
        elif change == 'rename':
            section[draw(st.sampled_from([f'{key}x', str(key)[1:], str(key).upper(), 0, None]))] = value
        elif change == 'move':
            opt[key] = value
        if not isinstance(opt.get('datasets'), dict) or not opt:
            break
    text = yaml.safe_dump(opt, sort_keys=False, allow_unicode=True)
    if draw(st.integers(0, 3)) == 0:
        position = draw(st.integers(0, len(text)))
        text = text[:position] + draw(st.sampled_from(TEXTS)) + text[position + draw(st.integers(0, 20)):]
    return text, path.name.startswith('train') != (draw(st.integers(0, 9)) == 0)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def validate(path, is_train):
    """As the commands do, but the network is built of good options, too."""
    option_file = OptionFile(path)
    opt = complete_options(option_file.data, '.', is_train)
    errors = validate_options(opt, [*option_file.errors, *validate_file(option_file.data, is_train)])
    errors += network_errors(opt, errors)
    if errors:
        message = format_errors(errors, option_file)
        assert message.startswith('x.yml')
        assert all(str(error) in message for error in errors)
        raise UserErrors(errors)


def test_option_files(tmp_path, bounded, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side, height in (('gt', 24), ('lq_x2', 12), ('lq_x3', 8), ('lq_x4', 6)):
        write_images(tmp_path / f'{side}.lmdb', random_images(height=height))
    (tmp_path / 'x.yml').touch()
    before, outside = files(tmp_path), files(tmp_path.parent)

    @fuzzed
    @given(option_files())
    def run(example):
        text, is_train = example
        (tmp_path / 'x.yml').write_text(text, errors='replace')
        outcome(bounded, validate, 'x.yml', is_train)
        assert files(tmp_path) == before
        assert files(tmp_path.parent) == outside

    run()


# ---- bytes

@st.composite
def corrupted_bytes(draw, originals):
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, min(len(data), draw(st.sampled_from([64, 10 ** 9]))) - 1)))
        change = draw(st.sampled_from(['flip', 'cut', 'insert', 'remove', 'fill']))
        if change == 'cut':
            del data[position:]
        elif change == 'insert':
            data[position:position] = draw(st.binary(max_size=40))
        elif change == 'remove':
            del data[position:position + draw(st.integers(1, 200))]
        elif data:
            length = 1 if change == 'flip' else draw(st.integers(1, 40))
            data[position:position + length] = draw(st.binary(min_size=length, max_size=length))
    return bytes(data)


def checkpoints(folder):
    """In torch's format and its old one, a training state, and one of mmengine, with arrays."""
    torch.manual_seed(0)
    net = EDSRVar(**TINY)
    save_checkpoint(folder / 'a.pth', {'params': net.state_dict()}, {'type': 'EDSRVar', **TINY})
    torch.save({'params': net.state_dict()}, folder / 'b.pth', _use_new_zipfile_serialization=False)
    state = {'epoch': 0, 'iter': 2, 'optimizers': [torch.optim.Adam(net.parameters()).state_dict()], 'schedulers': [{}]}
    torch.save(state, folder / 'c.pth')
    of_mmengine = {f'generator.{name}': value for name, value in net.state_dict().items()}
    torch.save({'message_hub': [np.arange(6.), np.float32(3)], 'meta': {}, 'state_dict': of_mmengine}, folder / 'd.pth')
    return [(folder / f'{name}.pth').read_bytes() for name in 'abcd']


def test_checkpoints(tmp_path, bounded):
    originals, path = checkpoints(tmp_path), tmp_path / 'x.pth'

    @fuzzed
    @given(corrupted_bytes(originals))
    def run(data):
        path.write_bytes(data)
        outcome(bounded, load_network_file, path)
        outcome(bounded, read_state, path)

    run()
    assert files(tmp_path) == ['a.pth', 'b.pth', 'c.pth', 'd.pth', 'x.pth']


def test_options_in_a_checkpoint(tmp_path, bounded):
    """Network options from a stranger, and tensors of any shape under any name."""
    net, path = EDSRVar(**TINY).state_dict(), tmp_path / 'x.pth'
    section = {'type': 'EDSRVar', **TINY}

    @fuzzed
    @given(st.dictionaries(st.sampled_from([*section, 'backbone', 'features', 'img_range', 'rgb_mean', 'res_scale']),
                           NETWORK_VALUES, max_size=3),
           st.sampled_from(list(net)), st.lists(st.integers(0, 20), max_size=5))
    def run(options, name, shape):
        tensors = {**net, name: torch.zeros(1).expand(*shape) if shape else torch.tensor(1)}
        torch.save({'params': tensors if len(options) % 2 else net, 'network_g': {**section, **options}}, path)
        outcome(bounded, load_network_file, path)

    run()


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.jpg', '.webp', '.tif'])
def test_images(tmp_path, bounded, suffix):
    originals = [cv2.imencode(suffix, image)[1].tobytes() for image in random_images(height=9).values()]
    originals.append(cv2.imencode(suffix, np.zeros((40, 30), np.uint8))[1].tobytes())
    path = tmp_path / f'x{suffix}'

    @fuzzed
    @given(corrupted_bytes(originals))
    def run(data):
        path.write_bytes(data)
        for read in (read_image, read_full_image):
            outcome(bounded, read, path)
        for read in (decode, check_pixel_limit, image_size):
            outcome(bounded, read, data, expected=(ValueError, OSError))

    run()


def test_metadata_of_lmdbs(tmp_path, bounded):
    root = write_images(tmp_path / 'x.lmdb', random_images())
    metadata = b'{"model": "a", "param_key": "b", "fingerprint": "c", "scale": 2, "limits": {"image_0": [0, 1]}}'
    lists = [(root / 'meta_info.txt').read_bytes(), metadata]

    @fuzzed
    @given(corrupted_bytes(lists))
    def run(data):
        (root / 'meta_info.txt').write_bytes(data)
        (root / 'uncertainty.json').write_bytes(data)
        outcome(bounded, read_meta_info, root)
        outcome(bounded, read_metadata, root)

    run()
