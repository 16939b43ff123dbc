"""The tables of docs/scaling.md, from a record of scaling.py; dask is not needed to write them."""

from statistics import median

import numpy as np

N_FEATURES, N_CLASSES, CHUNKS = 128, 10, 4
WORKERS = (1, 2, 4)
# A step of SGD, and links that the tables think of.
STEP_ROWS, HOLDERS, GIGABITS, CHUNKS_A_HOLDER = 200, (2, 8, 64), (10, 100), 4
PARAMS = 4 * N_FEATURES * N_CLASSES  # bytes


def constants(record):
    """Return the seconds of a row, of a call, and of each further holder in a call."""
    largest = max(row["samples"] for row in record["rows"])
    per_row = min(median(r["times_s"]["here"]) for r in record["rows"] if r["samples"] == largest)
    per_row /= largest
    workers = np.array([int(n) for n in record["empty_call_s"]], float)
    calls = np.array([median(times) for times in record["empty_call_s"].values()])
    per_holder, call = np.polyfit(workers, calls, 1)
    return per_row, max(call, 0.0), max(per_holder, 0.0)


def predicted(record, n_rows, n_workers, link=None):
    """Return the seconds of an evaluation that the model says."""
    per_row, call, per_holder = constants(record)
    cores = record["environment"]["cpu_count"]
    on_way = 0.0
    if link:
        on_way = 2 * link["delay_s"] + 8 * (n_workers + CHUNKS) * PARAMS / link["bits_per_s"]
    return call + per_holder * n_workers + on_way + n_rows * per_row / min(n_workers, cores)


def milliseconds(seconds):
    return f"{1e3 * seconds:.3g} ms"


def tables(record):
    """Return the tables of docs/scaling.md, in Markdown."""
    found, on_link = {}, {}
    for row in record["rows"]:
        if "trims" not in row:
            of_rows = (on_link if "link" in row else found).setdefault(row["samples"], {})
            of_rows[row["workers"]] = row["times_s"]
    link = next((row["link"] for row in record["rows"] if "link" in row), None)
    head = "| samples | one process | " + " | ".join(f"{n} workers | model" for n in WORKERS)
    lines = []
    for by_rows, over in ((found, None), (on_link, link)):
        if by_rows is on_link and link is not None:
            megabits = link["bits_per_s"] / 1e6
            lines += ["", f"Over links of {1e3 * link['delay_s']:g} ms and {megabits:g} Mb/s:", ""]
        if by_rows:
            lines += [f"{head} |", "|---:" * (2 + 2 * len(WORKERS)) + "|"]
        for n_rows, by_workers in by_rows.items():
            cells = [f"{n_rows:,}", milliseconds(median(by_workers[1]["here"]))]
            for n in WORKERS:
                cells.append(milliseconds(median(by_workers[n]["workers"])))
                cells.append(milliseconds(predicted(record, n_rows, n, over)))
            lines.append("| " + " | ".join(cells) + " |")
    per_row, call, per_holder = constants(record)
    empty = {n: median(times) for n, times in record["empty_call_s"].items()}
    memory = record["worker_memory_bytes"]
    trims = next(row for row in record["rows"] if "trims" in row)
    slower = (
        median(times["workers"]) / median(times["here"])
        for times in (trims["times_s"], found[trims["samples"]][1])
    )
    lines += [
        "",
        "| constant | measured |",
        "|---|---:|",
        *(f"| empty call, {n} workers | {milliseconds(s)} |" for n, s in sorted(empty.items())),
        f"| a call, a + b per holder | {milliseconds(call)} + {milliseconds(per_holder)} |",
        f"| a row of {N_FEATURES} bytes, loss and gradient, one thread | {1e9 * per_row:.3g} ns |",
        f"| memory of a worker beside its {memory['held'] >> 20} MiB | "
        f"{(memory['resident'] - memory['held']) >> 20} MiB |",
        f"| {trims['samples']:,} rows on a worker beside here, with dask's own malloc setting, and "
        "with the recipe's | " + " and ".join(f"{ratio:.2f} times" for ratio in slower) + " |",
        "",
        "| holders | rows from which they pay | of a step of SGD, the network's share | "
        + " | ".join(f"parameters over {g} Gb/s" for g in GIGABITS) + " |",
        "|---:" * (3 + len(GIGABITS)) + "|",
    ]  # fmt: skip
    for n in HOLDERS:
        of_call = call + per_holder * n
        pays = of_call / (per_row * (1 - 1 / n))
        share = of_call / (of_call + STEP_ROWS * per_row / n)
        links = (milliseconds((1 + CHUNKS_A_HOLDER) * n * PARAMS * 8 / (g * 1e9)) for g in GIGABITS)
        lines.append(f"| {n} | {pays:,.0f} | {share:.1%} | " + " | ".join(links) + " |")
    return "\n".join(lines) + "\n"
