"""The action, the GitLab component, the pre-commit hook and the Dockerfile do what they say: their commands are run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import onnx
import pytest
import yaml

from lwc_compiler.recipe.file import tomllib

ROOT = Path(__file__).resolve().parent.parent
RECIPE = 'model = "mlp.onnx"\n[prune]\nsparsity = 0.5\n[lower]\ntarget = "c"\n'
PASSES, FAILS = "[gates]\nmax_bytes = 1_000_000\n", "[gates]\nmax_bytes = 1\n"
SIZE_GATE = 23


@pytest.fixture
def project(mlp, tmp_path):
    """A checkout with a model and a recipe, and what a runner has beside it."""
    (tmp_path / "recipe.toml").write_text(RECIPE + PASSES)
    for name in ("temporary", "bin", "installed"):
        (tmp_path / name).mkdir()
    # Here packages come from no index: pip builds and installs lwc alone.
    offline = f'--no-deps --no-build-isolation --no-index --target "{tmp_path}/installed"'
    program(tmp_path / "bin" / "python", f'exec "{sys.executable}" "$@" {offline}')
    program(tmp_path / "bin" / "lwc", f'exec "{sys.executable}" -m lwc_compiler "$@"')
    return tmp_path


def program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def bash(script, project, **variables):
    """Runs a script the way GitHub and GitLab do."""
    environment = os.environ | {"PATH": f"{project}/bin:{os.environ['PATH']}", "TMPDIR": f"{project}/temporary"}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=project,
        env=environment | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
    )


def assert_installed(project):
    """What pip installed is the whole package: it runs from there."""
    command = [sys.executable, "-c", "import lwc_compiler.cli as cli; print(cli.__file__); cli.main(['--help'])"]
    environment = os.environ | {"PYTHONPATH": f"{project}/installed"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{project}/installed/lwc_compiler/cli.py\n")
    assert (project / "installed" / "lwc_compiler" / "runtime" / "c" / "runtime.c").is_file()
    assert (project / "installed" / "bin" / "lwc").is_file()


# GitHub


ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


class Runner:
    """Runs the `run` steps of the action as GitHub's runner does, with these inputs."""

    def __init__(self, project, **inputs):
        self.project, self.outputs, self.log = project, {}, ""
        self.files = {name: project / "temporary" / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
        self.context = {
            "runner.temp": str(project / "temporary"),
            "github.action_path": str(ROOT),
            **{f"inputs.{name}": entry["default"] for name, entry in ACTION["inputs"].items()},
            **{f"inputs.{name}": value for name, value in inputs.items()},
        }

    def step(self, name):
        (step,) = (step for step in ACTION["runs"]["steps"] if step.get("name") == name)
        assert "${{" not in step["run"]  # what users type reaches the shell in variables alone
        variables = {key: self.evaluated(text) for key, text in step["env"].items()}
        for file in self.files.values():
            file.write_text("")
        done = bash(step["run"], self.project, **variables, **self.files, RUNNER_TEMP=self.context["runner.temp"])
        lines = self.files["GITHUB_OUTPUT"].read_text().splitlines()
        self.outputs = dict(line.split("=", 1) for line in lines)
        return done

    def evaluated(self, text):
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda match: self.context[match[1]], text)

    def run(self, number):
        """All steps in their order, the way a run with this number does them; whether none failed."""
        self.context |= {"runner.os": "Linux", "runner.arch": "X64"}
        self.context |= {"github.run_id": str(number), "github.run_attempt": "1"}
        good = True
        for step in ACTION["runs"]["steps"]:
            if not self.wanted(step.get("if", "success()"), good):
                continue
            if "run" in step:
                done = self.step(step["name"])
                self.log += done.stderr
                good = good and done.returncode == 0
            else:
                inputs = {name: self.evaluated(text) for name, text in step["with"].items()}
                outputs = self.used(step["uses"].partition("@")[0], inputs)
                self.context |= {f"steps.{step['id']}.outputs.{name}": text for name, text in outputs.items()}
        return good

    def wanted(self, condition, good):
        _, always, text = condition.removeprefix("${{ ").removesuffix(" }}").rpartition("always() && ")
        if text == "success()":
            return good
        name, value = re.fullmatch(r"([\w.-]+) == '(\w+)'", text).groups()
        return (good or bool(always)) and self.context[name] == value

    def used(self, action, inputs):
        """What other actions do, as far as it matters here."""
        stored = self.project / "stored"
        if action == "actions/setup-python":
            assert re.fullmatch(r"3\.1[0-2]", inputs["python-version"])
            return {}
        if action == "actions/cache/restore":
            keys = [inputs["key"], *inputs["restore-keys"].splitlines()]
            found = [path for key in keys for path in sorted(stored.glob("*"))[::-1] if path.name.startswith(key)]
            if found:
                shutil.copytree(found[0], inputs["path"])
            return {"cache-primary-key": inputs["key"]}
        assert action == "actions/cache/save"
        shutil.copytree(inputs["path"], stored / inputs["key"])
        return {}


