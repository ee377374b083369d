import pytest
import yaml
from conftest import OPTIONS, TINY, study_section

from udl_plugin.errors import UserError
from udl_plugin.studies.config import Study, read_study

STUDIES = sorted((OPTIONS / 'studies').glob('*.yml'))


def names(study):
    return [run.name for run in study.runs]


def test_first_steps_are_shared():
    variants = {'L1': [{'type': 'L1Loss'}] * 2, 'UDL': [{'type': 'ESU'}, {'type': 'UDL'}],
                'then L1': [{'type': 'ESU'}, {'type': 'L1Loss'}], 'ESU': [{'type': 'ESU'}]}
    study = Study(study_section(variants=variants, seeds=[0, 5]), 'results/tiny')
    of_seed_0 = ['tiny_x2_L1Loss_seed0', 'tiny_x2_L1Loss_then_L1Loss_seed0', 'tiny_x2_ESU_seed0',
                 'tiny_x2_ESU_then_UDL_seed0', 'tiny_x2_ESU_then_L1Loss_seed0']
    assert names(study) == of_seed_0 + [name.replace('seed0', 'seed5') for name in of_seed_0]
    parents = {run.name: run.parent for run in study.runs}
    assert parents['tiny_x2_ESU_then_UDL_seed5'] == parents['tiny_x2_ESU_then_L1Loss_seed5'] == 'tiny_x2_ESU_seed5'
    assert parents['tiny_x2_ESU_seed5'] is None
    assert study.run_of('UDL', 'tiny', 2, 5) == 'tiny_x2_ESU_then_UDL_seed5'
    assert study.run_of('UDL', 'tiny', 2, 5, 1) == study.run_of('ESU', 'tiny', 2, 5) == 'tiny_x2_ESU_seed5'
    assert (study.iterations('ESU'), study.iterations('UDL')) == (4, 10)


def test_options_of_a_run():
    study = Study(study_section(seeds=[3], scales=[2, 3]), 'results/tiny')
    runs = {run.name: run for run in study.runs}
    run = runs['tiny_x3_ESU_then_UDL_seed3']
    opt = run.opt
    assert opt['network_g'] == {'type': 'EDSRTwo', **TINY, 'upscale': 3}
    assert opt['train']['pixel_opt'] == {'type': 'UDL'}
    assert opt['path']['pretrain_network_g'] == 'experiments/tiny_x3_ESU_seed3/models/net_g_latest.pth'
    assert (opt['scale'], opt['train']['total_iter'], run.iterations) == (3, 6, 10)
    train = opt['datasets']['train']
    assert train['gt_size'] == 36
    assert train['dataroot_lq'] == '../../datasets/demo/demo_train_LR_bicubic_X3_sub.lmdb'
    assert opt['datasets']['val']['dataroot_lq'] == '../../datasets/demo/val/LRbicx3'
    assert {metric['crop_border'] for metric in opt['val']['metrics'].values()} == {3}
    first = runs['tiny_x3_ESU_seed3'].opt
    assert first['network_g']['type'] == 'EDSRVar'
    assert first['path']['pretrain_network_g'] is None
    assert first['manual_seed'] == 3 != opt['manual_seed']
    plain = runs['tiny_x3_L1Loss_then_L1Loss_seed3'].opt
    assert plain['network_g']['type'] == 'EDSR'
    assert plain['manual_seed'] == opt['manual_seed']  # all variants see the same crops
    assert plain['datasets'] == opt['datasets']


@pytest.mark.parametrize(('losses', 'types', 'strict'), [
    (['L1Loss', 'ESU'], ['EDSR', 'EDSRVar'], False), (['ESU', 'L1Loss'], ['EDSRVar', 'EDSR'], False),
    (['EU', 'ESU'], ['EDSRVar', 'EDSRVar'], True), (['ESU', 'UDL'], ['EDSRVar', 'EDSRTwo'], True),
    (['MSELoss', 'MSELoss'], ['EDSR', 'EDSR'], True)])
