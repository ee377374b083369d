import base64
import html.parser
import re

import numpy as np
import pytest

from udl_plugin.inference.html_table import mark_best
from udl_plugin.inference.visualize import encode_png
from udl_plugin.studies.report import (
    STYLE,
    Report,
    encode_figure,
    encode_svg,
    format_for_terminal,
    markdown_table,
    new_figure,
    to_csv,
)

PNG = encode_png(np.zeros((2, 3), np.uint8))
TABLE = [['', 'PSNR'], ['L1 <x>', '1 | 2']]


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_complete_and_self_contained(tmp_path):
    report = Report('Title <t>')
    report.add_text('a < b & "c"')
    report.add_heading('One <h>')
    report.add_table(TABLE)
    report.add_picture('curve.png', PNG, 'over <time>')
    page = report.write(tmp_path, 'report.html').read_text()
    assert (tmp_path / 'curve.png').read_bytes() == PNG
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    text = ''.join(reader.text)
    for part in ('Title <t>', 'a < b & "c"', 'One <h>', 'L1 <x>', '1 | 2', 'over <time>'):
        assert part in text
    images = [attributes for tag, attributes in reader.tags if tag == 'img']
    assert base64.b64decode(images[0]['src'].split(',')[1]) == PNG
    assert not any('src' in attributes and not attributes['src'].startswith('data:') for _, attributes in reader.tags)
    assert not any(tag in ('link', 'script') for tag, _ in reader.tags)
    assert 'http' not in page


def draw():
    figure, (plot,) = new_figure(1)
    plot.plot([0, 1], [1, 2], 'o', label='$a <b> & "c"')
    plot.legend()
    return figure


def test_figures_as_png_and_svg():
    assert encode_figure(draw()).startswith(b'\x89PNG')
    svg = encode_svg(draw())
    assert svg == encode_svg(draw()), 'equal figures give equal bytes'
    assert '$a &lt;b&gt; &amp; "c"</text>' in svg, 'text is text, and no formula'


def test_svg_needs_no_other_file():
    svg = encode_svg(draw())
    assert not re.search(r'<!DOCTYPE|<image|<script|@import|@font-face', svg)
    links = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
    assert links
    assert all(''.join(link).startswith('#') for link in links)
    names = {'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'}  # of namespaces, which nothing fetches
    assert set(re.findall(r'https?://[^"\s]*', svg)) == names


def test_figures_in_a_page_share_no_ids(tmp_path):
    report = Report('Title')
    for name in ('one.svg', 'two.svg'):
        report.add_figure(name, encode_svg(draw()), 'over <time>')
    page = report.write(tmp_path, 'report.html').read_text()
    assert (tmp_path / 'two.svg').read_text() == encode_svg(draw())
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    drawings = [attributes for tag, attributes in reader.tags if tag == 'svg']
    assert [one['aria-label'] for one in drawings] == 2 * ['over <time>']
    ids = [attributes['id'] for _, attributes in reader.tags if 'id' in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)
    assert {''.join(link) for link in used} <= {*ids}


def test_best_and_second_best():
    assert mark_best(['1.0', '3.0', '2.0'], 'higher', [1, 3, 2]) == ['1.0', '**3.0**', '<u>2.0</u>']
    assert mark_best(['1.0', '3.0', '2.0'], 'lower', [1, 3, 2]) == ['**1.0**', '3.0', '<u>2.0</u>']
    assert mark_best(['1.0', '1.0', '0.9', '0.8'], 'higher', [1.01, 0.99, 0.9, 0.8]) == [
        '**1.0**', '**1.0**', '<u>0.9</u>', '0.8'], 'what reads alike is marked alike'
    assert mark_best(['1.0', '2.0'], 'higher', [1, 2]) == ['1.0', '**2.0**'], 'of two, none is second'
    assert mark_best(['1.0', '1.0'], 'higher', [1, 1]) == ['1.0', '1.0']


def test_marks_in_html_and_in_a_terminal():
    table = [['', 'PSNR'], ['a**b**c', '**1 < 2**'], ['L1', '<u>2</u>']]
    report = Report('Title')
    report.add_table(table, 'small')
    page = report.to_html()
    assert '<td>a**b**c</td><td><strong>1 &lt; 2</strong></td>' in page
    assert '<td><u>2</u></td>' in page
    assert '<table class="small">' in page
    assert format_for_terminal(markdown_table(table) + '\n') == '         PSNR\na**b**c  1 < 2\nL1       2\n'


def luminance(color):
    """Of WCAG 2."""
    digits = color[1:] if len(color) == 7 else ''.join(2 * digit for digit in color[1:])
    values = [int(digits[at:at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(value * weight for value, weight in zip(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize('number', [0, 1], ids=['light', 'dark'])
def test_text_has_the_contrast_of_wcag_aa(number):
    colors = {name: re.findall(rf'--{name}: (#\w+);', STYLE)[number] for name in ('text', 'faint', 'back')}
    for name in ('text', 'faint'):
        darker, lighter = sorted([luminance(colors[name]), luminance(colors['back'])])
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_markdown():
    assert markdown_table(TABLE) == '|  | PSNR |\n|---|---|\n| L1 <x> | 1 \\| 2 |'


def test_csv_quotes():
    assert to_csv([('a', 'b,c'), (1, None)]) == 'a,"b,c"\n1,\n'


def test_tables_fit_a_terminal():
    rows = [['network', *(f'Set{number} PSNR-Y (dB)' for number in range(7))], ['a|b', *7 * ['31.587 ± 0.020']],
            ['long name', *7 * ['31.6']]]
    text = format_for_terminal(f'A title, {"long " * 30}\n\n{markdown_table(rows)}\n\nThe end.')
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert '|---' not in text
    assert [line.split()[0] for line in lines if line.startswith(('network', 'a|b', 'long name'))] == \
        3 * ['network', 'a|b', 'long'], 'three tables, each with the names'
    assert text.count('31.587 ± 0.020') == 7
    start = next(number for number, line in enumerate(lines) if line.startswith('network'))
    assert lines[start].index('Set0') == lines[start + 1].index('31.587'), 'columns are aligned'
    assert lines[-1] == 'The end.'
