"""The option files that come with the package, to begin one's own with: `udl-train --template NAME > my.yml`."""
from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from typing import Any

import udl_plugin
from udl_plugin.errors import UserError, did_you_mean

# of each command: files in options/, and what the names of templates leave out
FILES = {'udl-train': ('train/*/*.yml', 'train_|_udl'), 'udl-test': ('test/*/*.yml', 'test_|_udl'),
         'udl-study': ('studies/*.yml', '$'), 'udl-mm-train': ('mmengine/*.py', '_udl')}
RELATIVE_PATHS = re.compile(r'(?<=\$schema=)\S+|(?<=^base: )\S+', re.MULTILINE)  # to other files in options/


def options_folder() -> Path:
    """The folder `options/`: in the installed package, or beside that of a checkout."""
    package = Path(udl_plugin.__file__).resolve().parent
    return next(folder for folder in (package / 'options', package.parent / 'options') if folder.is_dir())


def find_templates(command: str) -> dict[str, Path]:
    """Maps names such as `edsr_s_x4_step2` to option files for `command`, one of FILES."""
    pattern, left_out = FILES[command]
    return {re.sub(left_out, '', path.stem).lower(): path for path in sorted(options_folder().glob(pattern))}


def read_template(command: str, name: str) -> str:
    """The text of a template; paths of other files of the package, such as the JSON Schema, are absolute in it.

    Raises:
        UserError: there is none of this name.
    """
    paths = find_templates(command)
    if name not in paths:
        raise UserError(f"there is no template '{name}'{did_you_mean(name, paths)}; --list-templates shows all.")
    path = paths[name]
    if path.suffix == '.py':  # with the files in _base_, as one
        from mmengine.config import Config
        return Config.fromfile(path).pretty_text
    text = path.read_text(encoding='utf-8')
    return RELATIVE_PATHS.sub(lambda found: (path.parent / found[0]).resolve().as_posix(), text)


def get_title(path: Path) -> str:
    """The first comment of an option file, up to its first colon or full stop."""
    text = re.sub(r'^# yaml-language-server.*\n', '', path.read_text(encoding='utf-8'))
    return re.split(r'[:.]', text[1:].partition('\nname')[0].replace('\n#', ''))[0].strip()


def add_template_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--template NAME` and `--list-templates`, which print and exit, to the parser of one of FILES."""
    for name, help_text in (('template', 'print an option file to begin with'),
                            ('list-templates', 'print the names of all templates')):
        parser.add_argument(f'--{name}', action=_PrintTemplate, nargs=0 if name.startswith('list') else None,
                            metavar='NAME', dest=argparse.SUPPRESS, default=argparse.SUPPRESS, help=help_text)


class _PrintTemplate(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        if self.nargs == 0:
            templates = find_templates(parser.prog)
            width = max(map(len, templates))
            print('\n'.join(f'{name:{width}}  {textwrap.shorten(get_title(path), 77 - width, placeholder="...")}'
                            for name, path in templates.items()))
        else:
            try:
                print(read_template(parser.prog, values), end='')
            except UserError as err:
                parser.error(str(err))
        parser.exit()
