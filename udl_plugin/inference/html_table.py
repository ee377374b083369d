"""Tables of HTML pages: sorted by a click on a column's header, with the best and the second best cell marked."""
from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MARKED = re.compile(r'^(\*\*|<u>)(.+)(\*\*|</u>)$', re.DOTALL)
TABLE_STYLE = """
.wide { overflow-x: auto; margin: 1rem 0; }
caption, summary { text-align: left; font-weight: 600; padding: 0.3rem 0; }
thead th { vertical-align: bottom; }
tbody th { font-weight: inherit; }
tbody th, tbody td { border-bottom: 1px solid rgb(128 128 128 / 0.35); }
th button { all: unset; cursor: pointer; white-space: nowrap; }
th button:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 2px solid currentColor;
  outline-offset: 2px; }
th button::after { content: ' \\21C5'; opacity: 0.7; }
[aria-sort=ascending] button::after { content: ' \\2191'; opacity: 1; }
[aria-sort=descending] button::after { content: ' \\2193'; opacity: 1; }
"""
# a first click on numbers puts the best, or the highest, first; cells without a number stay last
SORT_SCRIPT = """
for (const button of document.querySelectorAll('th button')) button.addEventListener('click', () => {
  const header = button.parentElement, column = header.cellIndex, body = header.closest('table').tBodies[0];
  const first = column && header.dataset.better !== 'lower' ? 'descending' : 'ascending';
  const second = first === 'ascending' ? 'descending' : 'ascending';
  const order = header.getAttribute('aria-sort') === first ? second : first;
  for (const other of header.parentElement.cells) other.removeAttribute('aria-sort');
  header.setAttribute('aria-sort', order);
  const sign = order === 'ascending' ? 1 : -1;
  const key = row => row.cells[column].textContent, number = row => parseFloat(key(row).replaceAll(',', ''));
  body.append(...[...body.rows].sort((a, b) => {
    if (!column) return sign * key(a).localeCompare(key(b), undefined, {numeric: true});
    const x = number(a), y = number(b);
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
  }));
});
"""


class HtmlTable(NamedTuple):
    """A table whose columns can be sorted.

    Attributes:
        caption: What it shows, such as the name of a benchmark.
        rows: Cells; the first row is the header, and the first column has names.
        better: Column to `higher` or `lower`, for the columns in which the best cell is marked.
        is_folded: Whether it is shown on demand only.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    better: Mapping[int, str] = {}
    is_folded: bool = False

    def to_html(self) -> str:
        """The table. The page needs `TABLE_STYLE` and, at its end, `SORT_SCRIPT`."""
        head, *body = self.rows
        names, *others = zip(*body) if body else [()] * len(head)
        columns = [map(html.escape, names), *(map(cell_to_html, mark_best(cells, self.better.get(number)))
                                              for number, cells in enumerate(others, 1))]
        cells = ''.join(f'<th scope="col"{self._describe_order(number)}><button type="button">{html.escape(text)}'
                        '</button></th>' for number, text in enumerate(head))
        lines = ''.join(f'<tr><th scope="row">{row[0]}</th>' + ''.join(f'<td>{cell}</td>' for cell in row[1:])
                        + '</tr>\n' for row in zip(*columns))
        caption = html.escape(self.caption)
        title = '' if self.is_folded else f'<caption>{caption}</caption>'
        table = (f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table>{title}\n'
                 f'<thead><tr>{cells}</tr></thead>\n<tbody>{lines}</tbody>\n</table></div>')
        return f'<details><summary>{caption}</summary>{table}</details>' if self.is_folded else table

    def _describe_order(self, column: int) -> str:
        return f' data-better="{self.better[column]}"' if column in self.better else ''


def mark_best(cells: Sequence[str], better: str | None, values: Sequence[float] | None = None) -> list[str]:
    """The cells of a column in Markdown: `**best**`, and of three or more numbers `<u>second</u>`.

    Cells that read alike are marked alike; if all numbers do, none is marked.

    Args:
        cells: Text; numbers may have commas between thousands, other cells are not ranked.
        better: `higher` or `lower`; None: mark none.
        values: By which the cells are ranked; None: the numbers that they read.
    """
    numbers = list(map(_read_number, cells)) if values is None else values
    pairs = sorted(((number, cell) for number, cell in zip(numbers, cells) if number is not None),
                   reverse=better == 'higher')
    ranked = list(dict.fromkeys(cell for _, cell in pairs))
    if better is None or len(ranked) < 2:
        return list(cells)
    marks = {ranked[0]: f'**{ranked[0]}**', **({ranked[1]: f'<u>{ranked[1]}</u>'} if len(ranked) > 2 else {})}
    return [marks.get(cell, cell) for cell in cells]


def cell_to_html(cell: str) -> str:
    """Text as HTML, with the marks of `mark_best`."""
    mark = MARKED.fullmatch(cell)
    if not mark:
        return html.escape(cell)
    tag = 'strong' if mark[1] == '**' else 'u'
    return f'<{tag}>{html.escape(mark[2])}</{tag}>'


def _read_number(cell: str) -> float | None:
    try:
        value = float(cell.replace(',', ''))
    except ValueError:
        return None
    return value if value == value else None
