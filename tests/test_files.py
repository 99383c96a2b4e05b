"""Unfinished files: private, under a name that no one can foresee, gone whatever ends the process, and told from
another writer's"""
import errno, os, re, signal, socket, subprocess, sys
from pathlib import Path
import pytest
from cleftgan_nb import files
from cleftgan_nb.files import as_before, as_private_as, ending, gone, has_home, leftovers, narrow, openness, part, sweep

# for processes started here, wherever the library is
ENV = {**os.environ, 'PYTHONPATH': str(Path(files.__file__).parents[1])}
posix = pytest.mark.skipif(os.name == 'nt', reason='signals, locks and permissions')

def names(folder): return sorted(p.name for p in folder.iterdir())

def mode(path): return oct(os.stat(path).st_mode & 0o777)

def left(folder, name='x', host=None, pid=2**30):
    "Make what a killed process leaves"
    place = folder/f'.{name}@{host or socket.gethostname()}-{pid}.{"0"*16}.part'
    (place/'new').mkdir(parents=True)
    return place

def _default():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

def python(code, **more):
    "Start another process, and read its first line; Ctrl-C reaches it even where the tests run in the background"
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV,
                         text=True, preexec_fn=_default if os.name == 'posix' else None, **more)
    return p, p.stdout.readline().strip()

WRITER = '''
import sys; from pathlib import Path; from cleftgan_nb.files import part
with part(Path({path!r})) as new:
    new.write_text('half')
    try: print(new.parent, flush=True); sys.stdin.readline()
    finally: print('ending', flush=True)
print('never', flush=True)
'''

@posix
def test_nobody_else_can_read_foresee_or_prepare_a_part(tmp_path, monkeypatch):
    with part(tmp_path/'x') as a, part(tmp_path/'x') as b:
        assert (a.parent != b.parent and mode(a.parent) == '0o700'
                and re.search('[.][0-9a-f]{16}[.]part$', a.parent.name))
    monkeypatch.setattr(files.secrets, 'token_hex', lambda n: '0'*2*n)   # someone has guessed
    elsewhere = tmp_path/'elsewhere'
    elsewhere.mkdir()
    trap = tmp_path/f'.x@{socket.gethostname()}-{os.getpid()}.{"0"*16}.part'
    trap.symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        with part(tmp_path/'x') as new: new.write_text('mine')
    assert names(elsewhere) == [] and trap.is_symlink()

@posix
def test_an_atomic_file_follows_no_planted_link(tmp_path):
    "Anyone could know the old name, made of host and process number"
    from cleftgan_nb.files import atomic
    (tmp_path/'victim').write_text('theirs')
    for name in (f'.x.{socket.gethostname()}-{os.getpid()}.part', f'.x@{socket.gethostname()}-{os.getpid()}.part'):
        (tmp_path/name).symlink_to(tmp_path/'victim')
    with atomic(tmp_path/'x') as f: f.write(b'mine')
    assert ((tmp_path/'victim').read_text() == 'theirs' and (tmp_path/'x').read_text() == 'mine'
            and not (tmp_path/'x').is_symlink())

@posix
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP', 'SIGINT', 'SIGKILL'])
def test_signals(tmp_path, name):
    "All but SIGKILL clean up, and end the process as they would have"
    p, place = python(WRITER.format(path=str(tmp_path/'x')), stderr=subprocess.DEVNULL)
    assert names(tmp_path) == [Path(place).name] and gone(Path(place)) is False
    p.send_signal(getattr(signal, name))
    out, _ = p.communicate()
    assert out == 'ending\n'*(name != 'SIGKILL') and p.returncode == -getattr(signal, name)
    assert leftovers(tmp_path) == [(Path(place), True)]*(name == 'SIGKILL')
    assert sweep(tmp_path/'x') == [Path(place)]*(name == 'SIGKILL') and names(tmp_path) == []

@posix
def test_signals_that_are_ignored_or_handled_stay_so():
    heard = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with ending(), ending():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [1] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])

