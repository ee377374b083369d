"""Shared networks: a folder with weights, config and model card, and its upload to and download from the Hub."""
from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import yaml

from udl_plugin import __version__
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints.export import export_network
from udl_plugin.checkpoints.model_card import Scores, build_model_card
from udl_plugin.checkpoints.network_file import CONFIG, WEIGHTS, NetworkFile
from udl_plugin.checkpoints.safe_load import PathLike
from udl_plugin.checkpoints.state_dict import describe_contradiction
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_folders, atomic_write
from udl_plugin.utils.packages import import_optional
from udl_plugin.utils.plain import to_builtins

CARD, YML = 'README.md', 'train.yml'
FILES = (WEIGHTS, CONFIG, CARD, YML)
HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


# ---- a folder

def save_pretrained(file: NetworkFile, folder: PathLike, *, yml: PathLike | None = None, scores: Scores | None = None,
                    license: str | None = None, repo_id: str | None = None, force: bool = False) -> None:
    """Writes a folder that `udl_plugin.from_pretrained` reads: weights, config and model card. Atomically.

    Args:
        file: What to write, all of it.
        folder: New, or empty; with `force` also one that this function wrote, which is replaced.
        yml: The option file that trained the network, included as `train.yml`, unchanged, with the paths in it.
        scores, license: For the model card; see `build_model_card`.
        repo_id: `USER/NAME` of the folder on the Hub, for the model card. None: the card names the folder.

    Raises:
        UserError: the folder exists, or holds other files; safetensors is not installed; `yml` or `scores` cannot be
            read; or `yml` contradicts the network's config.
    """
    target = Path(os.path.abspath(folder))
    replaces = _check_target(target, force)
    option_file = None if yml is None else _read_option_file(yml, file)
    card = build_model_card(file, repo_id or target.name, scores=scores, license=license,
                            yml=None if option_file is None else YML)
    with atomic_folders(target.parent, [target.name], force=replaces) as parent:
        new = parent / target.name
        new.mkdir()
        export_network(new / WEIGHTS, file, 'udl')
        atomic_write(new / CONFIG, (json.dumps(_make_config(file), indent=2) + '\n').encode())
        atomic_write(new / CARD, card.encode())
        if option_file is not None:
            atomic_write(new / YML, option_file)


def _check_target(folder: Path, force: bool) -> bool:
    """Returns whether the folder exists. With `force`, too, nothing is replaced that may be something else."""
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file; name a folder.")
    names = sorted(os.listdir(folder))
    others = [name for name in names if name not in FILES]
    if others or os.path.samefile(folder, '.'):
        reason = f'holds other files ({others[0]})' if others else 'is the current folder'
        raise UserError(f"'{folder}' {reason}; name a new folder.")
    if names and not force:
        raise UserError(f"'{folder}' exists already; choose another folder, or pass --force (in Python: force=True).")
    return True


def _make_config(file: NetworkFile) -> dict[str, object]:
    channels, scale = file.channels_and_scale
    return {'library_name': 'udl_plugin', 'udl_plugin_version': __version__,
            'architecture': base_config(file.network_g)['type'], 'network_g': to_builtins(file.network_g),
            'scale': scale, 'channels': channels, 'stage': file.stage, 'uncertainty_loss': file.uncertainty_loss,
            **({'error_scale': file.error_scale} if file.error_scale != 1 else {})}


