"""The study: reads a profile, looks at the photographs, and runs snakemake; shows how far it is: a bar for the
steps, and one for each training that goes on."""
import argparse
import errno
import fcntl
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

from cleftgan_nb.foreign import speakable, terminal
from cleftgan_nb.study.profiles import place, plan, plan_file
from cleftgan_nb.values import read_yaml

HERE = Path(__file__).resolve().parent
PROFILES = sorted(o.stem for o in (HERE/'profiles').glob('*.yaml'))


def trainings(outputs, since):
    "Name → (images shown, images in all) of the runs that have written something lately."
    for log in outputs.glob('*/runs/*/time.jsonl'):
        if log.stat().st_mtime < since: continue
        shown = json.loads(log.read_text().splitlines()[-1])['kimg']
        yield log.parent.name, 1000*shown, 1000*read_yaml(log.parent/'config.yaml')['kimg']


class Bars:
    "One for the steps, below it one for each training; a bar stays when it is full."

    def __init__(self):
        self.bars, self.started = {}, time.time()

    def show(self, name, n, total, unit):
        if name not in self.bars:
            self.bars[name] = tqdm(total=total, initial=n, desc=name[:26].ljust(26), unit=unit, unit_scale=True,
                                   position=len(self.bars), leave=True, dynamic_ncols=True)
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
        except queue.Empty:
            yield None
            continue
        if not line: return
        yield line.rstrip()


def watched(command, lock):
    "Runs it behind bars; what it says is told if it fails."
    bars, tail = Bars(), []
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           pass_fds=[lock.fileno()])
    try:
        for line in lines(run.stdout):
            bars.look()
            if line is None: continue
            tail = (tail + [line])[-400:]
            if found := re.search(r'(\d+) of (\d+) steps', line):
                bars.show('steps of the study', int(found[1]), int(found[2]), 'step')
    except KeyboardInterrupt: pass                   # snakemake was told, too, and ends its notebooks
    run.wait()
    for bar in bars.bars.values(): bar.close()
    if run.returncode:
        at = next((i for i, line in enumerate(tail) if line.startswith('stopped in ')), max(0, len(tail) - 12))
        sys.exit('\n'.join(tail[at:at + 14]) + '\n\nThe same command goes on from here.')


def alone():
    """A lock that goes with the processes that hold it, however they end: snakemake's own would stay behind after
    a power cut."""
    Path('outputs').mkdir(exist_ok=True)
    try: held = os.fdopen(os.open('outputs/.lock', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), 'w')
    except OSError as e:
        if e.errno != errno.ELOOP: raise
        sys.exit('outputs/.lock is a link, which was not made here: remove it.')
    try: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: sys.exit('The study is running here already. Wait for it, or stop it first.')
    return held


def profile_of(name):
    "The file of a profile, by its name or its path."
    if name.endswith('.yaml'): return Path(name)
    if name not in PROFILES:
        sys.exit(f'There is no profile {name!r:.60}. There are: {", ".join(PROFILES)}; or name a file, '
                 'PROFILE=mine.yaml')
    return HERE/'profiles'/f'{name}.yaml'


def written(plan):
    """The plan as a file that nobody else can read: it names the folder of photographs. Nor can anybody else enter
    the folder of their results."""
    if plan['data']: place(plan).mkdir(mode=0o700, exist_ok=True)
    part = tempfile.NamedTemporaryFile('w', dir='outputs', prefix='.', suffix='.part', delete=False)
    with part: json.dump(plan, part, indent=2, allow_nan=False)
    os.replace(part.name, plan_file(plan))
    return plan_file(plan)


def study(plan, given, more, lock, look=False):
    "Looks at what is needed, and lets snakemake do what has not been done."
    file = written(plan)
    if look and subprocess.run([sys.executable, '-m', 'cleftgan_nb.study.preflight', file,
                                str(given.cores or 1)]).returncode:
        sys.exit(1)
    command = [sys.executable, '-m', 'snakemake', '--snakefile', HERE/'Snakefile', '--configfile', file]
    command += (['--resources', f'gpu={given.gpus}']*bool(given.gpus)
                + ['--cores', str(given.cores)]*bool(given.cores) + ['--nolock', '--rerun-incomplete', *more])
    if sys.stderr.isatty() and not given.more: return watched(command, lock)
    # whoever asks snakemake for something wants its answer
    if code := subprocess.run(command, pass_fds=[lock.fileno()]).returncode:
        sys.exit(code)


def count(text):
    value = int(text)
    if value < 1: raise ValueError
    return value


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                epilog='All other arguments are for snakemake.')
    p.add_argument('--profile', required=True, help=f'one of {", ".join(PROFILES)}, or a file')
    p.add_argument('--data', default='', help='folder of photographs')
    p.add_argument('--seeds', default='', help='several, such as "0 1 2": the measures over them')
    p.add_argument('--cores', type=count, help='at once, here')
    p.add_argument('--gpus', type=count, help='at once, here')
    p.add_argument('--preflight', action='store_true', help='look first whether everything that is needed is there')
    given, more = p.parse_known_args(argv)
    given.more = more
    if bad := [o for o in given.seeds.split() if not re.fullmatch('[0-9]{1,9}', o)]:
        p.error(f'seeds: {bad[0]!r:.60}; accepted: whole numbers, such as SEEDS="0 1 2"')
    return given


def main(argv):
    given = arguments(argv)
    seeds = [int(o) for o in given.seeds.split()]
    plans = [plan(profile_of(given.profile), given.data, seed) for seed in seeds or [0]]
    lock = alone()
    if any(o['data'] for o in plans):   # whatever comes of photographs, and from whichever process
        os.umask(0o077)
    if not seeds: return study(plans[0], given, given.more, lock, given.preflight)
    for o in plans: study(o, given, ['--until', 'compare', *given.more], lock)
    from cleftgan_nb.study.provenance import over_seeds
    print(over_seeds([place(o)/'compare.csv' for o in plans],
                     place(plans[0] | dict(seed=0)).as_posix() + '-seeds/compare.csv').read_text())


if __name__ == '__main__':
    speakable()
    try: main(sys.argv[1:])
    except (ValueError, OSError) as e: sys.exit(terminal(e))
