import pytest
import yaml
from conftest import OPTIONS, TINY, study_config

from udl_plugin.errors import UserError
from udl_plugin.studies.config import Study, read_study

STUDIES = sorted((OPTIONS / 'studies').glob('*.yml'))


def names(study):
    return [run.name for run in study.runs]


def test_variants_share_equal_first_steps():
    variants = {'L1': [{'type': 'L1Loss'}] * 2, 'UDL': [{'type': 'ESU'}, {'type': 'UDL'}],
                'then L1': [{'type': 'ESU'}, {'type': 'L1Loss'}], 'ESU': [{'type': 'ESU'}]}
    study = Study(study_config(variants=variants, seeds=[0, 5]), 'results/tiny')
    of_seed_0 = ['tiny_x2_L1Loss_seed0', 'tiny_x2_L1Loss_then_L1Loss_seed0', 'tiny_x2_ESU_seed0',
                 'tiny_x2_ESU_then_UDL_seed0', 'tiny_x2_ESU_then_L1Loss_seed0']
    assert names(study) == of_seed_0 + [name.replace('seed0', 'seed5') for name in of_seed_0]
    parents = {run.name: run.parent for run in study.runs}
    assert parents['tiny_x2_ESU_then_UDL_seed5'] == parents['tiny_x2_ESU_then_L1Loss_seed5'] == 'tiny_x2_ESU_seed5'
    assert parents['tiny_x2_ESU_seed5'] is None
    assert study.get_run_name('UDL', 'tiny', 2, 5) == 'tiny_x2_ESU_then_UDL_seed5'
    assert study.get_run_name('UDL', 'tiny', 2, 5, 1) == study.get_run_name('ESU', 'tiny', 2, 5) == 'tiny_x2_ESU_seed5'
    assert (study.count_iterations(1), study.count_iterations(2)) == (4, 10)


def test_options_of_a_run():
    study = Study(study_config(seeds=[3], scales=[2, 3]), 'results/tiny')
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
    base = runs['tiny_x3_L1Loss_then_L1Loss_seed3'].opt
    assert base['network_g']['type'] == 'EDSR'
    assert base['manual_seed'] == opt['manual_seed']  # all variants get the same crops
    assert base['datasets'] == opt['datasets']


@pytest.mark.parametrize(('losses', 'types', 'strict'), [
    (['L1Loss', 'ESU'], ['EDSR', 'EDSRVar'], False), (['ESU', 'L1Loss'], ['EDSRVar', 'EDSR'], False),
    (['EU', 'ESU'], ['EDSRVar', 'EDSRVar'], True), (['ESU', 'UDL'], ['EDSRVar', 'EDSRTwo'], True),
    (['MSELoss', 'MSELoss'], ['EDSR', 'EDSR'], True)])
def test_loss_determines_the_network(losses, types, strict):
    study = Study(study_config(variants={'L1': [{'type': loss} for loss in losses]}), '.')
    assert [run.opt['network_g']['type'] for run in study.runs] == types
    assert study.runs[1].opt['path']['strict_load_g'] is strict


@pytest.mark.parametrize(('source', 'network'), [('error', 'EDSRTwo'), ('gradient', 'EDSR')])
def test_source_of_the_weight_determines_the_network(source, network):
    variants = {'L1': [{'type': 'ESU'}, {'type': 'UDL', 'source': source}]}
    assert Study(study_config(variants=variants), '.').runs[1].opt['network_g']['type'] == network


STEP = study_config()['steps'][0]


