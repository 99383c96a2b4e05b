"""Package metadata, read from settings.ini: nbdev's one place for version, requirements and commands."""
from configparser import ConfigParser

from setuptools import setup

settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read('settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']

setup(
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    package_data={'cleftgan_nb.data': ['assets/*', 'assets/*/*'], 'cleftgan_nb': ['assets/*', 'assets/*/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': sum((cfg[f'{o}_requirements'].split() for o in ('dev', 'photos', 'metrics')), []), **{o: cfg[f'{o}_requirements'].split() for o in ('photos', 'metrics')}},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    project_urls={'Source': cfg['git_url'], 'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
)
