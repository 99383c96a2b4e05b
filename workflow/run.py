"""Runs snakemake with what is given, and shows how far it is: a bar for the steps, and one for each training that goes on."""
import fcntl
import json
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml
from tqdm import tqdm


def trainings(outputs, since):
    "Name → (images shown, images in all) of the runs that have written something lately."
    for log in outputs.glob('*/runs/*/time.jsonl'):
        if log.stat().st_mtime < since: continue
        shown = json.loads(log.read_text().splitlines()[-1])['kimg']
        yield log.parent.name, 1000*shown, 1000*yaml.safe_load((log.parent / 'config.yaml').read_text())['kimg']


class Bars:
    "One for the steps, below it one for each training; a bar stays when it is full."

    def __init__(self):
        self.bars, self.started = {}, time.time()

    def show(self, name, n, total, unit):
        if name not in self.bars: self.bars[name] = tqdm(total=total, initial=n, desc=name[:26].ljust(26), unit=unit, unit_scale=True, position=len(self.bars), leave=True, dynamic_ncols=True)
        bar = self.bars[name]
        if n > bar.n: bar.update(n - bar.n)

    def look(self):
        for name, n, total in trainings(Path('outputs'), self.started): self.show(name, n, total, 'img')


def lines(stream, every=1.):
    "The lines of a stream, and None every so many seconds in which there is none."
    found = queue.Queue()
    def read():
        for line in stream: found.put(line)
        found.put('')                                # a line of the stream has at least its end
    threading.Thread(target=read, daemon=True).start()
    while True:
        try: line = found.get(timeout=every)
        except queue.Empty: yield None; continue
        if not line: return
        yield line.rstrip()


def main(arguments, lock):
    bars, tail = Bars(), []
    run = subprocess.Popen([sys.executable, '-m', 'snakemake', *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=[lock.fileno()])
    try:
        for line in lines(run.stdout):
            bars.look()
            if line is None: continue
            tail = (tail + [line])[-400:]
            if found := re.search(r'(\d+) of (\d+) steps', line): bars.show('steps of the study', int(found[1]), int(found[2]), 'step')
    except KeyboardInterrupt: pass                   # snakemake was told, too, and ends its notebooks
    run.wait()
    for bar in bars.bars.values(): bar.close()
    if run.returncode:
        at = next((i for i, line in enumerate(tail) if line.startswith('stopped in ')), max(0, len(tail) - 12))
        sys.exit('\n'.join(tail[at:at + 14]) + '\n\nThe same command goes on from here.')


def alone():
    "A lock that goes with the processes that hold it, however they end: snakemake's own would stay behind after a power cut."
    Path('outputs').mkdir(exist_ok=True)
    held = open('outputs/.lock', 'w')
    try: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: sys.exit('The study is running here already. Wait for it, or stop it first.')
    return held


if __name__ == '__main__':
    given, lock = ['--nolock', *sys.argv[1:]], alone()
    silent = {'--snakefile', '--configfile', '--cores', '--rerun-incomplete', '--config', '--until', '--resources', '--directory'}
    plain = not sys.stderr.isatty() or any(o[0] == '-' and o not in silent for o in sys.argv[1:])        # whoever asks snakemake for something wants its answer
    if plain: sys.exit(subprocess.run([sys.executable, '-m', 'snakemake', *given], pass_fds=[lock.fileno()]).returncode)
    main(given, lock)
