"""Shared by all benchmarks: times several runs in turn, so that a busy machine slows them alike.

A ratio is the median of the ratios of all rounds. Memory is the growth of the peak: of the CUDA
allocator, or of the process on a CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from terminaltables import AsciiTable

Run = Callable[[], object]


class Timings:
    """Times and peaks of memory of several runs.

    Args:
        seconds (dict[str, list[float]]): For each run, the seconds in each round.
        memory (dict[str, float]): For each run, the growth of its peak memory in MB.
    """

    def __init__(self, seconds: dict[str, list[float]], memory: dict[str, float]) -> None:
        self.seconds, self.memory = seconds, memory

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(next(iter(self.seconds.values())))

    def each(self, *names: str) -> list[float]:
        """For each round, the seconds of the named runs together."""
        return [sum(times) for times in zip(*(self.seconds[name] for name in names))]

    def median(self, *names: str) -> float:
        """Median seconds of the named runs together."""
        return statistics.median(self.each(*names))

    def ratio(self, name: str, *base: str) -> float:
        """Median ratio of a run to the runs ``base`` together."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.each(*base)))

    def share(self, name: str, less: list[str], base: list[str]) -> tuple[float, float]:
        """The excess of a run over the runs ``less``, in runs ``base``: median, standard error."""
        rounds = zip(self.seconds[name], self.each(*less), self.each(*base))
        shares = [(time - other) / floor for time, other, floor in rounds]
        middle = statistics.median(shares)
        spread = 1.4826 * statistics.median(abs(share - middle) for share in shares)
        return middle, 1.2533 * spread / len(shares) ** 0.5

    def table(self, title: str) -> str:
        """A table of all runs, compared with the first one."""
        base = next(iter(self.seconds))
        rows = [['', 'median s', 'fastest s', f'ratio to {base}', 'peak MB']]
        for name, times in self.seconds.items():
            row = [f'{self.median(name):.4f}', f'{min(times):.4f}', f'{self.ratio(name, base):.3f}']
            rows.append([name, *row, f'{self.memory[name]:.0f}'])
        return AsciiTable(rows, title).table


def measure(
    runs: dict[str, Run],
    device: str,
    rounds: int = 1,
    budget: float = 0,
    block: int = 1,
    warm_up: bool = True,
) -> Timings:
    """Times runs in turn; no run is always the first of a round. The first round measures memory, too.

    Args:
        runs (dict[str, Run]): The runs by name.
        device (str): The device, like 'cpu' or 'cuda:0'.
        rounds (int): The least number of rounds. Defaults to 1.
        budget (float): Rounds go on for this many seconds. Defaults to 0.
        block (int): Repeats of a run within a round, on a GPU. Defaults to 1.
        warm_up (bool): Whether to run each one once before. Defaults to True.
    """
    if warm_up:
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}

    def time_run(name: str) -> None:
        times[name].append(seconds(runs[name], device, block))

    names, stop = list(runs), time.perf_counter() + budget
    memory = {name: peak_memory(partial(time_run, name), device) for name in names}
    gc.disable()
    while len(times[names[0]]) < rounds or time.perf_counter() < stop:
        names.append(names.pop(0))
        for name in names:
            time_run(name)
    gc.enable()
    return Timings(times, memory)


def seconds(run: Run, device: str, block: int = 1) -> float:
    """Seconds of a run: by the clock on a CPU, by CUDA events over ``block`` repeats on a GPU."""
    if not device.startswith('cuda'):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(block):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / block


def peak_memory(run: Run, device: str) -> float:
    """How much a run raises the memory in use, in MB; NaN if the system does not tell it."""
    gc.collect()
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    clear = Path('/proc/self/clear_refs')
    if not clear.exists():
        run()
        return float('nan')
    ctypes.CDLL(None).malloc_trim(0)
    clear.write_text('5')  # sets the peak to what is in use now
    before = _status('VmRSS')
    run()
    return (_status('VmHWM') - before) / 1e6


def _status(key: str) -> float:
    """A number of bytes from Linux's status of this process."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with ``--device``."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return found


def machine(device: str) -> str:
    """The machine in words, for the first line of a benchmark."""
    name = torch.cuda.get_device_name() if device.startswith('cuda') else 'CPU'
    return f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}'
