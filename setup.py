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
    package_data={'cleftgan_nb.data': ['assets/*', 'assets/*/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split() + cfg['photos_requirements'].split(), 'photos': cfg['photos_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    project_urls={'Source': cfg['git_url'], 'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
)
