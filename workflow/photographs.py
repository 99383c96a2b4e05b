"""The photographs that the study began with, and no others, become two datasets, one of them held out:
photographs.py PLAN TRAIN UNSEEN"""
import json
import shutil
import sys
from pathlib import Path

from cleftgan_nb.files import atomic
from cleftgan_nb.data.datasets import ImageFolderDataset
from cleftgan_nb.data.photographs import prepare
from cleftgan_nb.data.split import split
from cleftgan_nb.study.profiles import FEWEST, check_photographs


def main(plan, train, unseen):
    plan = json.loads(Path(plan).read_text(encoding='utf-8'))
    seen, prepared = plan['data'], Path(train).parent/'prepared'
    if prepared.exists(): shutil.rmtree(prepared)
    check_photographs(seen)
    made = prepare(seen['folder'], prepared, size=plan['resolution'], progress=False)
    check_photographs(seen)
    print(made)
    n = len(made.accepted)
    sizes = ([len(ImageFolderDataset(o)) for o in split(made.dataset, train, unseen, share=max(.2, FEWEST/n))]
             if n >= 2*FEWEST else [0])
    if min(sizes) < FEWEST:
        raise ValueError(f'{n} photographs could be used; accepted: {FEWEST} to learn from and {FEWEST} of other '
                         'people to compare with')
    print(f'{sizes[0]} to learn from, {sizes[1]} held back')
    about = dict(folder=Path(seen['folder']).name, files=seen['files'], fingerprint=seen['fingerprint'], prepared=n,
                 rejected=dict(made.reasons))
    with atomic(Path(train).parent/'photographs.json') as f: f.write(json.dumps(about, indent=2).encode())


if __name__ == '__main__':
    try: main(*sys.argv[1:])
    except ValueError as e: sys.exit(str(e))
