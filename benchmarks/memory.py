"""Growth of memory in one search step against the textbook form, each in a process of its own.

    python benchmarks/memory.py [--short] [--json]
    python benchmarks/memory.py --table    # batch size against peak memory for each space, with and without checkpoints

On a CPU it is the growth of the largest resident memory over what was resident before the step, after a step on two
pictures that sets everything up; on a GPU it is what the allocator reports. Linux only.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from compare import DEVICE, Problem, Result, arguments, show


def resident(name: str) -> float:
    """Returns a line of the kernel's account of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel does not tell {name}")


def growth(who: str, space: str, num_cells: int, channels: int, size: int, batch: int, checkpoint: bool) -> float:
    """Returns the growth in MiB of one step of one contestant in this process."""
    problem = Problem(space, num_cells, channels, size, batch)
    problem.net.checkpoint_cells = checkpoint
    step = problem.product_step if who == "product" else problem.textbook_step
    train, val = problem.train, problem.val
    problem.train, problem.val = ((images[:2], labels[:2]) for images, labels in (train, val))
    step()
    problem.train, problem.val = train, val
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def measure(*what: object) -> float:
    """Returns `growth` from a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(what)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        torch.set_num_threads(2)
        print(growth(*json.loads(sys.argv[2])))
        raise SystemExit(0)
    if sys.argv[1:2] == ["--table"]:
        print("| space | cells | channels | pictures | MiB | MiB with checkpoint_cells |\n|---|---|---|---|---|---|")
        for space, num_cells in (("nasbench201", 15), ("darts", 8), ("s1", 8), ("s2", 8), ("s3", 8), ("s4", 8)):
            for batch in (32, 64, 128):
                plain, checked = (measure("product", space, num_cells, 16, 32, batch, flag) for flag in (False, True))
                print(f"| {space} | {num_cells} | 16 | {batch} | {plain:.0f} | {checked:.0f} |", flush=True)
        raise SystemExit(0)
    given = arguments(__doc__)
    results = []
    for space, num_cells in (("nasbench201", 3), ("darts", 3)) if given.short else (("nasbench201", 15), ("darts", 8)):
        size = (num_cells, 16, 32, 64, False)
        book, product = (measure(who, space, *size) for who in ("textbook", "product"))
        name = f"growth in MiB (not ms), {space}, {num_cells} cells, 16 channels, 64 pictures of 32x32"
        results.append(Result(name, book, product, book / product, book / product, book / product))
    show(results, given)
