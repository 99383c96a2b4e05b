"""Measure generators by two networks that trained none of them: python workflow/judged.py, or --bases, --asked,
and checkpoints instead of those that ship

--bases: against 1000 unseen normal phantoms, into outputs/vision-aided/bases.csv. --asked: with the labels of
514 unseen patients, into asked.csv, steps.csv, copies.csv, and asked.png."""
import argparse
import os
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1')

import numpy as np
import pandas as pd

from cleftgan_nb import checkpoints
from cleftgan_nb.files import atomic, sha256
from cleftgan_nb.data.cohorts import Recipe, cohort
from cleftgan_nb.data.datasets import ImageFolderDataset
from cleftgan_nb.checkpoints.labels import label_of
from cleftgan_nb.metrics.copies import memorization
from cleftgan_nb.metrics.distances import density_coverage, frechet_distance, precision_recall
from cleftgan_nb.metrics.features import load_judges
from cleftgan_nb.metrics.gap import plot_asked
from cleftgan_nb.metrics.samples import dataset_images, samples
from cleftgan_nb.metrics.severity import load_regression
from cleftgan_nb.study.provenance import recipe, save_figure

ROOT = Path(__file__).parent.parent
COHORTS, OUT = ROOT/'outputs'/'bases', ROOT/'outputs'/'vision-aided'
CLEFT = .15   # severity from which a side counts as cleft


def people(kind, n, seed, **recipe):
    "A cohort, drawn if it is not there yet"
    path = COHORTS/f'{kind}-{n}-64-seed{seed}.zip'
    if not path.exists():
        COHORTS.mkdir(parents=True, exist_ok=True)
        cohort(kind, n, path, seed=seed, recipe=Recipe(**recipe))
    return ImageFolderDataset(path, use_labels=kind == 'cleft')


def write(name, rows):
    "A table"
    with atomic(OUT/name) as f:
        f.write(pd.DataFrame(rows).to_csv(index=False, float_format='%.4g').encode())
    print((OUT/name).read_text())


def distances(made, real):
    "Scores by every judge, one row each"
    for judge in load_judges():
        a, b = (judge.features(x, progress=False) for x in (real, made))
        fd, pr, dc = (frechet_distance(a, b, judge), precision_recall(a, b, features=judge),
                      density_coverage(a, b, features=judge))
        yield dict(judge=judge.name, n=len(made), fd=fd.value, low=fd.low, high=fd.high, precision=pr.precision.value,
                   recall=pr.recall.value, coverage=dc.coverage.value)


def about(path):
    "What a row says of a checkpoint"
    c, shipped = checkpoints.load(path), ROOT/'cleftgan_nb'/'assets'/'models'/f'{path}.safetensors'
    return c, dict(generator=Path(path).stem, kimg=c.meta['progress']['kimg'],
                   sha256=sha256(shipped if shipped.exists() else path)[:12])


def bases(paths):
    "How far bases are from people that they have not seen"
    real, rows = dataset_images(people('normal', 1000, 9)), []
    for path in paths:
        c, row = about(path)
        rows += [row | d for d in distances(samples(c.sampler, len(real), seed=0), real)]
    rows += [dict(generator='another real sample', kimg='', sha256='') | d
             for d in distances(dataset_images(people('normal', 1000, 10)), real)]
    write('bases.csv', rows)


def interval(f, n, draws=1000):
    "The value of f(indices), and a 95% interval by drawing images again"
    g = np.random.default_rng(0)
    return f(np.arange(n)), *np.quantile([f(g.integers(n, size=n)) for _ in range(draws)], (.025, .975))


def kind(sides, threshold):
    "0 left, 1 right, 2 bilateral"
    return np.where((sides > threshold).all(1), 2, sides.argmax(1))


def obeyed(scorer, images, asked):
    "How what is drawn follows what was asked for, as (what, value, low, high)"
    seen = scorer.sides(images)
    a, s, n = kind(asked, 1e-6), kind(seen, CLEFT), len(asked)
    r = lambda x, y: lambda i: float(np.corrcoef(x[i], y[i])[0, 1])
    yield 'severity of the worse side, r', *interval(r(asked.max(1), seen.max(1)), n)
    yield 'severity of either side, both pooled, r', *interval(lambda i: r(asked[i].ravel(),
                                                                           seen[i].ravel())(slice(None)), n)
    yield 'mean absolute error of the worse side', *interval(lambda i: float(abs(asked.max(1)
            - seen.max(1))[i].mean()), n)
    yield 'left, right or both, as asked', *interval(lambda i: float((a == s)[i].mean()), n)
    for k, name in enumerate(('left', 'right', 'bilateral')):
        yield f'share of {name}, asked', float((a == k).mean()), '', ''
        yield f'share of {name}, drawn', *interval(lambda i: float((s == k)[i].mean()), n)


