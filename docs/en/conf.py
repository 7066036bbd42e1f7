"""Sphinx's settings; requirements/docs.txt names what is needed to build."""

from mmkdx.version import __version__

project = 'mmkdx'
author = 'The mmkdx contributors'
copyright = f'2026, {author}'
version = release = __version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']

# The notebooks hold the outputs of a real run; tests/test_tutorials.py runs them
nb_execution_mode = 'off'
# A table that a cell prints in Markdown is a table
nb_render_markdown_format = 'myst'

# Headings get anchors, so that pages can link to them
myst_heading_anchors = 3

# Types are written in the signature
autodoc_typehints = 'signature'
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True}

html_theme = 'furo'
html_title = f'mmkdx {version}'

# A console prompt is not part of a command
copybutton_prompt_text = '$ '
