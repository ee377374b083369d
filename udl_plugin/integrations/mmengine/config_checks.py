"""What does not fit of a training's parts, when they are built and before the first iteration."""
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper

from udl_plugin.config.cross_checks import check_map_fingerprint, maps_problems
from udl_plugin.errors import did_you_mean, raise_errors
from udl_plugin.integrations.mmengine.dataset import BasicSRDataset
from udl_plugin.integrations.mmengine.metrics import ImageMetric


def bare(model):
    return model.module if is_model_wrapper(model) else model


def check_training(runner, begun):
    """
    Args:
        runner (Runner): Of mmengine, about to train.
        begun (bool): Whether the weights are those of a checkpoint.

    Raises:
        UserError: no loss; a network of step 2, and nothing to begin with; cached maps of another network, or that the
            loss does not read; another scale than the network's; a best checkpoint by what is not measured.
    """
    model = bare(runner.model)
    raise_errors([*_model_problems(model, begun), *_best_problems(runner)])
    for section in (leaf.dataset.opt for leaf in _leaves(runner.train_dataloader.dataset)
                    if isinstance(leaf, BasicSRDataset)):
        opt = {'datasets': {'train': section}}
        raise_errors([*maps_problems(opt, model.pixel_loss), *_scale_problems(model, section)])
        if hasattr(model.generator, 'var_net'):
            check_map_fingerprint(opt, model.generator.var_net.state_dict())


def _model_problems(model, begun):
    if model.pixel_loss is None:
        yield "model: pixel_loss: is missing: training needs one, such as dict(type='ESU')."
    if not begun and getattr(model.generator, 'trains_log_var', None) is False:
        yield (f"load_from: is missing. {model.network_g['type']} starts from a checkpoint of step 1 (train that "
               'first) or of step 2.')


def _scale_problems(model, section):
    upscale = model.network_g.get('upscale', section['scale'])
    if upscale != section['scale']:
        yield f"train_dataloader: dataset: scale: {section['scale']} is not that of generator, upscale: {upscale}."


def _best_problems(runner):
    """Of `save_best`, which `CheckpointHook` looks up after the first validation. Only we know what our metrics say."""
    if runner._val_loop is None:
        return
    leaves, metrics = list(_leaves(runner.val_dataloader.dataset)), runner.val_evaluator.metrics
    if not (all(isinstance(leaf, BasicSRDataset) for leaf in leaves) and all(
            isinstance(metric, ImageMetric) for metric in metrics)):
        return
    known = [metric.full_name(leaf.name) for leaf in leaves for metric in metrics]
    for hook in runner.hooks:
        for key in (hook.save_best or ()) if isinstance(hook, CheckpointHook) else ():
            if key not in ('auto', *known):
                yield (f"default_hooks.checkpoint: save_best: '{key}' is not measured{did_you_mean(key, known)}: "
                       f"validation gives {', '.join(known)}.")


def _leaves(dataset):
    """The data sets below mmengine's wrappers."""
    parts = [*getattr(dataset, 'datasets', ()), *filter(None, [getattr(dataset, 'dataset', None)])]
    if isinstance(dataset, BasicSRDataset) or not parts:
        yield dataset
        return
    for part in parts:
        yield from _leaves(part)