def test_the_action_has_what_github_asks_for():
    assert ACTION["runs"]["using"] == "composite"
    assert ACTION["name"]
    assert ACTION["description"]
    for entry in ACTION["inputs"].values():
        assert entry["description"]
        assert isinstance(entry["default"], str)
    for step in ACTION["runs"]["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert ("run" in step) == (step.get("shell") == "bash")
    names = re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION["runs"]))
    assert set(names) == set(ACTION["inputs"])
    for output in ACTION["outputs"].values():
        step, name = re.fullmatch(r"\$\{\{ steps\.(\w+)\.outputs\.([\w-]+) \}\}", output["value"]).groups()
        (run,) = (each["run"] for each in ACTION["runs"]["steps"] if each.get("id") == step)
        assert f'echo "{name}=' in run


def test_the_action_installs_itself(project):
    runner = Runner(project)
    done = runner.step("install")
    assert done.returncode == 0, done.stderr
    assert_installed(project)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(runner.context["inputs.extras"].split(",")) <= set(extras)


def test_the_action_builds(project):
    runner = Runner(project)
    done = runner.step("build")
    assert done.returncode == 0, done.stderr
    assert runner.outputs == {"directory": "lwc-build", "exit-code": "0"}
    assert (project / "lwc-build" / "c.lwc" / "mlp.c").is_file()
    assert "max_bytes" in runner.files["GITHUB_STEP_SUMMARY"].read_text()


def test_runs_of_the_action_share_results_also_those_that_fail(project):
    program(project / "bin" / "python", "exit 0")  # lwc is installed
    (project / "recipe.toml").write_text(RECIPE + FAILS)
    for number in (1, 2):
        shutil.rmtree(project / "temporary" / "lwc-cache", ignore_errors=True)  # each on a machine of its own
        runner = Runner(project)
        assert not runner.run(number)
        assert runner.outputs["exit-code"] == str(SIZE_GATE)
        assert ("compiled before from the same model" in runner.log) == (number == 2)
    assert [path.name for path in sorted((project / "stored").iterdir())] == ["lwc-Linux-X64-1-1", "lwc-Linux-X64-2-1"]


def test_the_action_keeps_nothing_where_it_is_not_to(project):
    program(project / "bin" / "python", "exit 0")
    program(project / "bin" / "lwc", 'mkdir "$LWC_CACHE"')
    assert Runner(project, cache="false").run(1)
    assert not (project / "stored").exists()


def test_the_action_says_which_node_is_refused(project):
    (project / "recipe.toml").write_text(RECIPE.replace("mlp.onnx", "no.onnx"))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[N, 2] y) '
        "{ n = NonZero(x) y = Cast<to=1>(n) }"
    )
    onnx.save(model, project / "no.onnx")
    runner = Runner(project, sarif="refused.sarif")
    done = runner.step("build")
    assert done.returncode == int(runner.outputs["exit-code"]) > 0
    results = json.loads((project / "refused.sarif").read_text())["runs"][0]["results"]
    assert [result["message"]["text"] for result in results]


def test_inputs_of_the_action_are_options(project):
    program(project / "bin" / "lwc", 'printf "%s\\n" "$@"; exit 4')
    inputs = {"recipe": "a b.toml", "output": "$(touch x)", "allow-code": "true", "cache": "false", "timeout": "7"}
    inputs["sarif"] = "re fused.sarif"
    runner = Runner(project, **inputs)
    done = runner.step("build")
    options = ["--output", "$(touch x)", "--force", "--timeout", "7", "--allow-code", "--sarif", "re fused.sarif"]
    options += ["--no-cache", "--", "a b.toml"]
    assert (done.returncode, done.stdout.splitlines()) == (4, ["build", *options])
    assert runner.outputs == {"directory": "$(touch x)", "exit-code": "4"}
    assert not (project / "x").exists()


# GitLab


def gitlab_job(**inputs):
    """The job of the component with these inputs."""
    spec, _ = yaml.safe_load_all((ROOT / "templates" / "lwc.yml").read_text(encoding="utf-8"))
    text = (ROOT / "templates" / "lwc.yml").read_text(encoding="utf-8").partition("\n---\n")[2]
    values = {name: entry.get("default") for name, entry in spec["spec"]["inputs"].items()} | inputs
    used = set(re.findall(r"\$\[\[ inputs\.(\w+) \]\]", text))
    assert used == set(values)
    return yaml.safe_load(re.sub(r"\$\[\[ inputs\.(\w+) \]\]", lambda match: str(values[match[1]]), text))["lwc"]


