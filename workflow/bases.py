"""Train the bases that ship, or go on with them: make bases, or python workflow/bases.py --hours 2 --networks
stylegan3-t

Runs are folders of outputs/bases, which git ignores. --ship writes each run's last checkpoint, in half
precision, to where the library looks, and fills its card."""
import argparse
import sys
import time
from pathlib import Path

import torch

from cleftgan_nb import checkpoints
from cleftgan_nb.data.cohorts import cohort
from cleftgan_nb.training.config import from_values
from cleftgan_nb.training.loop import train
from cleftgan_nb.training.model_cards import model_card
from cleftgan_nb.values import read_yaml

HERE = Path(__file__).parent
NUMBERS = read_yaml(HERE/'bases.yaml')
OUT, MODELS, CARDS = (HERE.parent/'outputs'/'bases', HERE.parent/'cleftgan_nb'/'assets'/'models',
                      HERE.parent/'data_cards')


def config(name, data, gpu):
    "The configuration of one base's run"
    own = NUMBERS['networks'][name]
    return from_values(dict(data=str(data), out=str(OUT/name)) | NUMBERS['training']
                       | (NUMBERS['gpu'] if gpu else {}) | own, f'bases.yaml, {name}')


class Late(Exception): "The time is up"


def until(end):
    "Stop at the first tick after `end`, when everything is on the disk"
    def look(folder, row):
        if time.time() > end: raise Late
    return look


def run(name, data, hours):
    "Train for so long, or to the end"
    try: train(config(name, data, torch.cuda.is_available()), on_tick=until(time.time() + hours*3600))
    except Late: print(f'{name}: {hours:g} hours are over; the same command goes on')


def ship(name, data):
    "The last checkpoint, in half precision and with its card"
    kept = sorted((OUT/name).glob('network-*.safetensors'), key=lambda path: float(path.stem.partition('-')[2]))
    if not kept: sys.exit(f'{OUT/name} has no checkpoint yet; make bases first')
    target = MODELS/f'phantom-64-{name}.safetensors'
    checkpoints.convert(kept[-1], target, dtype=torch.float16)
    print(model_card(target.stem, CARDS/f'{target.stem}.md', run=OUT/name, cohort=data))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--networks', nargs='+', default=list(NUMBERS['networks']), choices=list(NUMBERS['networks']))
    p.add_argument('--hours', type=float, default=1e6, help='for each of them')
    p.add_argument('--ship', action='store_true', help='no training: put the last checkpoints where the library looks')
    given, people = p.parse_args(), NUMBERS['cohort']
    data = OUT/f"{people['kind']}-{people['n']}-{people['size']}.zip"
    if not data.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        cohort(people['kind'], people['n'], data, size=people['size'], seed=people['seed'])
    for name in given.networks: ship(name, data) if given.ship else run(name, data, given.hours)


if __name__ == '__main__': main()
