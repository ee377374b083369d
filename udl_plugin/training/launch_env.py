"""Launchers of distributed training, and the environment variables they set in every process."""
from __future__ import annotations

import os

from udl_plugin.errors import UserError

# BasicSR's name: command, variable with the process's number, and what else BasicSR and mmengine read
LAUNCHERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    'none': ('', '', ()),
    'pytorch': ('torchrun', 'RANK', ('WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')),
    'slurm': ('srun', 'SLURM_PROCID', ('SLURM_NTASKS', 'SLURM_NODELIST')),
}


def is_under_torchrun() -> bool:
    """Whether torchrun started this process and others."""
    return 'LOCAL_RANK' in os.environ and os.environ.get('WORLD_SIZE', '1') != '1'


def check_launcher(launcher: str) -> None:
    """
    Raises:
        UserError: this process was not started by that launcher, or by torchrun, and no launcher is named.
    """
    command, rank, others = LAUNCHERS[launcher]
    if launcher == 'none' and is_under_torchrun():
        raise UserError(f'torchrun started {os.environ["WORLD_SIZE"]} processes, each of which would run alone: pass '
                        '--launcher pytorch.')
    missing = [name for name in (rank, *others) if name and name not in os.environ]
    if missing:
        raise UserError(f'--launcher {launcher}: {", ".join(missing)} is not set. Start the processes with {command} '
                        '(docs/scaling.md).')


def is_rank_zero(launcher: str) -> bool:
    """Whether this process reports for all of them; also before the process group is initialized."""
    rank = LAUNCHERS['pytorch' if is_under_torchrun() else launcher][1]
    return int(os.environ.get(rank, 0)) == 0
