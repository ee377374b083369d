"""Reports: tables as Markdown and CSV, plots as PNG, and everything in one self-contained HTML file."""
from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udl_plugin.utils.atomic_io import atomic_write

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 96rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.35rem 0.8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { color: #555; font-size: 0.9rem; }
img { max-width: 100%; height: auto; }
"""


class Heading(NamedTuple):
    text: str


class Text(NamedTuple):
    text: str


class Table(NamedTuple):
    """Rows of strings; the first row is the header."""
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file: its name, its bytes, and a caption."""
    name: str
    png: bytes
    caption: str


Part = Union[Heading, Text, Table, Picture]
Files = dict[str, Union[str, bytes]]  # name to content


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of strings; the first row is the header."""
    lines = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


def to_html(title: str, parts: Iterable[Part]) -> str:
    """A report as one HTML file that includes its pictures."""
    blocks = [f'<h1>{html.escape(title)}</h1>']
    for part in parts:
        if isinstance(part, Heading):
            blocks.append(f'<h2>{html.escape(part.text)}</h2>')
        elif isinstance(part, Text):
            blocks.append(f'<p>{html.escape(part.text)}</p>')
        elif isinstance(part, Table):
            head, *rows = ([html.escape(cell) for cell in row] for row in part.rows)
            body = '\n'.join('<tr><td>' + '</td><td>'.join(row) + '</td></tr>' for row in rows)
            blocks.append(f'<div class="wide"><table>\n<thead><tr><th>{"</th><th>".join(head)}</th></tr></thead>\n'
                          f'<tbody>{body}</tbody>\n</table></div>')
        else:
            caption = html.escape(part.caption)
            blocks.append(f'<figure><img alt="{caption}" src="data:image/png;base64,'
                          f'{base64.b64encode(part.png).decode()}"><figcaption>{caption}</figcaption></figure>')
    body = '\n'.join(blocks)
    return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n')


def to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Formats rows of values; the first row is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue()


def write_files(folder: str | Path, files: Mapping[str, str | bytes]) -> None:
    """Writes files to a folder, each atomically."""
    for name, content in files.items():
        atomic_write(Path(folder, name), content if isinstance(content, bytes) else content.encode())


# ---- plots

def new_figure(columns: int, height: float = 4.2, width: float = 6.4) -> tuple[Figure, list[Axes]]:
    """A figure of plots side by side, and their axes."""
    rcParams['text.parse_math'] = False  # labels come from users
    figure = Figure(figsize=(width * columns, height), layout='constrained')
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def encode_figure(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
