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


def check_launcher(launcher: str) -> None:
    """
    Raises:
        UserError: this process was not started by that launcher.
    """
    command, rank, others = LAUNCHERS[launcher]
    missing = [name for name in (rank, *others) if name and name not in os.environ]
    if missing:
        raise UserError(f'--launcher {launcher}: {", ".join(missing)} is not set. Start the processes with {command} '
                        '(docs/scaling.md).')


def is_rank_zero(launcher: str) -> bool:
    """Whether this process reports for all of them; also before the process group is initialized."""
    return int(os.environ.get(LAUNCHERS[launcher][1], 0)) == 0
