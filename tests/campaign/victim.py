"""Runs a tool and kills itself at the n-th change of a file below a folder, or after some seconds.

Usage: victim.py FOLDER EVENT SECONDS TOOL [arguments]. With EVENT 0 and SECONDS 0 it lives, and writes
the number of changes to FOLDER.events. No file can have more than MOST_BYTES of the environment.
"""

import atexit
import os
import resource
import runpy
import signal
import sys
import threading
from pathlib import Path

folder, event, seconds, tool, *arguments = sys.argv[1:]
folder, event, seconds = os.path.realpath(folder), int(event), float(seconds)
count = 0


def die() -> None:
    """Ends as a killed job does."""
    os.kill(os.getpid(), signal.SIGKILL)


def watch(name: str, args: tuple) -> None:
    """Counts what changes files; the audit event comes before the change."""
    global count
    changes = name in ('os.rename', 'os.remove', 'os.mkdir', 'os.truncate')
    if name == 'open' and isinstance(args[2], int):
        changes = args[2] & (os.O_WRONLY | os.O_RDWR)
    if changes and str(args[0]).startswith(folder):
        count += 1
        if count == event:
            die()


if most := int(os.environ.get('MOST_BYTES', 0)):  # as on a full disk, a write fails
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
if seconds:
    threading.Timer(seconds, die).start()
sys.addaudithook(watch)
sys.argv = [tool, *arguments]
try:
    runpy.run_path(tool, run_name='__main__')
finally:
    if not event and not seconds:
        Path(f'{folder}.events').write_text(str(count))
atexit._run_exitfuncs()
os._exit(0)
