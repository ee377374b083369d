import base64
import html.parser

import numpy as np

from udl_plugin.inference.visualize import encode_png
from udl_plugin.studies.report import Report, format_for_terminal, markdown_table, to_csv

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
