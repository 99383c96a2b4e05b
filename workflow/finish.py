"""The last step of the study: one page with all of it, and a list of what was made: finish.py PLAN FILES"""
import json
import sys
from pathlib import Path

from cleftgan_nb.study.profiles import place
from cleftgan_nb.study.provenance import save_manifest
from cleftgan_nb.study.report import report


def main(plan, files):
    plan = json.loads(Path(plan).read_text(encoding='utf-8'))
    for made in save_manifest(place(plan), plan, files), report(place(plan)): print(made)   # the report reads the list


if __name__ == '__main__': main(sys.argv[1], sys.argv[2:])
