"""Figures in README.md and docs are those of the results that they are copied from."""

import json
import re

import pytest

from benchmarks.peers.table import PEERS, best_of, best_peer, markdown, milliseconds, ours, ratio
from tests.test_docs import ROOT

RESULTS = ROOT / "benchmarks" / "results"
README, REPRODUCTION, BENCHMARKS = "README.md", "docs/reproduction.md", "docs/benchmarks.md"
SPREAD = re.compile(r" ± [\d.]+K?")  # which is left out of some columns


def tables(path):
    """The tables of a page: first column of the head -> rows, the head too, as lists of cells."""
    found, rows = {}, []
    for line in (ROOT / path).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            rows = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not rows:
            found.setdefault(cells[0], rows)
        if not set(line) <= set("|-: "):
            rows.append(cells)
    return found


def test_peers():
    rows = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["rows"]
    assert (RESULTS / "peers.md").read_text(encoding="utf-8").strip() == markdown(rows).strip()
    alone = [row for row in rows if row["threads"] == 1 and row["isa"] == "native"]
    by_key = {(row["model"], row["variant"], row["batch"]): row for row in alone}
    _, *copied = tables(README)["network, 90 % zeros"]
    assert copied
    for name, batch, *cells in copied:
        model, _, structure = name.partition("-")
        row = by_key[model, "-".join(filter(None, ("90", structure))), int(batch)]
        best, dense = best_peer(row), best_of(row, "onnxruntime")
        assert cells == [
            milliseconds(ours(row)["median_ms"]),
            f"{milliseconds(best['median_ms'])}, {PEERS[best['engine']]}",
            f"{ratio(row, best)[0]:.2f}x",
            milliseconds(dense["median_ms"]),
            f"{ratio(row, dense)[0]:.2f}x",
        ], name


def test_networks_of_the_paper_in_the_readme():
    pages = tables(REPRODUCTION)
    head, *copied = tables(README)["network"]
    assert head == ["network", "paper", "lwc, test error and weights", "lwc, fewer still", "smallest file"]
    for network, paper, *ours_ in copied:
        rows = {cells[0]: cells[1:] for cells in pages[network]}
        error, _, rate, *_ = rows.pop("paper, pruned")
        assert paper == f"{error} %, {rate} fewer"
        known = set()
        for label, (error, _, fewer, _, smaller) in rows.items():
            if label not in (network, "paper, dense"):
                known |= {
                    (error.split()[0], int(float(t[:-1])), w) for t, w in ((fewer, "fewer"), (smaller, "smaller"))
                }
        for cell in ours_:
            error, times, what = re.fullmatch(r"([\d.]+) %, (\d+)x (fewer|smaller)", cell).groups()
            assert (error, int(times), what) in known, cell


@pytest.mark.parametrize(
    ("network", "folder"), [("LeNet-300-100", "lenet-300-100-mnist"), ("LeNet-5", "lenet-5-mnist")]
)
def test_reproduction(network, folder):
    results = tables(RESULTS / "reproduce" / folder / "report.md")[""]
    measured = {}
    for label, error, _, _, weights, *others, _ in results[1:]:
        rate, packed, smaller = (SPREAD.sub("", cell) for cell in others)
        measured[label.removeprefix("lwc, ")] = [error, weights, rate if rate != "1.0x" else "1x", packed, smaller]
    copied = [row for row in tables(REPRODUCTION)[network][1:] if not row[0].startswith("paper")]
    assert copied
    for label, *cells in copied:
        assert cells == measured[label], label


def test_techniques():
    results = tables(RESULTS / "techniques-lenet-300-100.md")["technique"]
    copied = tables(REPRODUCTION)["technique"]
    assert len(copied) > 1
    assert all(row in results for row in copied)


def test_recurrent():
    results = tables(RESULTS / "recurrent.md")["layer"]
    copied = tables(BENCHMARKS)["layer"]
    assert len(copied) > 1
    assert all(row in results for row in copied)


def test_inner_loops():
    loops = {tuple(row[:2]): row for row in tables(RESULTS / "arm-inner-loops.md")["core"]}
    _, *copied = tables(BENCHMARKS)["core"]
    assert copied
    for core, limit, *cells in copied:
        name = core.lower().replace(" ", "-")
        blocks, single, connected = (
            loops[name, loop] for loop in ("4x1 blocks, 1x1", "single weights, 1x1", "4x1 blocks, fully connected")
        )
        assert [limit, *cells] == [blocks[4], blocks[3], blocks[6], single[3], single[6], connected[3]], core


def test_instructions():
    results = {(row[0], row[2]): row[3:] for row in tables(RESULTS / "arm-instructions.md")["network"]}
    _, *copied = tables(BENCHMARKS)["network"]
    assert copied
    for network, zeros, *cells in copied:
        row = results[
            network.lower().replace("-", "").replace("v2", "_v2"), zeros.split()[0].replace("single", "element")
        ]
        missed = ", missed" if float(row[2]) > float(row[3]) else ""
        assert cells == [*row[:3], row[3] + missed], network


def test_estimates():
    within = re.search(
        r"Within (\d+ %): (\d+) of (\d+)", (RESULTS / "estimate.md").read_text(encoding="utf-8")
    ).groups()
    copied = re.search(r"(\d+) of (\d+) latencies are within (\d+ %)", (ROOT / "docs/estimate.md").read_text("utf-8"))
    assert copied.groups() == (within[1], within[2], within[0])
