import json
import re
from dataclasses import replace

from markdown_it import MarkdownIt

from lwc_compiler.kernels.kernel import Trial
from lwc_compiler.report.document import to_json
from lwc_compiler.report.markdown import to_markdown
from lwc_compiler.report.render import memory
from lwc_compiler.report.table import Activations, layer_report, with_lowered
from tests.report.conftest import CHECKED, NASTY, decision, iterated, lowered


def test_markdown(pruned):
    report = layer_report(pruned, Activations("two images", {"r": (72, 144), "f": (32, 128), "out": (10, 10)}))
    least = report.sizes["weights, relative index"]
    legend = (
        "Act%: non-zero activations a layer hands on (two images). Weights%: weights kept. "
        "FLOP%: multiply-adds left when zero weights and zero inputs are left out."
    )
    assert to_markdown(report).splitlines() == [
        "# net",
        "",
        "| figure | value |  |",
        "| --- | ---: | --- |",
        "| weights kept | 12 % | 193 of 1.6K |",
        f"| weights, relative index | {memory(least)} | dense weights 6.27 KB |",
        "",
        "<details><summary>Layers (3)</summary>",
        "",
        "| layer | shape | weights | FLOP | Act% | Weights% | FLOP% | kept because |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
        "| stem&#124;0 | 4x1x3x3 | 36 | 2.59K | 50 | 100 | - | first layer (keep_first) |",
        "| conv | 8x4x3x3 | 288 | 9.22K | 25 | 10 | 5 |  |",
        "| fc | 128x10 | 1.28K | 2.56K | 100 | 10 | 2.5 |  |",
        "| total |  | 1.6K | 14.4K | 40 | 12 | - |  |",
        "",
        legend,
        "",
        "</details>",
        "",
        "<details><summary>Sizes</summary>",
        "",
        "| size | bytes |",
        "| --- | ---: |",
        "| weights, dense | 6,416 |",
        f"| weights, csr | {report.sizes['weights, csr']:,} |",
        f"| weights, relative index | {least:,} |",
        "",
        "</details>",
    ]


def test_markdown_tells_of_rounds(pruned):
    report = layer_report(replace(pruned, provenance=(*pruned.provenance, iterated())))
    lines = to_markdown(report).splitlines()
    columns = "round | stage | Weights% | times fewer | accuracy before retraining | accuracy after"
    best = "1 (best) | fc | 40 | 2.5 | 50.00 % | 98.12 %"
    assert lines[lines.index("## Rounds") :] == [
        "## Rounds",
        "",
        f"| {columns} | held | best epoch | learning rate | dead connections |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
        f"| {best} | yes | 7 | 0.0001 | 1,234 |",
        "| 2 | all | 8 | 12.5 | 50.00 % | 90.00 % | no | 7 | 0.0001 | 1,234 |",
        "",
        "The dense model's accuracy is 98.36 %.",
    ]
    assert json.loads(json.dumps(to_json(report)))["passes"][-1] == iterated()


def test_rounds_without_accuracy_and_without_a_limit(pruned):
    entry = iterated("loss", held=None, metric=0.012345, density=0.0, metric_pruned=None)
    text = to_markdown(layer_report(replace(pruned, provenance=(entry,))))
    assert "| loss before retraining | loss after |" in text
    assert "| 2 | all | 0 | - | - | 0.01235 | - |" in text
    assert text.endswith("The dense model's loss is 0.9836.\n")


def test_rounds_of_which_none_holds_are_said_to_be(pruned):
    text = to_markdown(layer_report(replace(pruned, provenance=({**iterated(), "best_round": 0},))))
    assert "best)" not in text
    assert text.endswith("is 98.36 %. No round holds it: the model was left as it was.\n")


def test_markdown_has_what_each_layer_was_chosen_from(pruned):
    decisions = (
        decision("w1", "stem|0", "A<B", Trial("dense 4|6", 12345.6, None)),
        decision("w2", "conv", "measured fastest", Trial("csr 2x3", 9000.0, 1.25e-6), Trial("dense", 8000.0, 2e-3)),
        decision("w3", "fc", "the only one"),
    )
    lines = to_markdown(with_lowered(layer_report(pruned), lowered(*decisions), CHECKED)).splitlines()
    assert lines[lines.index("## Kernels compared") :] == [
        "## Kernels compared",
        "",
        "<details><summary>stem&#124;0: A&#60;B</summary>",
        "",
        "| format and cut | predicted, cycles | measured, ms |",
        "| --- | ---: | ---: |",
        "| dense 4&#124;6 | 12,346 | - |",
        "",
        "</details>",
        "",
        "<details><summary>conv: measured fastest</summary>",
        "",
        "| format and cut | predicted, cycles | measured, ms |",
        "| --- | ---: | ---: |",
        "| csr 2x3 | 9,000 | 0.00125 |",
        "| dense | 8,000 | 2 |",
        "",
        "</details>",
    ]


def test_what_decides_comes_first(whole):
    lines = to_markdown(whole).splitlines()
    assert lines[2] == "Gates: 1 failed, 1 warned, 1 skipped, 1 passed"
    assert [line.split(" | ")[:5] for line in lines[6:10]] == [
        ["| ❌ failed", "max_bytes", "host", "2,000 bytes", "1,234 bytes"],
        ["| ⚠️ warned", "min_speedup", "host", "4x", "5x ± 1.5x"],
        ["| ⏭️ skipped", "max_latency_ms", "cortex-m4.x", "2000 ms", "-"],
        ["| ✅ passed", "min_metric", "", "0.9", "0.9812"],
    ]
    assert "| different | 1.25 % | of 320 predictions, from the original model's |" in lines
    speed = "0.02 ± 0.001 | 5.00x ± 0.2x | than ONNX Runtime 1.19.2, 2 threads, some CPU"
    assert f"| host | x86-64-v3 | 23,456 | - | - | {speed} |" in lines
    assert "| board&#124;1 | cortex-m4 | 0 | 4,096 | 2,048 | - | - | no clock here |" in lines
    assert "| accuracy | 98.12 % | before pruning 98.36 % |" in lines
    assert "| time of a run | 0.02 ms | 5.00x as fast as ONNX Runtime 1.19.2 (0.1 ms) |" in lines


def test_names_are_no_markup(whole, refused):
    """Read by a parser of Markdown, names are the text that they are, and open nothing."""
    for report in (whole, refused):
        tokens = MarkdownIt("commonmark").enable("table").parse(to_markdown(report))
        inline = [token for token in tokens if token.type == "inline"]
        assert {child.type for token in inline for child in token.children} == {"text"}
        texts = ["".join(child.content for child in token.children) for token in inline]
        assert " ".join(NASTY.split()) in texts
        for token in tokens:
            if token.type == "html_block":
                assert "<" not in re.sub(r"</?(details|summary)>", "", token.content)


def test_refused_nodes_are_named(refused):
    text = to_markdown(refused)
    assert "❌ lwc cannot compile this model." in text
    assert "| my.Op | the operator is not handled |" in text
    assert "| - | - | 'x' is a sequence |" in text
    assert "Layers" not in text
