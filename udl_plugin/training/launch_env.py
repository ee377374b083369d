"""What starts the processes of a distributed run, and what it has set in each of them before anything else runs."""
import os

from udl_plugin.errors import UserError

# what it is called: its command, the number of the process, and what else upstream and mmengine ask for
LAUNCHERS = {'none': ('', '', ()),
             'pytorch': ('torchrun', 'RANK', ('WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')),
             'slurm': ('srun', 'SLURM_PROCID', ('SLURM_NTASKS', 'SLURM_NODELIST'))}


def check_launcher(launcher):
    """
    Raises:
        UserError: this process was not started by that launcher.
    """
    command, number, others = LAUNCHERS[launcher]
    missing = [name for name in (number, *others) if name and name not in os.environ]
    if missing:
        raise UserError(f'--launcher {launcher}: {", ".join(missing)} is not set: start the processes with {command}, '
                         'as docs/scaling.md has it.')


def is_rank_zero(launcher):
    """Whether this process is the one that speaks, in a distributed run that may not have begun."""
    return int(os.environ.get(LAUNCHERS[launcher][1], 0)) == 0
