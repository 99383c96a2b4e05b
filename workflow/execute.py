"""Executes a notebook of the study: execute.py NOTEBOOK COPY PARAMETERS. The copy is a log: where a cell fails it
stays, up to there."""
import json
import os
import sys
from pathlib import Path

sys.modules['rfc3987_syntax'] = None   # papermill would compile a grammar of IRIs at each start, for more than a second
import papermill  # noqa: E402

from slim import slim  # noqa: E402


def main(notebook, copy, parameters):
    os.environ['CLEFTGAN_NOTEBOOK'] = Path(copy).name                # for recipes
    try: papermill.execute_notebook(notebook, copy, json.loads(parameters), progress_bar=False)
    except papermill.PapermillExecutionError as e: sys.exit(f'{e.source}\n\n{e.ename}: {e.evalue}')
    slim(copy)


if __name__ == '__main__': main(*sys.argv[1:])
