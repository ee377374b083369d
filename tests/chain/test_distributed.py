"""Both steps under DistributedDataParallel: two gloo processes on the CPU."""
import os
import signal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TINY
from torch.nn.parallel import DistributedDataParallel

from udl_plugin.training import rng_state
from udl_plugin.training.signals import StopSignal


def options(network, loss, folder, pretrained, **train):
    return {
        'name': 'ddp', 'model_type': 'UDLModel', 'scale': 2, 'num_gpu': 0, 'dist': True, 'rank': dist.get_rank(),
        'world_size': 2, 'is_train': True, 'datasets': {}, 'network_g': {'type': network, **TINY},
        'path': {'pretrain_network_g': pretrained, 'models': folder, 'training_states': folder},
        'train': {'optim_g': {'type': 'Adam', 'lr': 1e-3}, 'ema_decay': 0.9, 'pixel_opt': {'type': loss},
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [5], 'gamma': 0.5}, **train},
    }


def gathered(tensor):
    both = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(both, tensor.contiguous())
    return both


def check_agreement(model, rank, folder):
    """A step is skipped, and a training stopped, on all ranks together; each rank has its own part in the one state."""
    def step(iteration, lq):
        model.update_learning_rate(iteration)
        model.feed_data({'lq': lq, 'gt': torch.rand(2, 3, 16, 16)})
        model.optimize_parameters(iteration)

    before = [value.clone() for value in model.net_g.state_dict().values()]
    step(4, torch.rand(2, 3, 8, 8) * (float('nan') if rank == 1 else 1))
    assert model.guard.skips == 1
    assert all(torch.equal(value, old) for value, old in zip(model.net_g.state_dict().values(), before))
    with StopSignal() as stop:
        step(5, torch.rand(2, 3, 8, 8))
        assert not stop.requested(model.device)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(6, torch.rand(2, 3, 8, 8))
        assert stop.requested(model.device)
    assert stop.number == signal.SIGTERM
    rng = rng_state.to_tensors(rng_state.capture())
    position = {'epoch': 0, 'seen': 12 + rank, 'images': 20, 'batch_size': 2, 'begun': rng, 'loaders': [None]}
    model.save(0, 6, {'places': position, 'random': rng})
    assert model.saved_iter == (6 if rank == 0 else None)
    dist.barrier()
    state = torch.load(f'{folder}/6.state', weights_only=True)
    assert [place['seen'] for place in state['places']] == [12, 13]
    own, other = (state['random'][number]['torch'] for number in (rank, 1 - rank))
    assert torch.equal(own, torch.get_rng_state())
    assert not torch.equal(own, other)


def work(rank, folder):
    from basicsr.models import build_model

    import udl_plugin.archs  # noqa: F401
    from udl_plugin.models import UDLModel

    # BasicSR's asks for the current CUDA device
    UDLModel.model_to_device = lambda self, net: DistributedDataParallel(net)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    torch.manual_seed(rank)  # other weights on each rank, until DDP makes them one
    fast = {'amp': 'bf16', 'channels_last': True, 'accumulate': 2}
    for network, loss, pretrained, train in (
            ('EDSRVar', 'ESU', None, {}), ('EDSRTwo', 'UDL', f'{folder}/net_g_latest.pth', {}),
            ('EDSRTwo', 'UDL', f'{folder}/net_g_latest.pth', fast)):
        model = build_model(options(network, loss, folder, pretrained, **train))
        assert not model.net_g.modules_buffers, 'the frozen branch must not be sent in every iteration'
        before = {name: value.clone() for name, value in model.get_bare_model(model.net_g).state_dict().items()}
        for iteration in range(1, 4):
            model.feed_data({'lq': torch.rand(2, 3, 8, 8), 'gt': torch.rand(2, 3, 16, 16)})
            assert not torch.equal(*gathered(model.lq)), 'the ranks must see different data'
            model.optimize_parameters(iteration)
        after = model.get_bare_model(model.net_g).state_dict()
        for name, value in after.items():
            assert torch.equal(*gathered(value)), f'{network}: {name} differs between the ranks'
            assert torch.equal(value, before[name]) == name.startswith('var_net.'), f'{network}: {name}'
        check_agreement(model, rank, folder)
        if rank == 0:
            model.save(epoch=-1, current_iter=-1)
        dist.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    saved = torch.load(tmp_path / 'net_g_latest.pth')
    assert {name.split('.')[0] for name in saved['params']} == {'sr_net', 'var_net'}
