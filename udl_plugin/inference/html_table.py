"""Tables of HTML pages: sorted by a click on a column's header, with the best and the second best cell marked."""
from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
        columns = [mark_best([row[number] for row in body], self.better.get(number)) for number in range(len(head))]
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


def mark_best(cells: Sequence[str], better: str | None) -> list[str]:
    """The cells of a column as HTML: the best in bold and, of three or more numbers, the second best underlined.

    Cells that read alike are marked alike; if all numbers do, none is marked.

    Args:
        cells: Text; numbers may have commas between thousands, other cells are not ranked.
        better: `higher` or `lower`; None: mark none.
    """
    values = [_read_number(cell) for cell in cells]
    ranked = sorted({value for value in values if value is not None}, reverse=better == 'higher')
    tags = {}
    if better is not None and len(ranked) > 1:
        tags = dict(zip(ranked, ('strong', 'u') if len(ranked) > 2 else ('strong',)))
    marked = []
    for cell, value in zip(map(html.escape, cells), values):
        tag = tags.get(value) if value is not None else None
        marked.append(f'<{tag}>{cell}</{tag}>' if tag else cell)
    return marked


def _read_number(cell: str) -> float | None:
    try:
        value = float(cell.replace(',', ''))
    except ValueError:
        return None
    return value if value == value else None
