"""Both steps under DistributedDataParallel: two gloo processes on the CPU."""
import os
import signal
import types

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TINY
from torch.nn.parallel import DistributedDataParallel

from udl_plugin.training import rng_state, signals
from udl_plugin.training.resumable_loader import LoaderState


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


def lasts(model, rank, folder):
    """What one process meets, all of them do; and each has its own place and random numbers in the one state."""
    def step(iteration, lq):
        model.update_learning_rate(iteration)
        place = LoaderState(0, 2 * iteration, 20, 2, rng_state.capture(), (None,))
        model.feed_data({'lq': lq, 'gt': torch.rand(2, 3, 16, 16), 'note': types.SimpleNamespace(place=place)})
        model.optimize_parameters(iteration)

    before = [value.clone() for value in model.net_g.state_dict().values()]
    with pytest.raises(signals.Interrupted), signals.raised():
        step(4, torch.rand(2, 3, 8, 8) * (float('nan') if rank == 1 else 1))
        assert model.skips == 1
        assert all(torch.equal(value, old) for value, old in zip(model.net_g.state_dict().values(), before))
        step(5, torch.rand(2, 3, 8, 8))
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(6, torch.rand(2, 3, 8, 8))
        raise AssertionError(f'rank {rank} goes on alone')
    assert model.save_reached() == (6 if rank == 0 else None)
    dist.barrier()
    state = torch.load(f'{folder}/6.state', weights_only=True)
    assert [place['seen'] for place in state['places']] == [12, 12]
    own, other = (state['random'][number]['torch'] for number in (rank, 1 - rank))
    assert torch.equal(own, torch.get_rng_state())
    assert not torch.equal(own, other)


def work(rank, folder):
    from basicsr.models import build_model

    import udl_plugin.archs  # noqa: F401
    from udl_plugin.models import UDLModel

    # upstream's asks for the current CUDA device
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
            assert not torch.equal(*gathered(model.lq)), 'the ranks must see other data'
            model.optimize_parameters(iteration)
        after = model.get_bare_model(model.net_g).state_dict()
        for name, value in after.items():
            assert torch.equal(*gathered(value)), f'{network}: {name} differs between the ranks'
            assert torch.equal(value, before[name]) == name.startswith('var_net.'), f'{network}: {name}'
        lasts(model, rank, folder)
        if rank == 0:
            model.save(epoch=-1, current_iter=-1)
        dist.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    saved = torch.load(tmp_path / 'net_g_latest.pth')
    assert {name.split('.')[0] for name in saved['params']} == {'sr_net', 'var_net'}