def staircase(G, names, scorer, each=20):
    "Severities from .1 to 1 on one side, as rows"
    for severity in np.arange(1, 11)/10:
        for side in (0, 1):
            label = label_of(names, severity=float(severity), side=('left', 'right')[side])
            seen = scorer.sides(samples(G, each, seed=1, labels=label, progress=False))
            yield dict(side=('left', 'right')[side], asked=float(severity), n=each, mean=float(seen[:, side].mean()),
                       sd=float(seen[:, side].std(ddof=1)), other_side=float(seen[:, 1 - side].mean()))


def copies(made, training, unseen):
    "Images that are training images again, by each judge; and how many planted ones each finds"
    shifted, mixed = np.roll(training, 1, 2), ((3.*training + made[:len(training)])/4).astype(np.uint8)
    for name, images in {'generated': made, 'planted: shifted by a pixel': shifted,
                         'planted: a quarter of a generated image mixed in': mixed}.items():
        for m in memorization(images, training, unseen, load_judges(), progress=False):
            copied, ratio = m.scores[:2]
            yield dict(images=name, judge=m.network, n=len(images), copied=copied.value, low=copied.low,
                       high=copied.high, held_out=copied.notes['held_out'], ratio=ratio.value,
                       held_out_ratio=ratio.notes['held_out'])


def picture(path):
    "The network's clefts by severity and side, beside phantoms with the same labels: the first picture of the README"
    c, _ = about(path)
    figure = plot_asked(c.sampler, c.labels)
    save_figure(figure, OUT/'asked.png',
                recipe('severity asked for (columns) on each side (rows), generated and as phantoms; below, the width of the gap '
                       'that the segmenter measures, in percent of the distance between the eyes', dict(seed=0),
                       dict(checkpoint=checkpoints.find(path))))


def asked(path):
    "How well a network obeys, how far it is from unseen patients, and whether it copies"
    picture(path)
    c, row = about(path)
    scorer = load_regression()
    training, unseen = people('cleft', 514, 0, repaired=0), people('cleft', 514, 1, repaired=0)
    labels, real = unseen.labels(range(len(unseen))), dataset_images(unseen)
    labels = labels.repeat(2, 1)[:1000]
    made = samples(c.sampler, 1000, seed=0, labels=labels)
    sides = np.asarray(labels)[:, [c.labels.index(f'lip_{s}') for s in ('left', 'right')]]
    rows = [row | dict(what=what, n=len(made), value=v, low=low, high=high)
            for what, v, low, high in obeyed(scorer, made, sides)]
    for d in distances(made[:514], real):
        rows += [row | dict(what=f"{k}_{d['judge']}", n=514, value=d[k], low=d['low'] if k == 'fd' else '',
                            high=d['high'] if k == 'fd' else '') for k in ('fd', 'precision', 'recall', 'coverage')]
    truth = sides[:514]
    rows += [dict(generator='unseen patients themselves', kimg='', sha256='', what=what, n=514, value=v, low=low,
                  high=high) for what, v, low, high in obeyed(scorer, real, truth)]
    write('asked.csv', rows)
    write('steps.csv', [row | d for d in staircase(c.sampler, list(c.labels), scorer)])
    write('copies.csv', [row | d for d in copies(made[:514], dataset_images(training), real)])


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--bases', nargs='*', metavar='CHECKPOINT')
    p.add_argument('--asked', nargs='?', const='phantom-64-asked-stylegan3-t', metavar='CHECKPOINT')
    given = p.parse_args()
    everything = given.bases is None and given.asked is None
    if everything or given.bases is not None:
        bases(given.bases or [f'phantom-64-{n}' for n in ('stylegan3-t', 'stylegan3-r', 'stylegan2')])
    if everything or given.asked: asked(given.asked or 'phantom-64-asked-stylegan3-t')


if __name__ == '__main__': main()
