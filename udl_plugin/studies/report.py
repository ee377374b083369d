"""Reports: tables as Markdown and CSV, plots as PNG, and everything in one self-contained HTML file."""
from __future__ import annotations

import base64
import csv
import html
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udl_plugin.inference.html_table import TABLE_STYLE
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
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
Table = Sequence[Sequence[str]]  # rows of cells; the first row is the header


class Report:
    """A report: one HTML file that includes its pictures, and the files beside it.

    Attributes:
        files: Name to content of the files beside it.
    """

    def __init__(self, title: str):
        self.title = html.escape(title)
        self.files: dict[str, str | bytes] = {}
        self._blocks: list[str] = []

    def add_heading(self, text: str) -> None:
        self._blocks.append(f'<h2>{html.escape(text)}</h2>')

    def add_text(self, text: str) -> None:
        self._blocks.append(f'<p>{html.escape(text)}</p>')

    def add_table(self, rows: Table) -> None:
        head, *body = ([html.escape(cell) for cell in row] for row in rows)
        lines = '\n'.join('<tr><td>' + '</td><td>'.join(row) + '</td></tr>' for row in body)
        self._blocks.append(f'<div class="wide"><table>\n<thead><tr><th>{"</th><th>".join(head)}</th></tr></thead>\n'
                            f'<tbody>{lines}</tbody>\n</table></div>')

    def add_html(self, block: str) -> None:
        """Adds HTML as it is, such as a `HtmlTable`."""
        self._blocks.append(block)

    def add_picture(self, name: str, png: bytes, caption: str) -> None:
        """Adds a PNG file to the page and to `files`."""
        self.files[name] = png
        data, caption = base64.b64encode(png).decode(), html.escape(caption)
        self._blocks.append(f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                            f'<figcaption>{caption}</figcaption></figure>')

    def to_html(self) -> str:
        """The page."""
        return PAGE.format(title=self.title, style=STYLE + TABLE_STYLE, body='\n'.join(self._blocks))

    def write(self, folder: str | Path, name: str) -> Path:
        """Writes the page and `files` to a folder, each atomically. Returns the path of the page.

        Args:
            name: Of the page.
        """
        for path, content in {**self.files, name: self.to_html()}.items():
            atomic_write(Path(folder, path), content if isinstance(content, bytes) else content.encode())
        return Path(folder, name).resolve()


def markdown_table(rows: Table) -> str:
    """Formats a table as Markdown."""
    lines = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


def format_for_terminal(text: str, width: int = 80) -> str:
    """Text with tables in Markdown, whose columns are aligned; a wider table is split, and repeats its first column."""
    def align(block: re.Match[str]) -> str:
        rows = [re.split(r'(?<!\\)\|', line)[1:-1] for line in block[0].splitlines()]
        first, *columns = [[cell.strip().replace('\\|', '|') for cell in column]
                           for column in zip(*(rows[:1] + rows[2:]))]
        parts: list[list[list[str]]] = []
        for column in columns:
            needed = sum(2 + max(map(len, one)) for one in [first, *(parts[-1] if parts else []), column]) - 2
            if not parts or needed > width:
                parts.append([])
            parts[-1].append(column)
        tables = ['\n'.join('  '.join(cell.ljust(max(map(len, column))) for cell, column in zip(row, shown)).rstrip()
                            for row in zip(*shown)) for shown in ([first, *part] for part in parts)]
        return '\n\n'.join(tables) + '\n'
    wrapped = [line if line.startswith('|') else textwrap.fill(line, width) for line in text.splitlines()]
    return re.sub(r'(?:^\|.*\|\n)+', align, '\n'.join(wrapped) + '\n', flags=re.MULTILINE)


def to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Formats rows of values as CSV; the first row is the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue()


# ---- plots

def new_figure(columns: int, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure of plots side by side, and their axes."""
    rcParams['text.parse_math'] = False  # labels come from users
    figure = Figure(figsize=(6.4 * columns, height), layout='constrained')
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def encode_figure(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()
