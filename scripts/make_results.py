"""Updates the tables in the pages of docs/: python scripts/make_results.py [RESULTS]

Copies the results of udl-study, udl-compare, scripts/benchmark.py and `make soak` from the folder RESULTS (the pages
have the commands) to docs/results/, as far as they exist; then copies the tables in docs/results/ into the pages,
between the comments that name them. Without RESULTS, it only does the latter. A test checks that the pages are up to
date.
"""
from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / 'docs'
PAGES = ('results.md', 'performance.md', 'reliability.md')
# path in RESULTS, and name in docs/results/
FILES = {
    **{f'photos/photos{end}': f'photos{end}' for end in ('.md', '.csv', '_differences.svg', '_curves.svg')},
    'photos/photos_weighting.md': 'photos_weighting.md', 'photos/photos_sources.md': 'photos_sources.md',
    **{f'photos/photos_variants{end}': f'photos_variants{end}' for end in ('.md', '.csv', '_differences.svg')},
    **{f'one_run/one_run{end}': f'one_run{end}' for end in ('.md', '.csv')},
    'maps/table.md': 'maps.md', 'maps/sparsification_Set14.png': 'maps_sparsification_Set14.png',
    'networks/table.md': 'networks.md',
    'photos/photos_speed.md': 'photos_speed.md',
    **{f'benchmark/{name}.md': f'benchmark_{name}.md' for name in (
        'steps_EDSR-S', 'memory_EDSR-S', 'test_EDSR-S', 'validation_EDSR-S', 'loading_EDSR-S', 'steps_DPDNN',
        'memory_DPDNN')},
    'soak.md': 'soak.md',
}


def main(arguments: Sequence[str]) -> None:
    for folder in arguments:
        for source, name in FILES.items():
            if Path(folder, source).exists():
                shutil.copyfile(Path(folder, source), DOCS / 'results' / name)
        maps = DOCS / 'results/maps.md'
        text = maps.read_text(encoding='utf-8')
        maps.write_text(''.join(text.partition('Maps, ')[1:]), encoding='utf-8')  # networks.md has the scores and costs
    for page in PAGES:
        text = (DOCS / page).read_text(encoding='utf-8')
        (DOCS / page).write_text(filled(text), encoding='utf-8')


def filled(text: str) -> str:
    """The text of a page, with each table after the comment that names it."""
    def block(match: re.Match[str]) -> str:
        table = (DOCS / 'results' / match[1]).read_text(encoding='utf-8').strip()
        return f'<!-- {match[1]} -->\n\n{table}\n\n<!-- end -->'

    return re.sub(r'<!-- ([\w-]+\.md) -->\n.*?<!-- end -->', block, text, flags=re.DOTALL)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', nargs='*', metavar='RESULTS', help='folder with the results')
    main(parser.parse_args().results)
