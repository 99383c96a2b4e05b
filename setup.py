"""Package metadata, read from settings.ini: nbdev's one place for version, requirements and commands."""
from configparser import ConfigParser

from setuptools import setup

STATUS = {'1': 'Planning', '2': 'Pre-Alpha', '3': 'Alpha', '4': 'Beta', '5': 'Production/Stable', '6': 'Mature'}
TOPICS = ('Intended Audience :: Science/Research', 'Topic :: Scientific/Engineering :: Artificial Intelligence',
          'Topic :: Scientific/Engineering :: Image Processing')
EXTRAS = 'photos', 'metrics', 'video', 'export', 'survey'

settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read('settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']

setup(
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    author_email=cfg['author_email'],
    python_requires='>=' + cfg['min_python'],
    classifiers=[f"Development Status :: {cfg['status']} - {STATUS[cfg['status']]}",
                 f"Intended Audience :: {cfg['audience']}", *TOPICS,
                 *(f'Programming Language :: Python :: 3.{o}' for o in range(int(cfg['min_python'][2:]), 14))],
    package_data={'cleftgan_nb.data': ['assets/*', 'assets/*/*'], 'cleftgan_nb': ['assets/*', 'assets/*/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': [o for name in ('dev', *EXTRAS) for o in cfg[f'{name}_requirements'].split()],
                    **{name: cfg[f'{name}_requirements'].split() for name in EXTRAS}},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    project_urls={'Source': cfg['git_url'], 'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
)
