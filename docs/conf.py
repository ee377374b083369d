"""Settings of the documentation site: `make docs` builds it with Sphinx, MyST and Furo into build/docs."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

project = 'udl_plugin'
# read, not imported, so that the site needs none of the package's requirements
release = version = re.search(r"^__version__ = '(.+)'$", (ROOT / 'udl_plugin/__init__.py').read_text(), re.MULTILINE)[1]

extensions = ['myst_parser', 'sphinx_copybutton']
exclude_patterns = ['results']  # tables that scripts/make_results.py copies into the pages
nitpicky = True
highlight_language = 'none'  # of indented blocks: commands, formulas and layouts of folders
myst_heading_anchors = 4

html_theme = 'furo'
html_title = f'udl_plugin {version}'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_theme_options = {'top_of_page_buttons': []}  # sources are in the repository
html_copy_source = False
html_show_copyright = False

linkcheck_timeout = 20
linkcheck_retries = 2

# In the repository, pages link to these files; on the site, to the pages that include them.
PAGES = {'README': 'index', 'CONTRIBUTING': 'contributing', 'CHANGELOG': 'changelog'}


def link_to_pages(app: Any, docname: str, source: list[str]) -> None:
    folder = '../' * docname.count('/')
    source[0] = re.sub(rf'\]\(\.\./{folder}({"|".join(PAGES)})\.md',
                       lambda match: f']({folder}{PAGES[match[1]]}.md', source[0])


def setup(app: Any) -> None:
    app.connect('source-read', link_to_pages)
