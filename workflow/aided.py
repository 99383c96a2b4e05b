"""Compare ways to use heads on frozen features, at equal core-minutes: python workflow/aided.py normal-5000-64.zip
normal-1000-64.zip --minutes 5

Each arm goes on from a base for so many minutes of one core's time (process time: a busy machine changes
nothing), and is measured against people it has not seen. One row an arm and seed, into
outputs/vision-aided/ablation.csv; arms that are there already are left out."""
import argparse
import csv
import io
import os
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', NUMBA_NUM_THREADS='1')

import torch

from cleftgan_nb import checkpoints
from cleftgan_nb.files import atomic
from cleftgan_nb.data.datasets import ImageFolderDataset
from cleftgan_nb.metrics.distances import density_coverage, frechet_distance, precision_recall
from cleftgan_nb.metrics.features import efficientnet_lite0
from cleftgan_nb.metrics.samples import dataset_images, samples
from cleftgan_nb.training.config import from_values
from cleftgan_nb.training.loop import train

ARMS = {'before': None, 'as published': dict(aid=None), 'heads alone': dict(aid=1., d_weight=0.),
        'heads and D': dict(aid=1.), 'heads and D, no R1': dict(aid=1., gamma=0.),
        'heads and D, batch 8': dict(aid=1., batch=8), 'heads and D, batch 32': dict(aid=1., batch=32),
        'heads and D, half the rate': dict(aid=1., g_lr=.001),
        'heads and D, weight 3': dict(aid=3.), 'heads and D, no mirror': dict(aid=1., mirror=False),
        'heads and D, longer average': dict(aid=1., ema_kimg=2.),
        'heads alone, batch 8': dict(aid=1., d_weight=0., batch=8)}
OUT = Path(__file__).parent.parent/'outputs'/'vision-aided'/'ablation.csv'
COLUMNS = 'network', 'arm', 'seed', 'minutes', 'kimg', 'n', 'fd', 'low', 'high', 'precision', 'recall', 'coverage'


class Late(Exception): "The arm's time is up"


def trained(network, base, arm, seed, data, minutes, folder):
    "The checkpoint of an arm, and how many images it saw"
    end = time.process_time() + 60*minutes
    def look(run, row):
        if time.process_time() > end: raise Late
    values = dict(data=str(data), out=str(folder), network=network, resume_from=base, kimg=1000., batch=16, g_lr=.002,
                  ema_kimg=.5, augment='none', tick_kimg=.128, keep_kimg=.128, seed=seed, license='CC0-1.0')
    try: train(from_values(values | arm), progress=False, on_tick=look)
    except Late: pass
    return max(folder.glob('network-*'), key=lambda path: float(path.stem.partition('-')[2]))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('data')
    p.add_argument('unseen')
    p.add_argument('--network', default='stylegan2')
    p.add_argument('--base', help='a checkpoint of that network; the one that ships')
    p.add_argument('--minutes', type=float, default=5)
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--arms', nargs='+', default=list(ARMS), choices=list(ARMS))
    given = p.parse_args()
    base = given.base or f'phantom-64-{given.network}'
    torch.set_num_threads(1)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    judge, real = efficientnet_lite0(), dataset_images(ImageFolderDataset(given.unseen))
    rows = list(csv.DictReader(OUT.open(encoding='utf-8'))) if OUT.exists() else []
    features = judge.features(real, progress=False)
    for seed, name in [(s, a) for s in given.seeds for a in given.arms]:
        if any((r['network'], r['arm'], r['seed'], r['n']) == (given.network, name, str(seed), str(len(real)))
               and float(r['minutes']) in (0, given.minutes) for r in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = base if name == 'before' else trained(given.network, base, ARMS[name], seed, given.data,
                                                         given.minutes, Path(folder)/'run')
            c = checkpoints.load(path)
        made = judge.features(samples(c.sampler, len(real), seed=0), progress=False)
        fd, (precision, recall), (_, coverage) = (frechet_distance(features, made, judge),
                                                  precision_recall(features, made, features=judge),
                                                  density_coverage(features, made, features=judge))
        kimg = 0. if name == 'before' else c.meta['progress']['kimg']
        rows.append(dict(network=given.network, arm=name, seed=seed, minutes=0 if name == 'before' else given.minutes,
                         kimg=kimg, n=len(real), fd=round(fd.value, 3), low=round(fd.low, 3), high=round(fd.high, 3),
                         precision=round(float(precision), 4), recall=round(float(recall), 4),
                         coverage=round(float(coverage), 4)))
        print(rows[-1], flush=True)
        table = io.StringIO(newline='')
        csv.writer(table, lineterminator='\n').writerows([COLUMNS, *([r[k] for k in COLUMNS] for r in rows)])
        with atomic(OUT) as f: f.write(table.getvalue().encode())


if __name__ == '__main__': main()
