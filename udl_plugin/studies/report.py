"""Results for readers: tables as Markdown and CSV, plots as PNG, all of it as one HTML file that needs no network."""
import base64
import csv
import html
import io
from pathlib import Path
from typing import NamedTuple

from matplotlib import rcParams
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
    """Rows of texts, the first of which is the header."""
    rows: list


class Picture(NamedTuple):
    """A PNG file: its name, its bytes, and what it shows."""
    name: str
    png: bytes
    caption: str


def markdown_table(rows):
    """Rows of texts, the first of which is the header."""
    lines = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


def to_html(title, parts):
    """The parts of a report as one HTML file with everything in it."""
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


def to_csv(rows):
    """Rows of values, the first of which is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue()


def write_files(folder, files):
    """Writes files, name to text or bytes, into a folder; each is there when it is whole."""
    for name, content in files.items():
        atomic_write(Path(folder, name), content if isinstance(content, bytes) else content.encode())


# ---- plots

def new_figure(columns, height=4.2, width=6.4):
    """A matplotlib figure with plots side by side, and the list of its axes."""
    rcParams['text.parse_math'] = False  # labels are users'
    figure = Figure(figsize=(width * columns, height), layout='constrained')
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def png_of(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
