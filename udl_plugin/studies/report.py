"""Reports: tables as Markdown and CSV, plots as SVG or PNG, and everything in one self-contained HTML file."""
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

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udl_plugin.inference.html_table import MARKED, TABLE_STYLE, cell_to_html
from udl_plugin.utils.atomic_io import atomic_write

STYLE = """
:root { color-scheme: light dark; --text: #222; --faint: #595959; --back: #fff; --line: #ddd; --strong: #888; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --faint: #a8a8a8; --back: #16181b; --line: #3a3d42; --strong: #777; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
p, figcaption { max-width: 48rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.35rem 0.8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--strong); }
th:first-child, td:first-child { text-align: left; }
.text th, .text td { text-align: left; vertical-align: top; white-space: normal; }
.small { font-size: 0.8rem; color: var(--faint); }
u { text-underline-offset: 0.2em; }
figure { margin: 1.5rem 0; } figcaption { color: var(--faint); font-size: 0.9rem; }
figure svg, figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figure svg { min-width: 34rem; }
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
# rows of cells; the first row is the header. Whole cells may be marked, as in Markdown: `**best**`, `<u>second</u>`
Table = Sequence[Sequence[str]]
# Okabe and Ito's colors, without the yellow that white paper swallows: told apart by the color-blind too
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')


class Report:
    """A report: one HTML file that includes its pictures, and the files beside it.

    Attributes:
        files: Name to content of the files beside it.
    """

    def __init__(self, title: str):
        self.title = html.escape(title)
        self.files: dict[str, str | bytes] = {}
        self._blocks: list[str] = []

    def add_heading(self, text: str, level: int = 2) -> None:
        """Adds a heading: `level` 2 for a section, 3 for a part of it."""
        self._blocks.append(f'<h{level}>{html.escape(text)}</h{level}>')

    def add_text(self, text: str) -> None:
        self._blocks.append(f'<p>{html.escape(text)}</p>')

    def add_table(self, rows: Table, style: str = '') -> None:
        """Adds a table. Cells may be marked as `mark_best` does.

        Args:
            style: `text` for cells of text, which are aligned at their left; `small` for a small font; or both.
        """
        head, *body = ([cell_to_html(cell) for cell in row] for row in rows)
        lines = '\n'.join('<tr><td>' + '</td><td>'.join(row) + '</td></tr>' for row in body)
        self._blocks.append(f'<div class="wide" tabindex="0"><table class="{style}">\n'
                            f'<thead><tr><th>{"</th><th>".join(head)}</th></tr></thead>\n'
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

    def add_figure(self, name: str, svg: str, caption: str) -> None:
        """Adds an SVG file to the page, within its HTML, and to `files`.

        Args:
            name: Of the file, such as `curves.svg`.
            svg: See `encode_svg`.
        """
        self.files[name] = svg
        caption = html.escape(caption)
        inline = svg[svg.index('<svg'):].replace('<svg', f'<svg role="img" aria-label="{caption}"', 1)
        # ids are those of the page; two figures must not share them
        inline = re.sub(r'(\sid="|href="#|url\(#)', rf'\g<1>figure{len(self._blocks)}-', inline)
        self._blocks.append(f'<figure><div class="wide" tabindex="0">{inline}</div>'
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


# ---- tables

def markdown_table(rows: Table) -> str:
    """Formats a table as Markdown."""
    lines = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '---|' * len(rows[0]), *lines[1:]])


def format_for_terminal(text: str, width: int = 80) -> str:
    """Text with tables in Markdown, without the marks of cells; columns are aligned.

    A table wider than `width` is split, and repeats its first column.
    """
    def align(block: re.Match[str]) -> str:
        rows = [re.split(r'(?<!\\)\|', line)[1:-1] for line in block[0].splitlines()]
        first, *columns = [[MARKED.sub(r'\2', cell.strip().replace('\\|', '|')) for cell in column]
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
    figure, plots = new_grid(1, columns, (6.4 * columns, height))
    return figure, list(plots[0])


def new_grid(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of plots in rows and columns, and their axes `(rows, columns)`.

    Args:
        size: Width and height in inches.
        options: Of `Figure.subplots`.
    """
    rcParams['text.parse_math'] = False  # labels come from users
    figure = Figure(figsize=size, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def encode_figure(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    return buffer.getvalue()


def encode_svg(figure: Figure) -> str:
    """A figure as SVG: equal figures give equal texts, and no other file is needed to show it.

    Its text is text. A browser that lacks the font takes Verdana, which is as wide, or another one.
    """
    buffer = io.StringIO()
    style: Any = {'svg.fonttype': 'none', 'svg.hashsalt': 'udl',
                  'font.sans-serif': ['DejaVu Sans', 'Verdana', 'sans-serif']}
    with rc_context(style):
        figure.savefig(buffer, format='svg', metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
    return re.sub(r'<!DOCTYPE.*?>\s*', '', buffer.getvalue(), flags=re.DOTALL)