def run_gitlab(job, project):
    variables = {name: value.replace("$CI_PROJECT_DIR", str(project)) for name, value in job["variables"].items()}
    return bash("\n".join(job["script"]), project, **variables)


def test_the_gitlab_job_builds_and_fails_with_the_gate(project):
    program(project / "bin" / "python", 'echo "$@"')
    job = gitlab_job(package="lwc-compiler[zig] @ git+https://example.org/lwc", timeout=600)
    assert (job["stage"], job["image"]) == ("test", "python:3.12")
    (project / "recipe.toml").write_text(RECIPE + FAILS)
    done = run_gitlab(job, project)
    assert done.returncode == SIZE_GATE, done.stderr
    install = "-m pip install --disable-pip-version-check --quiet lwc-compiler[zig] @ git+https://example.org/lwc"
    assert done.stdout.splitlines()[0] == install
    (results,) = job["artifacts"]["paths"]
    assert (project / results / "c.lwc" / "mlp.c").is_file()
    (cache,) = job["cache"]["paths"]
    assert list((project / cache / "results").iterdir())


def test_inputs_of_the_component_are_options(project):
    program(project / "bin" / "python", 'printf "%s\\n" "$@"')
    program(project / "bin" / "lwc", 'printf "%s\\n" "$@"; exit 4')
    inputs = {"package": "a b", "recipe": "$(touch x)", "options": "--no-cache --allow-code", "output": "c d"}
    done = run_gitlab(gitlab_job(**inputs), project)
    assert done.returncode == 4
    build = ["build", "--output", "c d", "--force", "--timeout", "3500", "--no-cache", "--allow-code", "--"]
    assert done.stdout.splitlines()[-11:] == ["a b", *build, "$(touch x)"]
    assert not (project / "x").exists()


# pre-commit


def test_the_hook_is_in_what_pre_commit_installs():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["language"] == "python"  # pre-commit installs the package, and with it the program
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert shlex.split(hook["entry"])[0] in package["scripts"]
    assert hook["additional_dependencies"] == package["optional-dependencies"]["zig"]