@posix
def test_a_forked_child_leaves_its_parents_part_alone(tmp_path):
    with part(tmp_path/'x') as new:
        new.write_text('mine')
        if not (pid := os.fork()):
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM and new.read_text() == 'mine'

@posix
def test_equal_host_and_process_number(tmp_path):
    "As in two containers that share a folder: what the other writes is locked, so it stays"
    p, place = python(WRITER.format(path=str(tmp_path/'x')))
    for pid in (os.getpid(), 2**30):
        same = tmp_path/f'.x@{socket.gethostname()}-{pid}.{"0"*16}.part'
        os.rename(place, same)
        place = same
        assert gone(same) is False and sweep(tmp_path/'x') == [] and same.exists()
    p.kill()
    p.communicate()
    assert sweep(tmp_path/'x') == [same] and names(tmp_path) == []

@posix
def test_what_is_not_ours_to_judge(tmp_path):
    place = left(tmp_path, host='elsewhere')
    assert leftovers(tmp_path) == [(place, None)] and sweep(tmp_path/'x') == []
    if os.geteuid() == 0:
        theirs = left(tmp_path)
        os.chown(theirs, 1, 1)
        assert gone(theirs) is None and sweep(tmp_path/'x') == []

@posix
def test_what_made_way_comes_back(tmp_path):
    place = left(tmp_path)
    (place/'old').write_text('whole')
    assert sweep(tmp_path/'x') == [place] and names(tmp_path) == ['x'] and (tmp_path/'x').read_text() == 'whole'

def test_errors_are_about_what_was_asked_for(tmp_path):
    for error, said in ((OSError(errno.ENOSPC, 'No space left on device'), 'x'),
                        (OSError(errno.EACCES, 'Permission denied', '{new}/a.png'), 'x/a.png'),
                        (OSError(errno.ENOENT, 'No such file', '/elsewhere'), '/elsewhere'),
                        (OSError(errno.EPIPE, 'Broken pipe'), None)):
        with pytest.raises(OSError) as e, part(tmp_path/'x') as new:
            if error.filename: error.filename = error.filename.format(new=new)
            raise error
        assert e.value.filename == (said and str(tmp_path/said))

# ---- who may read what