def _read_option_file(path: PathLike, file: NetworkFile) -> bytes:
    try:
        content = Path(path).read_bytes()
        network_g = yaml.safe_load(content)['network_g']
    except OSError as err:
        raise UserError(f"'{path}': {err.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise UserError(f"'{path}' has no network_g. Pass the yml that trained the network.") from None
    contradiction = isinstance(network_g, dict) and 'type' in network_g and describe_contradiction(
        file.network_g, network_g, f"'{path}'")
    if contradiction:
        raise UserError(f'the network {contradiction}. Pass the yml that trained it.')
    return content


# ---- the Hugging Face Hub

def push_to_hub(file: NetworkFile, repo_id: str, *, yml: PathLike | None = None, scores: Scores | None = None,
                license: str | None = None, private: bool | None = None, commit_message: str | None = None) -> str:
    """Uploads to the Hugging Face Hub what `save_pretrained` writes. Returns the address of the commit.

    Args:
        file, yml, scores, license: See `save_pretrained`.
        repo_id, private, commit_message: See `upload_folder`.

    Raises:
        UserError: see `save_pretrained` and `upload_folder`.
    """
    check_hub_id(repo_id)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / repo_id.rpartition('/')[2]
        save_pretrained(file, folder, yml=yml, scores=scores, license=license, repo_id=repo_id)
        return upload_folder(folder, repo_id, private=private, commit_message=commit_message)


def check_hub_id(repo_id: str) -> None:
    """Checks, without network, that one can upload to `repo_id`.

    Raises:
        UserError: not of the form `USER/NAME`, or huggingface_hub is not installed.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise UserError(f"'{repo_id}' is not the name of a repository on the Hugging Face Hub: USER/NAME.")
    import_optional('huggingface_hub', 'hub')


def upload_folder(folder: PathLike, repo_id: str, *, private: bool | None = None,
                  commit_message: str | None = None) -> str:
    """Uploads a folder of `save_pretrained` to the Hugging Face Hub, as the user whom `hf auth login` logged in.

    Args:
        folder: Of which only the files of `FILES` are uploaded.
        repo_id: `USER/NAME`; made if it does not exist.
        private: Whether a new repository is private. None: the user's default, which is public at first.
        commit_message: None: `Upload NAME with udl_plugin`.

    Returns:
        The address of the commit.

    Raises:
        UserError: huggingface_hub is not installed, `repo_id` is wrong, or the Hub does not accept it or cannot be
            reached.
    """
    check_hub_id(repo_id)
    api = import_optional('huggingface_hub', 'hub').HfApi(library_name='udl_plugin', library_version=__version__)
    errors = import_optional('huggingface_hub.errors', 'hub')
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), allow_patterns=list(FILES), delete_patterns=[YML],
            commit_message=commit_message or f'Upload {repo_id.rpartition("/")[2]} with udl_plugin')
    except Exception as err:  # of the Hub or of the network, whose classes differ between versions of its package
        is_answer = isinstance(err, (errors.HfHubHTTPError, errors.LocalTokenNotFoundError))
        raise UserError(f"'{repo_id}' was not uploaded ({_first_line(err)})." + (
            ' Log in with hf auth login, with a token that may write there.' if is_answer else '')) from err
    return str(commit.commit_url)


def find_pretrained(name: PathLike, revision: str | None = None) -> Path:
    """Finds the folder of a shared network; downloads it if it is on the Hugging Face Hub.

    Of a repository, only `model.safetensors` and `config.json` are downloaded, into the cache of huggingface_hub.

    Args:
        name: A folder, or `USER/NAME` on the Hub; a folder of that name has precedence.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UserError: no such folder or repository, the Hub cannot be reached, huggingface_hub is not installed, or there
            is no `model.safetensors`.
    """
    folder = Path(name)
    if folder.is_file():
        raise UserError(f"'{name}' is a file; udl_plugin.load reads it.")
    if not folder.is_dir():
        if not HUB_ID.fullmatch(str(name)):
            raise UserError(f"there is no folder '{name}' (seen from {Path.cwd()}), and the Hugging Face Hub has names "
                            'such as USER/NAME.')
        folder = _download(str(name), revision)
    elif revision is not None:
        raise UserError(f"'{name}' is a folder, which has no revisions; leave out revision.")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"'{name}' has no {WEIGHTS}: it is not a network that save_pretrained or udl-convert wrote.")
    return folder


def _download(repo_id: str, revision: str | None) -> Path:
    hub = import_optional('huggingface_hub', 'hub')
    errors = import_optional('huggingface_hub.errors', 'hub')
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=[WEIGHTS, CONFIG],
                                          library_name='udl_plugin', library_version=__version__))
    except Exception as err:  # of the Hub, the network, a full disk
        reasons = {
            errors.RevisionNotFoundError: f"has no revision '{revision}' on the Hugging Face Hub",
            errors.GatedRepoError: 'requires your consent on its page on the Hugging Face Hub, then hf auth login',
            errors.RepositoryNotFoundError: 'is neither a folder here nor a model on the Hugging Face Hub; if it is '
                                            'private, log in with hf auth login',
            errors.LocalEntryNotFoundError: 'is not in the cache, and the Hugging Face Hub cannot be reached'}
        reason = next((text for cls, text in reasons.items() if isinstance(err, cls)),
                      f'cannot be downloaded from the Hugging Face Hub ({_first_line(err)})')
        raise UserError(f"'{repo_id}' {reason}.") from err


def _first_line(err: Exception) -> str:
    return f'{type(err).__name__}: {err}'.splitlines()[0][:300]
