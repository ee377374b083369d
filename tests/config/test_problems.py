"""Errors as data, and how they are reported: all at once, with the lines of the option file."""
import pytest
from conftest import OPTIONS

from udl_plugin.config.completion import complete_options
from udl_plugin.config.cross_checks import network_errors, validate_options
from udl_plugin.config.problems import ErrorCollector, OptionError, errors_at, format_errors, get_errors
from udl_plugin.config.schema import validate_file
from udl_plugin.config.yaml_loader import OptionFile, parse_override
from udl_plugin.data.lmdb_io import read_meta_info
from udl_plugin.errors import UserError, UserErrors


def test_option_error_as_a_string():
    assert str(OptionError(('train', 'optim_g', 'lr'), 'is missing.')) == 'train.optim_g.lr: is missing.'


def test_collector_keeps_the_first_error_of_a_path():
    errors = ErrorCollector([OptionError(('a', 'b'), 'one.'), OptionError(('a', 'b'), 'two.'), 'text', 'other', 'text'])
    assert errors.errors == [(('a', 'b'), 'one.'), 'text', 'other']
    assert errors.has_error_at('a', 'b')
    assert errors.has_error_at('a', 'b', 'c')  # in what is wrong
    assert not errors.has_error_at('a')
    assert errors.has_error_within('a')
    assert not errors.has_error_within('a', 'b', 'c')


def test_collector_leaves_out_consequences():
    errors = ErrorCollector([OptionError(('a', 'b'), 'is wrong.')])
    errors.check(lambda: [OptionError(('c',), 'skipped.')], requires=[('x',), ('a', 'b', 'c')])
    errors.check(lambda: [OptionError(('a', 'b', 'c'), 'dropped.'), OptionError(('a',), 'kept.')])
    errors.check(lambda: 1 / 0)  # failed because of an error that is known
    assert errors.errors == [(('a', 'b'), 'is wrong.'), (('a',), 'kept.')]
    with pytest.raises(ZeroDivisionError):
        ErrorCollector().check(lambda: 1 / 0)


def test_collector_takes_what_a_check_yields_and_raises():
    def check(value):
        yield OptionError(('a',), value)
        raise UserErrors([OptionError(('b',), value), 'no key'])

    def check_text():
        raise UserError('text')

    errors = ErrorCollector()
    for _ in range(2):
        errors.check(check, 'wrong.')
        errors.check(check_text)
    assert errors.errors == [(('a',), 'wrong.'), (('b',), 'wrong.'), 'no key', 'text']


def test_errors_at():
    own = OptionError(('y',), 'is wrong.')
    for raised, expected in ((UserError('no file.'), [(('a', 'b'), 'no file.')]),
                             (UserError('a.b: no file.'), [(('a', 'b'), 'no file.')]),
                             (UserErrors([own, 'no file.']), [own, (('a', 'b'), 'no file.')])):
        with pytest.raises(UserErrors) as caught, errors_at('a', 'b'):
            raise raised
        assert get_errors(caught.value) == expected


def test_format_of_one_error_and_of_several(tmp_path):
    (tmp_path / 'x.yml').write_text('a: 1\nb:\n  c: 2\n')
    option_file = OptionFile(tmp_path / 'x.yml', [parse_override('a=3')])
    one, two = OptionError(('b', 'c'), 'is wrong.'), OptionError(('a',), 'is wrong.')
    assert format_errors([one], option_file) == f'{tmp_path}/x.yml, line 3: b.c: is wrong.'
    assert format_errors([one, two, 'text'], option_file).splitlines() == [
        f'{tmp_path}/x.yml: 3 problems:', '  --force_yml a=3: a: is wrong.', '  text', '  line 3: b.c: is wrong.']
    assert format_errors(['text', 'another'], option_file) == 'text\n  another'
    assert format_errors([one, two]) == 'b.c: is wrong.\n  a: is wrong.'


# ---- reports on an option file


def report(folder, text, *overrides):
    """All errors, as the training command finds them."""
    (folder / 'x.yml').write_text(text)
    option_file = OptionFile('x.yml', [parse_override(override) for override in overrides])
    opt = complete_options(option_file.data, '.', is_train=True)
    errors = validate_options(opt, [*option_file.errors, *validate_file(option_file.data, is_train=True)])
    return format_errors([*errors, *(network_errors(opt, errors) if errors else ())], option_file)


def line_of(text, start):
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith(start))


@pytest.fixture
def good(runner, monkeypatch):
    """The text of an option file without errors, which is in the current folder with its data."""
    monkeypatch.chdir(runner.folder)
    text = (OPTIONS / 'demo/train_udl_step1.yml').read_text()
    assert report(runner.folder, text) == ''
    return text


