"""A hook of MkDocs: the site has the repository's pages at their places, and references made from the code.

README.md is the home page and lies above `docs_dir`, as do examples and benchmarks that pages link. So the files of the
site are collected here, with paths relative to the repository; a link that leads somewhere on a code host does so here.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import lwc_compiler

# Pages, and what they link.
PATTERNS = (
    "*.md",
    "LICENSE",
    "Dockerfile",
    "action.yml",
    "benchmarks/*.c",
    "benchmarks/*.py",
    "benchmarks/**/*.md",
    "benchmarks/results/**/*.png",
    "benchmarks/results/**/*.svg",
    "docs/**/*.json",
    "docs/**/*.md",
    "docs/**/*.svg",
    "examples/**/*.*",
    "lwc_compiler/data/LICENSE-digits.txt",
    "lwc_compiler/runtime/c/runner.c",
    "templates/*",
)

COMMANDS = """# Commands

What `lwc COMMAND --help` prints, made from the code. [The command line](../docs/cli.md) has examples.

::: mkdocs-click
    :module: lwc_compiler.cli
    :command: cli
    :prog_name: lwc
    :depth: 1
    :style: table
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of `docs_dir` by those of the repository."""
    root = Path(config.config_file_path).parent
    site = Files([file for file in files if file.src_dir != config.docs_dir])
    for path in sorted({path for pattern in PATTERNS for path in root.glob(pattern) if path.is_file()}):
        if "__pycache__" not in path.parts:
            name = path.relative_to(root).as_posix()
            site.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    site.append(File.generated(config, "reference/commands.md", content=COMMANDS))
    site.append(File.generated(config, "reference/python.md", content=python_reference()))
    return site


def python_reference() -> str:
    """A page with the docstrings of all public names, by kind."""
    public = {name: getattr(lwc_compiler, name) for name in lwc_compiler.__all__ if not name.startswith("__")}
    classes = {name for name, value in public.items() if inspect.isclass(value)}
    errors = {name for name in classes if issubclass(public[name], Exception)}
    kinds = {
        "Functions": public.keys() - classes,
        "Options": {name for name in classes if name == "Recipe" or name.endswith("Options")},
        "Errors": errors,
    }
    kinds["Other classes"] = classes.difference(*kinds.values())
    page = ["# Python", "`import lwc_compiler as lwc` has these names; all others are not for use from outside."]
    for kind, names in kinds.items():
        page.append(f"## {kind}")
        page += [f"::: lwc_compiler.{name}" for name in sorted(names)]
    return "\n\n".join(page) + "\n"
