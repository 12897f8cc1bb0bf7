"""The memory that a static library takes, read from its object files."""

from lwc_compiler.codegen.footprint import footprint
from lwc_compiler.codegen.link import compile_objects, find_compiler, make_archive
from lwc_compiler.targets import find_target

SOURCE = b"""
const char constants[1000] = {1};
char zeros[2000];
char data[300] = {1};
int code(void) { return 1; }
"""


def archived(compiler, files):
    return make_archive(compiler, compile_objects(compiler, files))


def test_every_kind_of_section_counts_where_it_lies():
    compiler = find_compiler(find_target("cortex-m4"))
    one = footprint(archived(compiler, {"one.c": SOURCE}))
    assert (one.data, one.zeros) == (300, 2000)
    assert 1000 <= one.constants < 1064
    assert 4 <= one.code < 64
    assert one.flash == one.code + one.constants + 300
    assert one.static_ram == 2300


def test_all_members_of_an_archive_count():
    compiler = find_compiler(find_target("rv32imafc"))
    one = footprint(archived(compiler, {"one.c": SOURCE}))
    two = footprint(archived(compiler, {"one.c": SOURCE, "two.c": SOURCE.replace(b"constants[1000]", b"c[7]")}))
    assert two.code == 2 * one.code
    assert 7 <= two.constants - one.constants < 64
