"""What README says is true: its tree, its commands' flags, its example."""

import doctest
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TREE = re.search(r"## The tree\s+```\n(.*?)```", README, re.DOTALL)[1]
COMMANDS = re.findall(r"^python (train\.py|sample\.py|-m diffusion_jax\.evaluate) (.*)$", README, re.MULTILINE)


def test_every_path_of_the_tree_exists():
    folder, paths = ROOT, []
    for line in TREE.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0] if line.startswith("  ") else line
        if not line.startswith("  "):
            folder = ROOT
        words = re.findall(r"[\w./]+(?:\.py|/)", names if line.startswith("  ") else line.split("   ")[0])
        paths += [folder / word for word in words]
        if not line.startswith("  ") and len(words) == 1 and words[0].endswith("/"):
            folder = ROOT / words[0]
    assert len(paths) > 20
    assert not [str(path) for path in paths if not path.exists()]


def test_every_module_of_the_package_is_in_the_tree():
    missing = [
        path.name
        for path in (ROOT / "diffusion_jax").iterdir()
        if path.name not in ("__pycache__", "__init__.py", "cli.py", "errors.py", "images.py") and path.name not in TREE
    ]
    assert not missing


@pytest.mark.parametrize("command", sorted({command for command, _ in COMMANDS}))
def test_every_flag_of_a_command_is_known(command):
    out = subprocess.run([sys.executable, *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    flags = {flag for name, words in COMMANDS if name == command for flag in re.findall(r"--(\w+)", words)}
    assert flags
    assert not [flag for flag in flags if not re.search(rf"^  --(\[no\])?{flag}:", out, re.MULTILINE)]


def test_the_example_gives_what_it_shows():
    example = re.search(r"```python\n(>>> .*?)```", README, re.DOTALL)[1]
    parsed = doctest.DocTestParser().get_doctest(example, {}, "README", None, 0)
    result = doctest.DocTestRunner().run(parsed)
    assert result.attempted > 5
    assert not result.failed
