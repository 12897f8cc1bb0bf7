"""AlexNet and VGG-16 with the paper's densities (tables 4 and 5): the whole path but for training.

The weights are random, and in every layer the share that the paper left is kept. That is enough for what tables 4 and 5
say of weights and FLOPs, for compaction, packing and machine code. It says nothing about accuracy: ImageNet is not at
hand, so the errors of table 1 are not measured. Act% is the paper's too; our FLOP% follows from it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import lwc_compiler as lwc
from lwc_compiler.errors import ArtifactError
from lwc_compiler.model import Model
from lwc_compiler.passes.sites import find_sites
from lwc_compiler.report.table import Activations, handed_on_tensors, layer_report, static_shapes
from lwc_compiler.reproduce import paper
from lwc_compiler.reproduce.networks import BUILDERS, he_normal
from lwc_compiler.reproduce.tables import Layer, Summary, TextTable, layer_table, layers_of, write_summary
from lwc_compiler.version import __version__

_SEED = 0
NOTE = (
    "Weights are random; their densities and Act% are the paper's, FLOP% follows from them. Accuracy was not measured: "
    "that takes ImageNet. Figures differ by one in the last digit where the paper truncates, or works with shares that "
    "it rounds only to print them."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Untrained:
    """What can be said of a network of the paper without its data.

    Attributes:
        network: its name in `paper.NETWORKS`.
        layers: rows as in the paper's table, the total last.
        dense_bytes: weights as float32.
        packed_bytes: size of the packed model; `lwc unpack` gives back the same bits.
        index_overhead: bytes of its indices / bytes of the kept weights as float32 (the paper has 15.6 % for AlexNet).
        library_bytes: size of the library.
        deviation: largest deviation of the library from ONNX Runtime / the output's scale.
    """

    network: str
    layers: tuple[Layer, ...]
    dense_bytes: int
    packed_bytes: int
    index_overhead: float
    library_bytes: int
    deviation: float


def reproduce_untrained(network: str, folder: Path) -> Untrained:
    """Prunes, compacts, packs and lowers a network of the paper with random weights.

    Args:
        network: a name of `paper.NETWORKS`.
        folder: gets `<network>.onnx`, the packed `<network>.lwcp`, the artifact `<network>.lwc`, `results.json` and
            `report.md`; its parent exists.

    Raises:
        LwcError: what the passes raise.
    """
    from lwc_compiler.packing import pack, save_packed, sizes_of

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot make {folder}: {error.strerror or error}") from error
    printed = paper.NETWORKS[network]
    logger.info("pruning %s with random weights to the densities of table %d", printed.title, printed.table)
    model = at_paper_densities(network, BUILDERS[network](he_normal(_SEED)))
    table = layer_report(model, paper_activations(network, model))
    logger.info("compacting and packing")
    small = lwc.compact(model)
    packed = pack(small)
    lwc.save(small, folder / f"{network}.onnx")
    save_packed(packed, folder / f"{network}.lwcp")
    logger.info("lowering")
    artifact = lwc.lower(small, folder / f"{network}.lwc", force=True)
    found = Untrained(
        network=network,
        layers=layers_of(table),
        dense_bytes=4 * table.total.weights,
        packed_bytes=len(packed),
        index_overhead=sum(size.coding.index_bytes for size in sizes_of(packed).tensors) / (4 * table.total.kept),
        library_bytes=artifact.library.stat().st_size,
        deviation=artifact.manifest.verification.worst,
    )
    write_summary(summary(found), folder)
    return found


def at_paper_densities(network: str, model: Model) -> Model:
    """The model with the share of each layer's weights kept that the paper kept; the largest ones."""
    return lwc.prune(model, lwc.PruneOptions(criterion="per-layer", densities=paper.NETWORKS[network].densities))


def paper_activations(network: str, model: Model) -> Activations:
    """The paper's Act% as if they had been measured; the network's own input counts as dense, as in the paper."""
    sites, shapes = find_sites(model.proto), static_shapes(model.proto)
    handed_on = handed_on_tensors(model.proto, sites)
    counts = {value.name: (size, size) for value in model.proto.graph.input for size in [math.prod(shapes[value.name])]}
    for site, row in zip(sites, paper.NETWORKS[network].layers, strict=True):
        tensor = handed_on[site.outputs[0]]
        size = math.prod(shapes[tensor])
        counts[tensor] = (round(row.activations.value / 100 * size), size)
    return Activations("the paper's", counts)


def summary(found: Untrained) -> Summary:
    """All of it: the rows of table 1, table 4 or 5, and sizes."""
    printed = paper.NETWORKS[found.network]
    tables = (_table_1(found), layer_table(printed, "random weights", [found.layers], NOTE), _sizes(found))
    figures = {"lwc": __version__, "accuracy": "not measured: ImageNet is not at hand", **asdict(found)}
    return Summary(f"{printed.title} with the paper's densities", figures, tables)


def _table_1(found: Untrained) -> TextTable:
    printed, total = paper.NETWORKS[found.network], found.layers[-1]
    kept = total.kept * total.weights
    rows = (
        ("paper, dense", printed.error.text, printed.parameters.text, "-"),
        ("paper, pruned", printed.pruned_error.text, printed.pruned_parameters.text, f"{printed.rate.text}x"),
        ("lwc, dense", "not measured", printed.parameters.like(total.weights), "-"),
        ("lwc, pruned", "not measured", printed.pruned_parameters.like(kept), f"{total.weights / kept:.1f}x"),
    )
    note = "ImageNet is not at hand: errors are not measured, and nothing was trained."
    return TextTable(f"Table 1: {printed.title}", ("", "top-1 error %", "weights", "rate"), rows, note)


def _sizes(found: Untrained) -> TextTable:
    sizes = {"dense weights": found.dense_bytes, "packed": found.packed_bytes, "library": found.library_bytes}
    rows = tuple((what, f"{size:,}", f"{found.dense_bytes / size:.1f}x") for what, size in sizes.items())
    note = (
        f"Values are float32; indices take {100 * found.index_overhead:.1f} % of their bytes (paper, AlexNet: 15.6 %). "
        f"The library's outputs differ from ONNX Runtime's by {found.deviation:.1e} of their scale."
    )
    return TextTable("Sizes", ("", "bytes", "smaller"), rows, note)