@pytest.mark.parametrize(('changes', 'message'), [
    ({'sedes': [0]}, r"^sedes: is not an option \(did you mean 'seeds'\?\)"),
    ({'steps': None, 'logger': None, 'base': 1}, 'base: is not an option'),
    ({'seeds': None}, '^seeds: is missing'),
    ({'seeds': []}, '^seeds: List should have at least 1 item'),
    ({'seeds': [-1]}, '^seeds.0: expected an integer of at least 0, got -1'),
    ({'scales': '2'}, '^scales: Input should be a valid list'),
    ({'name': '../../escaped'}, '^name: expected a plain file name'),
    ({'name': 'a\0b'}, '^name: expected a plain file name'),
    ({'num_gpu': 2}, r'^num_gpu: expected auto, 0 or 1 \(each training uses at most one GPU.*got 2'),
    ({'baseline': 'UDLL'}, r"^baseline: expected one of L1, UDL, got 'UDLL' \(did you mean 'UDL'\?\)"),
    ({'baseline': 'one', 'variants': {'one': [{'type': 'L1Loss'}], 'two': [{'type': 'L1Loss'}] * 2}},
     '^baseline: one has fewer steps'),
    ({'benchmarks': {}}, '^benchmarks: Dictionary should have at least 1 item'),
    ({'steps': []}, '^variants.L1: has 2 steps, and steps has 0'),
    ({'benchmarks': {'a': []}}, r'^benchmarks.a: expected a string, got \[\]'),
    ({'val': {'benchmark': 'Set5', 'val_freq': 2}}, "^val.benchmark: expected one of astronaut, got 'Set5'"),
    ({'val': {'benchmark': [], 'val_freq': 2}}, '^val.benchmark: expected a string'),
    ({'val': {'benchmark': 'astronaut', 'val_freq': 2, 'save_img': True}}, '^val.save_img: is not an option'),
    ({'logger': {'print_freqs': 1}}, r"^logger.print_freqs: is not an option \(did you mean 'print_freq'\?\)"),
    ({'datasets': {'train': {'gt_size': 4}}}, 'datasets.train.gt_size: expected no value here: lq_size sets it'),
    ({'datasets': {'train': {'gt_size': 4}}}, r'datasets.train.lq_size: is missing'),
    ({'datasets': {**study_config()['datasets'], 'val': {}}}, r'^datasets.val: is not an option'),
    ({'steps': [{'total_iter': '4'}] * 2}, '^steps.0.total_iter: expected an integer of at least 1'),
    ({'steps': [{**STEP, 'pixel_opt': {}}] * 2}, '^steps.0.pixel_opt: expected no value here: each variant sets it'),
    ({'networks': []}, r'^networks: expected a mapping'),
    ({'networks': {'x': 'EDSR'}}, '^networks.x: expected a mapping'),
    ({'networks': {'x': {'num_feat': 8}}}, '^networks.x.type: is missing'),
    ({'networks': {'tiny': {'type': 'EDSR', 'upscale': 2}}}, '^networks.tiny.upscale: expected no value here'),
    ({'networks': {'tiny': {'type': 'EDSR', 'scale': 2}}}, '^networks.tiny.scale: expected no value here'),
    ({'networks': {'x': {'type': 'EDSRR'}}}, r"^networks.x.type: there is no 'EDSRR' \(did you mean 'EDSR'\?\)"),
    ({'networks': {'a b': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}, 'a-b': {
        'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3}}}, "two .* trainings would be called 'a-b_x2_L1Loss_seed0'"),
])
def test_wrong_option(changes, message):
    with pytest.raises(UserError, match=f'(?m){message}'):
        Study(study_config(**changes), '.')


@pytest.mark.parametrize(('steps', 'message'), [
    ([], ': List should have at least 1 item'), ([{'type': 'L1Loss'}] * 3, ': has 3 steps, and steps has 2'),
    ([{'type': 5}] * 2, '.0.type: expected a string, got 5'), (['L1Loss'], '.0: expected a mapping'),
    ([{'pixel_opt': {'type': 'L1Loss'}, 'total_iter': 3}], '.0.total_iter: expected no value here: steps sets it'),
    ([{'pixel_opt': 'L1Loss'}], '.0.pixel_opt: expected a mapping'),
    ([{'pixel_opt': {'type': 'UDL'}, 'cached_maps': 'yes'}], '.0.cached_maps: expected true or false'),
    ([{'type': 'L1Los'}], r".0.type: there is no 'L1Los' \(did you mean 'L1Loss'\?\)"),
    ([{'type': 'ESU'}, {'type': 'UDL', 'scaling': 'cube'}], ".1.*: .*scaling.*'cube'"),
    ([{'type': 'UDL'}], '.0: UDL requires a network of step 1'),
    ([{'type': 'L1Loss'}, {'type': 'UDL'}], '.1: UDL requires a network of step 1'),
    ([{'type': 'L1Loss'}, {'pixel_opt': {'type': 'L1Loss'}, 'cached_maps': True}],
     '.1.cached_maps: requires a loss that is weighted by the uncertainty'),
    ([{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL', 'source': 'error'}, 'cached_maps': True}],
     '.1.cached_maps: requires a loss that is weighted by the uncertainty'),
    ([{'pixel_opt': {'type': 'JointUDL'}, 'cached_maps': True}], '.0.cached_maps: requires a loss that is weighted by'),
    ([{'type': 'UDL', 'source': 'teacher_error'}], '.0: UDL requires a teacher: a step before this one, or teacher: {'),
    ([{'pixel_opt': {'type': 'L1Loss'}, 'detach_features': True}], '.0.detach_features: L1Loss trains no variance'),
])
def test_wrong_step_of_a_variant(steps, message):
    with pytest.raises(UserError, match=f'(?m)^variants.L1{message}'):
        Study(study_config(variants={'L1': steps}), '.')


def test_only_step_2_follows_step_2():
    variants = {'L1': [{'type': 'ESU'}, {'type': 'UDL'}, {'type': 'L1Loss'}]}
    with pytest.raises(UserError, match=r'variants.L1.2: L1Loss cannot continue a network of step 2'):
        Study(study_config(variants=variants, steps=[STEP] * 3), '.')


def test_cached_maps_require_lmdb():
    config = study_config(variants={'L1': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL'}, 'cached_maps': True}]})
    config['datasets']['train']['io_backend']['type'] = 'disk'
    with pytest.raises(UserError, match=r'variants.L1.1.cached_maps: requires .*io_backend: type: lmdb'):
        Study(config, '.')


def test_all_errors_are_reported_at_once():
    with pytest.raises(UserError) as err:
        Study(study_config(seeds=[], val=None, logger={'print_freqs': 1}), '.')
    assert {message.split(': ')[0] for message in err.value.messages} == {'seeds', 'val', 'logger.print_freqs'}
    with pytest.raises(UserError) as err:
        Study(study_config(variants={'L1': [{'type': 'L1Los'}], 'UDL': [{'type': 'UDL'}]}), '.')
    assert [message.split(': ')[0] for message in err.value.messages] == ['variants.L1.0.type', 'variants.UDL.0']


def test_options_of_a_step():
    """They are for this variant only."""
    variants = {'L1': [{'type': 'L1Loss'}] * 2, 'UDL': [{'type': 'ESU'}, {'type': 'UDL'}],
                'fast': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL', 'offset': 0}, 'amp': 'bf16'}]}
    study = Study(study_config(variants=variants), '.')
    opts = {run.losses: run.opt for run in study.runs}
    assert len(opts) == 5
    fast = opts['ESU', 'UDL-offset=0-amp=bf16']
    assert fast['train'] == {**opts['ESU', 'UDL']['train'], 'amp': 'bf16', 'pixel_opt': {'type': 'UDL', 'offset': 0}}
    assert fast['network_g']['type'] == 'EDSRTwo'
    assert study.get_run_name('fast', 'tiny', 2, 0) == 'tiny_x2_ESU_then_UDL-offset=0-amp=bf16_seed0'


def test_long_names_are_cut_and_stay_different():
    losses = [{'type': 'UDL', 'source': 'gradient', 'criterion': {'type': 'CharbonnierLoss', 'reduction': 'none',
                                                                 'eps': eps}} for eps in (1.0, 2.0)]
    variants = {'L1': [{'type': 'L1Loss'}] * 2, **{str(number): [loss, loss] for number, loss in enumerate(losses)}}
    found = names(Study(study_config(variants=variants), '.'))
    assert len(set(found)) == 6
    assert max(map(len, found)) < 150
    assert all(name.endswith('_seed0') for name in found)


def test_one_run_and_teacher():
    joint = {'pixel_opt': {'type': 'JointUDL'}, 'detach_features': True}
    taught = {'type': 'UDL', 'source': 'teacher_residual'}
    variants = {'L1': [{'type': 'L1Loss'}] * 2, 'one run': [joint, joint], 'taught': [{'type': 'L1Loss'}, taught],
                'by another': [{'pixel_opt': taught, 'teacher': {'path': 'other.pth'}}]}
    opts = {run.losses: run.opt for run in Study(study_config(variants=variants), '.').runs}
    assert len(opts) == 6
    one_run = opts[('JointUDL-detach_features=True', ) * 2]
    assert one_run['network_g'] == {'type': 'EDSRVar', **TINY, 'detach_features': True}
    assert one_run['path']['strict_load_g']
    assert 'detach_features' not in one_run['train']
    of_taught = opts['L1Loss', 'UDL-source=teacher_residual']
    assert of_taught['network_g']['type'] == 'EDSR'
    assert of_taught['train']['teacher'] == {'path': 'experiments/tiny_x2_L1Loss_seed0/models/net_g_latest.pth'}
    by_another = next(opt for losses, opt in opts.items() if 'other.pth' in losses[0])
    assert by_another['train']['teacher'] == {'path': 'other.pth'}


def test_cached_maps(tmp_path):
    variants = {'L1': [{'type': 'L1Loss'}] * 2,
                'cached': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL'}, 'cached_maps': True}]}
    steps = [{**STEP, 'ema_decay': 0.9}, STEP]
    run = Study(study_config(variants=variants, steps=steps), tmp_path).runs[-1]
    train_set = run.opt['datasets']['train']
    assert run.name == 'tiny_x2_ESU_then_UDL-cached_maps=True_seed0'
    assert train_set['type'] == 'PairedImageUncertaintyDataset'
    assert train_set['dataroot_uncertainty'] == f'maps/{run.name}/uncertainty.lmdb'
    assert 'cached_maps' not in run.opt['train']
    variants['cached'][0] = {'pixel_opt': {'type': 'ESU'}, 'ema_decay': 0}  # for this variant only
    study = Study(study_config(variants=variants, steps=steps), tmp_path)
    assert ['dataroot_uncertainty' in run.opt['datasets']['train'] for run in study.runs].count(True) == 1
    config = study_config(variants=variants, steps=steps)
    config['datasets']['train']['type'] = 'PairedImageCachedDataset'  # which reads both
    train_set = Study(config, tmp_path).runs[-1].opt['datasets']['train']
    assert train_set['type'] == 'PairedImageCachedDataset'
    assert 'dataroot_uncertainty' in train_set


def test_network_whose_scale_has_another_name():
    rrdb = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    runs = Study(study_config(networks={'rrdb': rrdb}), '.').runs
    assert runs[0].opt['network_g'] == {**rrdb, 'scale': 2}
    assert runs[-1].opt['network_g'] == {'type': 'TwoStep', 'backbone': {**rrdb, 'scale': 2}}


def test_only_scale_is_filled_in():
    config = study_config()
    config['datasets']['train'].update(filename_tmpl='{}', color='y')
    run = Study(config, '.').runs[0]
    assert run.opt['datasets']['train']['filename_tmpl'] == '{}'
    assert run.opt['datasets']['val']['color'] == 'y'


def test_folder_may_be_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'disk/deep').mkdir(parents=True)
    (tmp_path / 'results').symlink_to(tmp_path / 'disk/deep')
    root = Study(study_config(), 'results/tiny').runs[0].opt['datasets']['train']['dataroot_gt']
    assert root == '../../../datasets/demo/demo_train_HR_sub.lmdb'


def test_base(tmp_path):
    (tmp_path / 'base.yml').write_text(yaml.safe_dump(study_config()))
    (tmp_path / 'mid.yml').write_text('base: base.yml\nseeds: [4]\n')
    (tmp_path / 'top.yml').write_text('base: mid.yml\nname: top\n')
    study = read_study(tmp_path / 'top.yml')
    assert study.name == 'top'
    assert str(study.folder) == 'results/top'
    assert {run.seed for run in study.runs} == {4}


def test_circular_base(tmp_path):
    (tmp_path / 'one.yml').write_text('base: two.yml\n')
    (tmp_path / 'two.yml').write_text('base: one.yml\n')
    with pytest.raises(UserError, match="one.yml': base: leads back to this file"):
        read_study(tmp_path / 'one.yml')


@pytest.mark.parametrize(('content', 'message'), [
    (None, 'No such file'), ('a: [', 'is not valid YAML'), ('- 1', 'is not an option file'),
    ('name: x\n', r"x\.yml': baseline: is missing"), ('base: nowhere.yml\n', 'nowhere.yml.*No such file')])
def test_wrong_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'x.yml').write_text(content)
    with pytest.raises(UserError, match=message):
        read_study(tmp_path / 'x.yml')


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_shipped_study(path):
    study = read_study(path)
    assert study.runs
    assert path.stem in ('demo', 'photos_losses') or study.name == path.stem


def test_shipped_studies_share_trainings():
    """As their comments promise: with the same --out, equal names are equal trainings."""
    runs = {}
    for name in ('losses', 'weights', 'scalings'):
        for run in read_study(OPTIONS / f'studies/{name}.yml', 'results/losses').runs:
            assert runs.setdefault(run.name, run) == run
    assert len(runs) < 36 + 24 + 27
    assert not set(names(read_study(OPTIONS / 'studies/photos_variants.yml'))) <= set(
        names(read_study(OPTIONS / 'studies/photos_losses.yml')))


def test_losses_study_compares_what_the_paper_does():
    variants = read_study(OPTIONS / 'studies/losses.yml').config['variants']
    assert list(variants) == ['L1', 'MSE', 'EU', 'ESU', 'ESU then L1', 'EU then UDL', 'ESU then UDL',
                              'ESU then UDL, offset 0']


def test_losses_study_has_the_schedule_of_the_ymls():
    steps = read_study(OPTIONS / 'studies/losses.yml').config['steps']
    for step, number in zip(steps, (1, 2)):
        with open(OPTIONS / f'train_udl_step{number}.yml') as file:
            train = yaml.safe_load(file)['train']
        assert step['total_iter'] == train['total_iter']
        assert step['scheduler'] == train['scheduler']
        assert {**step['optim_g'], 'weight_decay': 0} == train['optim_g']