@pytest.fixture
def commit(project):
    """Commits one file where pre-commit runs the hook, with the lwc that is there instead of installing another."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    hook = {**hook, "language": "system", "additional_dependencies": []}
    config = {"repos": [{"repo": "local", "hooks": [hook]}]}
    (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    own = {"PRE_COMMIT_HOME": project / "temporary", "GIT_CONFIG_GLOBAL": "/dev/null"}
    start = "git init -q . && git config user.name a && git config user.email a@example.org"
    bash(f'{start} && "{sys.executable}" -m pre_commit install', project, **own).check_returncode()

    def commit(names):
        return bash(f"git add {names} && git commit -m x", project, **own)

    return commit


def test_the_hook_refuses_a_recipe_that_would_fail(project, commit):
    (project / "mlp.build").mkdir()  # an earlier run does not stand in the way
    good = commit("recipe.toml .pre-commit-config.yaml")
    assert good.returncode == 0, good.stderr
    assert re.search(r"lwc recipe check\.+Passed", good.stderr)
    (project / "main.py").write_text("")
    assert "no files to check" in commit("main.py").stderr
    (project / "recipe.toml").write_text(RECIPE.replace("sparsity", "sparsty"))
    bad = commit("mlp.onnx recipe.toml")
    assert bad.returncode == 1
    assert "the closest is 'sparsity'" in bad.stderr


# Docker


def dockerfile():
    """Instruction and its text, for every stage."""
    lines = [
        line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    stages = []
    for line in filter(None, lines):
        instruction, _, text = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, text))
    return stages


def of(stage, instruction):
    return [text for name, text in stage if name == instruction]


def test_the_image_is_slim_and_its_user_is_not_root():
    stages = dockerfile()
    assert all(re.fullmatch(r"python:3\.1[0-2]-slim( AS \w+)?", of(stage, "FROM")[0]) for stage in stages)
    (user,) = of(stages[-1], "USER")
    assert int(user) > 0  # by its number Kubernetes tells that it is not root
    assert f"useradd --uid {user} " in of(stages[-1], "RUN")[0]
    assert not of(stages[-1], "ADD")


def test_the_image_installs_lwc_from_what_is_copied(project):
    """The commands of the first stage, on the files that docker would see."""
    stage = dockerfile()[0]
    ignored, *kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignored == "*"
    for text in of(stage, "COPY"):
        *sources, target = text.split()
        for source in sources:
            assert any(fnmatch(source, name.removeprefix("!")) for name in kept if name.startswith("!"))
            place = project / target.lstrip("/")
            place = place / source if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", str(ROOT / source), str(place)], check=True)
    program(project / "bin" / "python", 'mkdir -p "$3/bin" && cp "$0-pip" "$3/bin/pip"')
    offline = f'--no-deps --no-build-isolation --no-index --target "{project}/installed"'
    program(project / "bin" / "python-pip", f'exec "{sys.executable}" -m pip "$@" {offline}')
    (command,), (extras,) = of(stage, "RUN"), of(stage, "ARG")
    command = command.replace("/opt/", f"{project}/opt/").replace("/source", f"{project}/source")
    done = bash(command, project, **dict([extras.split("=")]))
    assert done.returncode == 0, done.stderr
    assert_installed(project)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.partition("=")[2].split(",")) <= set(known)


def test_the_image_runs_lwc_with_a_cache_that_all_may_write(project):
    stage = dockerfile()[-1]
    (made,) = of(stage, "RUN")
    program(project / "bin" / "useradd", "exit 0")
    done = bash(made.replace(" /work", f" {project}/work").replace(" /cache", f" {project}/cache"), project)
    assert done.returncode == 0, done.stderr
    variables = dict(entry.split("=") for entry in of(stage, "ENV")[0].split())
    assert variables["PATH"].split(":")[0] == of(stage, "COPY")[0].split()[-1] + "/bin"
    for folder in (variables["LWC_CACHE"], of(stage, "WORKDIR")[0]):
        assert (project / folder.lstrip("/")).stat().st_mode & 0o777 == 0o777
    command = json.loads(of(stage, "ENTRYPOINT")[0]) + json.loads(of(stage, "CMD")[0])
    done = bash(shlex.join(command), project, HOME=variables["HOME"])
    assert done.returncode == 0
    assert "Usage: lwc" in done.stdout


# What the services say that their files have to be


def check_schema(name, tmp_path, *documents):
    files = []
    for number, document in enumerate(documents):
        files.append(tmp_path / f"{number}.yml")
        files[-1].write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{name}", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def blocks(words):
    """The YAML blocks of the page with these words."""
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if words in block]
    assert found
    return found


def test_files_for_github_have_its_schema(tmp_path):
    check_schema("github-actions", tmp_path, ACTION)
    jobs = [{"build": {"runs-on": "ubuntu-latest", "steps": steps}} for steps in blocks("uses:")]
    text = (ROOT / "examples" / "pipeline" / "github.yml").read_text(
        encoding="utf-8"
    )  # where PyYAML reads `on` as true
    check_schema("github-workflows", tmp_path, text, *({"on": "push", "jobs": job} for job in jobs))


def test_files_for_gitlab_have_its_schema(tmp_path):
    spec = (ROOT / "templates" / "lwc.yml").read_text(encoding="utf-8").partition("\n---\n")[0]
    include, job = blocks("include:")[0], blocks("before_script:")[0]
    whole = {"lwc": gitlab_job(package="lwc") | job["lwc"]}
    check_schema("gitlab-ci", tmp_path, spec, {"lwc": gitlab_job(package="lwc")}, whole, include, example("gitlab.yml"))


def test_pre_commit_takes_its_files(tmp_path):
    files = [(ROOT / "examples" / "pipeline" / "pre-commit.yaml").read_text(encoding="utf-8")]
    files.append(yaml.safe_dump({"repos": blocks("hooks:")[0]}))
    for number, text in enumerate(files):
        (tmp_path / f"{number}.yaml").write_text(text.replace("COMMIT", "0123abc"))
    for command, file in (
        ("validate-manifest", ROOT / ".pre-commit-hooks.yaml"),
        ("validate-config", "0.yaml"),
        ("validate-config", "1.yaml"),
    ):
        run = [sys.executable, "-m", "pre_commit", command, file]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Examples and the page


def example(name):
    return yaml.safe_load((ROOT / "examples" / "pipeline" / name).read_text(encoding="utf-8"))


def test_examples_use_what_there_is():
    steps = example("github.yml")["jobs"]["build"]["steps"]
    (step,) = (step for step in steps if step["uses"].startswith("OWNER/lwc@"))
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert f"steps.{step['id']}.outputs.directory" in json.dumps(steps)
    (include,) = example("gitlab.yml")["include"]
    job = gitlab_job(**include["inputs"])
    assert job["variables"]["LWC_RECIPE"] == "models/recipe.toml"
    (repository,) = example("pre-commit.yaml")["repos"]
    (known,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert [hook["id"] for hook in repository["hooks"]] == [known["id"]]


def test_the_page_explains_every_input():
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    for name, entry in ACTION["inputs"].items():
        assert re.search(rf"^\| `{name}` \| .* \| `{entry['default']}`", text, re.MULTILINE), name
    for name in ACTION["outputs"]:
        assert f"`{name}`" in text
    spec, _ = yaml.safe_load_all((ROOT / "templates" / "lwc.yml").read_text(encoding="utf-8"))
    assert all(f"`{name}`" in text for name in spec["spec"]["inputs"])