def test_loss_tells_the_network(losses, types, strict):
    study = Study(study_section(variants={'L1': [{'type': loss} for loss in losses]}), '.')
    assert [run.opt['network_g']['type'] for run in study.runs] == types
    assert study.runs[1].opt['path']['strict_load_g'] is strict


@pytest.mark.parametrize(('source', 'network'), [('error', 'EDSRTwo'), ('gradient', 'EDSR')])
def test_source_of_the_weight_tells_the_network(source, network):
    variants = {'L1': [{'type': 'ESU'}, {'type': 'UDL', 'source': source}]}
    assert Study(study_section(variants=variants), '.').runs[1].opt['network_g']['type'] == network


@pytest.mark.parametrize(('changes', 'message'), [
    ({'sedes': [0]}, r"'sedes' is not a key of a study \(did you mean 'seeds'\?\)"),
    ({'seeds': None}, 'seeds: is missing'),
    ({'seeds': [0, 0]}, r'seeds: is a list of different whole numbers, not \[0, 0\]'),
    ({'scales': '2'}, 'scales: is a list'),
    ({'baseline': 'L2'}, "baseline: 'L2' is none of the variants: L1, UDL"),
    ({'baseline': 'one', 'variants': {'one': [{'type': 'L1Loss'}], 'two': [{'type': 'L1Loss'}] * 2}},
     'baseline: one has fewer steps'),
    ({'variants': {'L1': []}}, 'variants: L1: is a list'),
    ({'variants': {'L1': [{'pixel_opt': {'type': 'L1Loss'}, 'total_iter': 3}]}}, 'train: other than total_iter'),
    ({'variants': {'L1': [{'pixel_opt': 'L1Loss'}]}}, 'variants: L1: is a list'),
    ({'variants': {'L1': [{'type': 'L1Loss'}, {'pixel_opt': {'type': 'L1Loss'}, 'cached_maps': True}]}},
     'L1: step 2: cached_maps: no loss weighs by maps'),
    ({'variants': {'L1': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL', 'source': 'error'}, 'cached_maps': True}]}},
     'L1: step 2: cached_maps: no loss weighs by maps'),
    ({'variants': {'L1': [{'type': 'L1Loss'}] * 3}}, 'the pixel_opt of each step, 2 at most'),
    ({'variants': {'L1': [{'type': 'UDL'}]}}, 'L1: step 1: UDL weighs by a network of step 1, and there is none'),
    ({'variants': {'L1': [{'type': 'L1Los'}]}}, r"step 1: type: there is no 'L1Los' \(did you mean 'L1Loss'\?\)"),
    ({'variants': {'L1': [{'type': 'ESU'}, {'type': 'UDL', 'scaling': 'cube'}]}}, "step 2: type: UDL: scaling is"),
    ({'networks': {'tiny': {'type': 'EDSR', 'upscale': 2}}}, 'networks: tiny: is the section of a plain network'),
    ({'benchmarks': {}}, 'benchmarks: is a section'),
    ({'steps': None, 'logger': None, 'base': 1}, "'base' is not a key"),
    ({'seeds': [-1]}, 'seeds: is a list of different whole'), ({'baseline': ['L1']}, 'baseline: is the name of'),
    ({'steps': []}, 'steps: is a list'), ({'num_gpu': 2}, 'num_gpu: 2: each training of a study has one GPU at most'),
    ({'benchmarks': {'a': []}}, 'benchmarks: a: is a folder that udl-prepare benchmark wrote'),
    ({'networks': {'debug': {'type': 'EDSR'}}}, "networks: debug: BasicSR takes what has 'debug' in its name"),
    ({'networks': {'x': {'type': 'EDSR', 'res_scale': '1E-1'}}}, "networks: x: res_scale: '1E-1' is a string"),
    ({'variants': {'L1': [{'type': 'L1Loss', 'loss_weight': '1e-2'}]}}, "L1: 1: loss_weight: '1e-2' is a string"),
    ({'val': {'benchmark': 'Set5', 'val_freq': 2}}, 'val: has benchmark, one of astronaut'),
    ({'logger': {'print_freqs': 1}}, r"logger: 'print_freqs' is not .* \(did you mean 'print_freq'\?\)"),
    ({'name': '../../escaped'}, 'name: is a plain name'), ({'name': 'a\0b'}, 'name: is a plain name'),
    ({'variants': {'L1': [{'type': 5}] * 2}}, 'variants: L1: is a list with the pixel_opt'),
    ({'val': {'benchmark': [], 'val_freq': 2}}, 'val: has benchmark'),
    ({'steps': [{'total_iter': '4'}] * 2}, 'steps: number 1 is what stands under train'),
    ({'steps': [{'total_iter': 4, 'optim_g': {'lr': '4e-4'}}] * 2}, "optim_g: lr: '4e-4' is a string"),
    ({'datasets': {'train': {'gt_size': 4}}}, 'datasets: has train:, .* but with lq_size'),
    ({'networks': {'a b': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}, 'a-b': {
        'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3}}}, "two .* trainings would be called 'a-b_x2_L1Loss_seed0'"),
])
def test_bad_study(changes, message):
    with pytest.raises(UserError, match=message):
        Study(study_section(**changes), '.')


def test_options_of_a_step(tmp_path):
    """Beside the loss, for this variant alone."""
    variants = {'L1': [{'type': 'L1Loss'}] * 2, 'UDL': [{'type': 'ESU'}, {'type': 'UDL'}],
                'fast': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL', 'offset': 0}, 'amp': 'bf16'}]}
    study = Study(study_section(variants=variants), '.')
    opts = {run.losses: run.opt for run in study.runs}
    assert len(opts) == 5
    fast = opts['ESU', 'UDL-offset=0-amp=bf16']
    assert fast['train'] == {**opts['ESU', 'UDL']['train'], 'amp': 'bf16', 'pixel_opt': {'type': 'UDL', 'offset': 0}}
    assert fast['network_g']['type'] == 'EDSRTwo'
    assert study.run_of('fast', 'tiny', 2, 0) == 'tiny_x2_ESU_then_UDL-offset=0-amp=bf16_seed0'


def test_cached_maps(tmp_path):
    variants = {'L1': [{'type': 'L1Loss'}] * 2,
                'cached': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL'}, 'cached_maps': True}]}
    steps = study_section()['steps']
    study = Study(study_section(variants=variants, steps=[{**steps[0], 'ema_decay': 0.9}, steps[1]]), tmp_path)
    run = study.runs[-1]
    train_set = run.opt['datasets']['train']
    assert train_set['type'] == 'PairedImageUncertaintyDataset'
    assert run.maps == {'model': run.opt['path']['pretrain_network_g'], 'param_key': 'params_ema',
                        'hr': train_set['dataroot_gt'], 'lr': train_set['dataroot_lq'],
                        'out': train_set['dataroot_uncertainty']}
    assert 'cached_maps' not in run.opt['train']
    variants['cached'][0] = {'pixel_opt': {'type': 'ESU'}, 'ema_decay': 0}  # of this variant alone
    run = Study(study_section(variants=variants, steps=[{**steps[0], 'ema_decay': 0.9}, steps[1]]), tmp_path).runs[-1]
    assert 'param_key_g' not in run.opt['path']
    assert run.maps['param_key'] == 'params'
    assert all(other.maps is None for other in study.runs[:-1])


def test_moving_average_is_what_goes_on(tmp_path):
    steps = study_section()['steps']
    study = Study(study_section(steps=[{**steps[0], 'ema_decay': 0.9}, steps[1]]), '.')
    keys = {run.losses: run.opt['path'].get('param_key_g') for run in study.runs}
    assert keys['ESU', 'UDL'] == keys['L1Loss', 'L1Loss'] == 'params_ema'
    assert keys['ESU',] is None


def test_network_that_calls_its_scale_otherwise():
    rrdb = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    runs = Study(study_section(networks={'rrdb': rrdb}), '.').runs
    assert runs[0].opt['network_g'] == {**rrdb, 'scale': 2}
    assert runs[-1].opt['network_g'] == {'type': 'TwoStep', 'backbone': {**rrdb, 'scale': 2}}


def test_braces_of_other_options_stay():
    section = study_section()
    section['datasets']['train'].update(filename_tmpl='{}', color='y')
    run = Study(section, '.').runs[0]
    assert run.opt['datasets']['train']['filename_tmpl'] == '{}'
    assert run.opt['datasets']['val']['color'] == 'y'


def test_folder_may_be_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'disk/deep').mkdir(parents=True)
    (tmp_path / 'results').symlink_to(tmp_path / 'disk/deep')
    root = Study(study_section(), 'results/tiny').runs[0].opt['datasets']['train']['dataroot_gt']
    assert root == '../../../datasets/demo/demo_train_HR_sub.lmdb'


def test_base(tmp_path):
    (tmp_path / 'base.yml').write_text(yaml.safe_dump(study_section()))
    (tmp_path / 'mid.yml').write_text('base: base.yml\nseeds: [4]\n')
    (tmp_path / 'top.yml').write_text('base: mid.yml\nname: top\n')
    study = read_study(tmp_path / 'top.yml')
    assert study.name == 'top'
    assert str(study.folder) == 'results/top'
    assert {run.seed for run in study.runs} == {4}
    (tmp_path / 'base.yml').write_text('base: top.yml\n')
    with pytest.raises(UserError, match='base: goes in a circle'):
        read_study(tmp_path / 'top.yml')


@pytest.mark.parametrize(('content', 'message'), [
    (None, 'No such file'), ('a: [', 'is no yml'), ('- 1', 'is not the yml of a study'),
    ('name: x\n', 'baseline: is missing'), ('base: nowhere.yml\n', 'nowhere.yml.*No such file')])
def test_bad_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'x.yml').write_text(content)
    with pytest.raises(UserError, match=message):
        read_study(tmp_path / 'x.yml')


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_study_of_ours(path):
    study = read_study(path)
    assert study.runs
    assert path.stem in ('demo', 'photos_losses') or study.name == path.stem


def test_the_studies_share_what_they_can():
    """As their comments promise: with the same --out, equal names are equal trainings."""
    runs = {}
    for name in ('losses', 'weights', 'scalings'):
        for run in read_study(OPTIONS / f'studies/{name}.yml', 'results/losses').runs:
            assert runs.setdefault(run.name, run) == run
    assert len(runs) < 36 + 24 + 27
    assert not set(names(read_study(OPTIONS / 'studies/photos_variants.yml'))) <= set(
        names(read_study(OPTIONS / 'studies/photos_losses.yml')))


def test_losses_study_has_what_the_paper_compares():
    variants = read_study(OPTIONS / 'studies/losses.yml').section['variants']
    assert list(variants) == ['L1', 'MSE', 'EU', 'ESU', 'ESU then L1', 'EU then UDL', 'ESU then UDL',
                              'ESU then UDL, offset 0']


def test_losses_study_has_the_schedule_of_the_ymls():
    steps = read_study(OPTIONS / 'studies/losses.yml').section['steps']
    for step, number in zip(steps, (1, 2)):
        with open(OPTIONS / f'train_udl_step{number}.yml') as file:
            train = yaml.safe_load(file)['train']
        assert step['total_iter'] == train['total_iter']
        assert step['scheduler'] == train['scheduler']
        assert {**step['optim_g'], 'weight_decay': 0} == train['optim_g']