def test_all_problems_at_once(runner, good):
    """Errors of the file, of options that disagree, of the data, of the network and of the checkpoint, by line."""
    text = good
    for before, after in (
            ('warmup_iter: -1', 'warmup_itre: -1'), ('!!float 4e-4', '4e-4'), ('crop_border: 2', 'crop_border: 4'),
            ('demo_train_HR_sub', 'nowhere'), ('type: CosineAnnealingRestartLR', 'type: CosineAnnealing'),
            ('pretrain_network_g: ~', 'pretrain_network_g: nowhere.pth'), ('num_worker_per_gpu: 1', 'num_worker: 1'),
            ('type: ESU', 'type: UDL'), ('  use_tb_logger: false', '  use_tb_logger: false\n  print_freq: 5')):
        assert before in text, before
        text = text.replace(before, after, 1)
    head, *lines = report(runner.folder, text).splitlines()
    assert head == f'x.yml: {len(lines)} problems:'
    expected = [
        ('train:', 'datasets.train.num_worker_per_gpu: is missing.'),
        ('dataroot_gt: datasets/demo/nowhere', "datasets.train.dataroot_gt: there is no folder 'datasets/demo/now"),
        ('num_worker: 1', "datasets.train.num_worker: is not an option (did you mean 'num_worker_per_gpu'?)"),
        ('pretrain_network_g', 'path.pretrain_network_g: '),
        ('lr: 4e-4', "train.optim_g.lr: expected a number above 0, got the string '4e-4' (YAML 1.1 reads it so; write "
                     '4.0e-4).'),
        ('type: CosineAnnealing', "train.scheduler.type: there is no 'CosineAnnealing' (did you mean 'CosineAnn"),
        ('warmup_itre', 'train.warmup_itre: is not an option'),
        ('pixel_opt', 'train.pixel_opt: UDL weights by a trained log-variance, and that of network_g: EDSRVar would'),
        ('crop_border: 4', 'val.metrics.psnr.crop_border: 4 does not agree with scale: 2'),
    ]
    expected = [f'  line {line_of(text, start)}: {message}' for start, message in expected]
    first = line_of(text, 'print_freq: ')
    again = first + 1 + line_of('\n'.join(text.splitlines()[first:]), 'print_freq: 5') - 1
    expected.append(f'  line {again}: logger.print_freq: is a duplicate key, in line {first} too; delete one.')
    assert len(lines) == len(expected), '\n'.join(lines)
    for line, start in zip(lines, expected):
        assert line.startswith(start)
    assert "there is no file 'nowhere.pth'" in lines[3]


@pytest.mark.parametrize(('before', 'after', 'message'), [
    ('gt_size: 48', "gt_size: '48'", "datasets.train.gt_size: expected an integer of at least 1, got the string '48'"),
    ('num_feat: 32', "num_feat: '32'", "network_g.num_feat: expected a number, got the string '32'"),
])
def test_consequences_are_not_reported(runner, good, before, after, message):
    """Data cannot be cropped to a size that is a string, nor a network be built."""
    found = report(runner.folder, good.replace(before, after))
    assert f': {message}' in found.replace('an integer, got', 'a number, got')
    assert 'problems' not in found


@pytest.mark.parametrize(('before', 'after', 'message'), [
    ('num_feat: 32', "num_feat: '32'", "network_g.num_feat: expected"),
    ('num_feat: 32', 'num_feats: 32', 'network_g.num_feats: is not an option'),
])
def test_network_hides_no_missing_checkpoint(runner, good, before, after, message):
    """A network with wrong options is not built, and its checkpoint not read."""
    assert before in good
    text = good.replace(before, after).replace('pretrain_network_g: ~', 'pretrain_network_g: nowhere.pth')
    head, *lines = report(runner.folder, text).splitlines()
    assert head == 'x.yml: 2 problems:'
    assert message in lines[0]
    assert "path.pretrain_network_g: there is no file 'nowhere.pth'" in lines[1]


def test_missing_section(runner, good):
    text = good.replace('\nlogger:\n', '\nlogegr:\n')
    head, *lines = report(runner.folder, text).splitlines()
    assert head == 'x.yml: 2 problems:'
    assert lines[0].endswith(': logger: is missing.')
    assert lines[1].startswith(f"  line {line_of(text, 'logegr')}: logegr: is not an option (did you mean 'logger'?)")


def test_good_options_are_read_once(runner, good, monkeypatch):
    """The network is not built, no checkpoint is read, and each index of an LMDB once."""
    read = []

    def read_index(path):
        read.append(str(path))
        return read_meta_info(path)

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr('udl_plugin.config.dataset_checks.read_meta_info', read_index)
    monkeypatch.setattr('udl_plugin.config.cross_checks.load_matching_state_dict', fail)
    monkeypatch.setattr('udl_plugin.config.cross_checks.build_network', fail)
    (runner.folder / 'x.pth').touch()
    assert report(runner.folder, good.replace('pretrain_network_g: ~', 'pretrain_network_g: x.pth')) == ''
    assert len(read) == len(set(read)) == 2