@posix
@pytest.mark.parametrize('before', [0o600, 0o640, 0o644, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path, before):
    from cleftgan_nb.files import atomic
    (tmp_path/'x').write_text('old')
    os.chmod(tmp_path/'x', before)
    with atomic(tmp_path/'x') as f: f.write(b'new')
    assert mode(tmp_path/'x') == oct(before) and (tmp_path/'x').read_text() == 'new'

@posix
def test_a_new_file_has_the_usual_permissions(tmp_path):
    from cleftgan_nb.files import atomic
    before = os.umask(0o027)
    try:
        with atomic(tmp_path/'x') as f: f.write(b'new')
    finally: os.umask(before)
    assert mode(tmp_path/'x') == '0o640'

@posix
def test_another_group_gets_nothing(tmp_path, monkeypatch):
    "Where the former group cannot be given"
    (tmp_path/'old').touch()
    os.chmod(tmp_path/'old', 0o640)
    (tmp_path/'new').touch()
    real = os.stat
    monkeypatch.setattr(files.os, 'stat', lambda p, **k: type('st', (),
                                                              dict(st_mode=real(p).st_mode, st_uid=real(p).st_uid,
                                                                   st_gid=77 if p == tmp_path/'old' else 78)))
    def no(*_): raise PermissionError
    monkeypatch.setattr(files.os, 'chown', no)
    as_before(tmp_path/'old', tmp_path/'new')
    monkeypatch.undo()
    assert mode(tmp_path/'new') == '0o600'

@posix
def test_openness(tmp_path):
    (tmp_path/'x').mkdir()
    (tmp_path/'x/a').touch()
    os.chmod(tmp_path/'x/a', 0o644)
    os.chmod(tmp_path/'x', 0o755)
    narrow(tmp_path/'x', 0o750)
    assert (mode(tmp_path/'x'), mode(tmp_path/'x/a')) == ('0o750', '0o640')
    assert oct(openness(tmp_path/'x/a')) == '0o750' and oct(openness(tmp_path/'x')) == '0o750'
    narrow(tmp_path/'x', 0o700)
    assert (mode(tmp_path/'x'), mode(tmp_path/'x/a')) == ('0o700', '0o600')

# ---- an account without a home folder

HOMELESS = '''
import pwd
def nobody(*_): raise KeyError
pwd.getpwuid = nobody
import os
for name in ('HOME', 'NUMBA_CACHE_DIR', 'TRITON_HOME', 'TRITON_CACHE_DIR'): os.environ.pop(name, None)
import numba
asked, numba.njit = [], lambda **how: asked.append(how['cache']) or (lambda f: f)
from cleftgan_nb.data import skin
from cleftgan_nb.files import has_home
assert asked and not any(asked) and not has_home('NUMBA_CACHE_DIR')
os.environ['NUMBA_CACHE_DIR'] = '/tmp'; assert has_home('NUMBA_CACHE_DIR')
try: import triton
except ImportError: pass
else:
    from cleftgan_nb.ops import triton_act
    print(triton.knobs.cache.dir)
'''

@posix
def test_without_a_home_no_machine_code_is_kept(tmp_path):
    "Numba and Triton would take, and run, what lies in a folder '~' where we are"
    assert has_home('NUMBA_CACHE_DIR')
    out = subprocess.run([sys.executable, '-c', HOMELESS], cwd=tmp_path, env=ENV, check=True, stdout=subprocess.PIPE,
                         text=True).stdout.strip()
    assert not out or os.path.isabs(out) and not os.path.exists(out)
    assert names(tmp_path) == []


@posix
@pytest.mark.parametrize('source, made', [(0o600, 0o600), (0o640, 0o660), (0o604, 0o604), (0o644, 0o664),
                                          (0o700, 0o600), (None, 0o664)])
def test_what_is_made_is_as_private_as_its_sources(tmp_path, source, made):
    "Who may not read a source may not read the result; otherwise it is no less open than usual"
    (tmp_path/'open').touch()
    (tmp_path/'open').chmod(0o644)
    if source == 0o700: (tmp_path/'x').mkdir(source)
    elif source:
        (tmp_path/'x').touch()
        (tmp_path/'x').chmod(source)
    before = os.umask(0o002)
    try:
        with as_private_as(tmp_path/'open', tmp_path/'x'): (tmp_path/'new').touch()
        assert os.umask(0o002) == 0o002 and mode(tmp_path/'new') == oct(made)
    finally: os.umask(before)


def test_home_is_expanded_and_nothing_else(tmp_path, monkeypatch):
    "In every function that takes a path; ./~ and $HOME are names"
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = [files.as_path(o) for o in ('~/a', Path('~/a'), './~', '$HOME/a', '~nobody-of-this-name/a')]
    assert found == [tmp_path/'a', tmp_path/'a', tmp_path/'~', Path('$HOME/a'), tmp_path/'~nobody-of-this-name/a']
    assert files.as_path(found[2]) == found[2]
    with files.atomic('~/b') as f: f.write(b'x')
    assert names(tmp_path) == ['b']


def test_a_place_is_tried_before_the_work_begins(tmp_path, monkeypatch):
    "Really tried: root may write everywhere, except where nobody can"
    assert files.writable(tmp_path/'x') == tmp_path/'x' and names(tmp_path) == []
    with pytest.raises(FileNotFoundError, match='make it first'): files.writable(tmp_path/'no'/'x')
    def full(*_): raise OSError(errno.EROFS, 'Read-only file system')
    monkeypatch.setattr(files.os, 'mkdir', full)
    with pytest.raises(OSError, match=f'Read-only file system: .{tmp_path}/x'): files.writable(tmp_path/'x')
