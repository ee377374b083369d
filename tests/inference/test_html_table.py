import pytest

from udl_plugin.inference.html_table import HtmlTable, cell_to_html, mark_best


@pytest.mark.parametrize(('cells', 'better', 'expected'), [
    (['1', '3', '2'], 'higher', ['1', '<strong>3</strong>', '<u>2</u>']),
    (['1,000', '30', '2'], 'lower', ['1,000', '<u>30</u>', '<strong>2</strong>']),
    (['1', '2', '2'], 'higher', ['1', '<strong>2</strong>', '<strong>2</strong>']),
    (['2', '2', '-'], 'higher', ['2', '2', '-']),
    (['1', '2', '3'], None, ['1', '2', '3']),
    (['-', 'nan', '2 <x>', '1', '4'], 'lower', ['-', 'nan', '2 &lt;x&gt;', '<strong>1</strong>', '4']),
])
def test_best_and_second(cells, better, expected):
    assert [cell_to_html(cell) for cell in mark_best(cells, better)] == expected


def test_cells_and_captions_are_escaped():
    text = HtmlTable('a <b>', [['n <i>', 'x & y'], ['<u>1</u>', '2']]).to_html()
    assert '<caption>a &lt;b&gt;</caption>' in text
    assert '<th scope="col"><button type="button">n &lt;i&gt;</button></th>' in text
    assert '&lt;u&gt;1&lt;/u&gt;' in text
    assert '<details>' not in text
    assert HtmlTable('a', [['n'], ['1']], is_folded=True).to_html().startswith('<details><summary>a</summary>')
