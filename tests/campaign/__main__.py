"""Runs drivers one after the other, and writes down what each returns."""

import faulthandler
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path


def main(found: str, share: str, seed: str, limit: str, folder: str, *names: str) -> None:
    """Runs the drivers."""
    os.setpgrp()  # so that what drivers start can be ended with them
    sys.path.insert(0, str(Path(folder).parent))
    tempfile.tempdir = os.environ['TMPDIR']  # whatever the process has asked for before
    for name in names:
        # Stops what hangs in C code, too, and shows where
        faulthandler.dump_traceback_later(float(limit), exit=True)
        print(f'{name}:', flush=True)
        rows = importlib.import_module(f'{Path(folder).name}.{name}').drive(float(share), int(seed))
        faulthandler.cancel_dump_traceback_later()
        with open(found, 'a') as file:
            file.write(f'{json.dumps(dict(rows=rows))}\n')


if __name__ == '__main__':  # processes that drivers start read this file again
    main(*sys.argv[1:])
