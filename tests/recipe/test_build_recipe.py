import pytest

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.build import BuildRecipe, GateOptions, TargetGates, TargetOptions
from lwc_compiler.recipe.options import LowerOptions, PruneOptions, Recipe, build


def test_a_target_says_what_lower_and_gates_do_not():
    recipe = BuildRecipe(
        model="net.onnx",
        prune=PruneOptions(sparsity=0.9),
        lower=LowerOptions(batch=4, threads=2),
        gates=GateOptions(max_bytes=100, min_speedup=2.0, min_metric=0.9),
        val_data="val.npz",
        targets={
            "host": TargetOptions(threads=1, gates=TargetGates(max_bytes=50)),
            "board": TargetOptions(target="cortex-m7", batch=1),
        },
    )
    targets = recipe.each_target()
    assert list(targets) == ["host", "board"]
    host, board = targets.values()
    assert (host.target, host.batch, host.threads) == ("host", 4, 1)
    assert (board.target, board.batch, board.threads) == ("cortex-m7", 1, 2)
    assert host.gates == TargetGates(max_bytes=50, min_speedup=2.0)
    assert board.gates == TargetGates(max_bytes=100, min_speedup=2.0)
    alone = recipe.for_target(host)
    assert alone.lower == LowerOptions(target="host", batch=4, threads=1)
    assert alone.prune == recipe.prune


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PruneOptions(sparsity=2), r"^PruneOptions: sparsity: Input should be less than 1, found 2$"),
        (lambda: LowerOptions(tread=1), r"^LowerOptions: tread: there is no such key; the closest is 'threads'$"),
        (lambda: Recipe(lower={"threads": 0}), r"^Recipe: lower.threads: .* greater than or equal to 1, found 0$"),
    ],
)
def test_a_bad_value_in_python_is_an_option_error(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_without_targets_it_is_the_one_of_lower():
    assert list(BuildRecipe(model="net.onnx").each_target()) == ["host"]
    (name, target), *rest = BuildRecipe(model="n", lower=LowerOptions(target="c", batch=2)).each_target().items()
    assert (name, target.target, target.batch, rest) == ("c", "c", 2, [])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lower": {"target": "c"}, "targets": {"host": {}}}, "'lower.target' is for a recipe without 'targets'"),
        ({"gates": {"max_packed_bytes": 9}}, "gate 'max_packed_bytes' needs 'pack'"),
        ({"gates": {"max_accuracy_drop": 0.1}}, "gate 'max_accuracy_drop' needs 'val_data'"),
        ({"gates": {"max_disagreement": 0.1}}, "gate 'max_disagreement' needs 'val_data'"),
        ({"gates": {"max_bytes_regression": 1}}, "gates: a limit on a regression needs 'baseline'"),
        ({"gates": {"baseline": "report.json"}}, "gates: 'baseline' is compared with nothing"),
        ({"gates": {"baseline": "r", "max_accuracy_regression": 1}}, "gate 'max_accuracy_regression' needs 'val_data'"),
        ({"gates": {"min_metric": 1.5}}, "gates.min_metric: .* found 1.5"),
        ({"targets": {"board": {"via": "qemu"}}}, "targets.board.via: .* found 'qemu'"),
        ({"outputs": {"reports": ["pdf"]}}, "outputs.reports.0: .* found 'pdf'"),
    ],
)
def test_what_contradicts_itself_is_refused(values, message):
    with pytest.raises(OptionError, match=message):
        build(BuildRecipe, {"model": "net.onnx", **values})
