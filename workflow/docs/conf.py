"""Sphinx's settings. The pages come from build.py; nothing is run here and nothing is fetched."""
import os
from configparser import ConfigParser
from pathlib import Path

root = Path(os.environ['CLEFTGAN_ROOT'])
settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(root/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']

project, author, copyright, version = (settings[o] for o in ('title', 'author', 'copyright', 'version'))
release = version
extensions = ['myst_nb', 'sphinx.ext.mathjax']
nb_execution_mode = 'off'
nb_output_stderr = 'remove'
nb_merge_streams = True
nb_mime_priority_overrides = [('html', 'image/gif', 5)]
nb_render_markdown_format = 'myst'                   # tables that a cell makes, too
nb_number_source_lines = False
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'attrs_inline']
myst_heading_anchors = 4
myst_dmath_double_inline = True
add_module_names = False
python_maximum_signature_line_length = 88
suppress_warnings = ['myst.header']                  # notebooks begin sections as they need them

html_theme = 'furo'
html_title = project
html_baseurl = settings['doc_host'] + settings['doc_baseurl'] + '/'
html_static_path = [str(Path(__file__).parent/'static')]
html_css_files = ['site.css']
html_copy_source = html_show_sourcelink = False
html_theme_options = dict(navigation_with_keys=True,
                          light_css_variables={'color-brand-primary': '#9c3f5b', 'color-brand-content': '#9c3f5b',
                                               'color-brand-visited': '#7a3f74'},
                          dark_css_variables={'color-brand-primary': '#f0a3b7', 'color-brand-content': '#f0a3b7',
                                              'color-brand-visited': '#d6a3d0'})
pygments_style, pygments_dark_style = 'tango', 'monokai'

mathjax_path = 'mathjax/tex-svg-full.js'             # one file with its glyphs, which build.py copies from a package
mathjax3_config = {'options': {'enableMenu': False}, 'svg': {'fontCache': 'global'}}
