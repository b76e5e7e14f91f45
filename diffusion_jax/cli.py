"""What the commands share: flags that are checked before anything slow, and errors in one line."""

import difflib
import os
import re
import runpy
import sys
import threading
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict

from diffusion_jax import cpu, processes
from diffusion_jax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Parses flags and runs `main(argv)`; a user's mistake prints one line and exits with status 2."""
    logging.set_verbosity(logging.FATAL)  # the libraries' own chatter; what fails reaches us as an exception
    threading.excepthook, sys.unraisablehook = _thread_failed, _ignored
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"{error.strerror}: {error.filename or 'a file'}. Mend that and run the same command again.")
    except KeyboardInterrupt:
        _fail("interrupted.", status=130)


def _compilation_cache() -> flags.FlagHolder:
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "diffusion_jax")
    return flags.DEFINE_string(
        "compilation_cache",
        default,
        "Where compiled programs are kept for the next start; an empty value turns it off.",
    )


_CACHE = _compilation_cache()  # the commands adopt it by flags.adopt_module_key_flags


def use_compilation_cache() -> None:
    """Turns JAX's persistent compilation cache on, in the folder of --compilation_cache; call before importing JAX."""
    if _CACHE.value:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.value)


_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    processes.MODES,
    "Whether several processes are one run: by the cluster's variables, on or off.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, where no cluster tells it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.", lower_bound=0)


def start() -> None:
    """What every command does before JAX computes: the compilation cache, joining the run's other processes, a CPU's ways."""
    use_compilation_cache()
    cpu.choose_convolutions()
    if cpu.is_alone():
        cpu.keep_memory()
    processes.join(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)


def refuse_arguments(argv: list[str]) -> None:
    """Raises UserError for words that are no flags."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every option is a flag, as --name=value. See --help.")


def read_lines(path: str | None) -> tuple[str, ...]:
    """The lines of a text file, without those that are blank; nothing for None.

    Raises:
      UserError: the file cannot be read as UTF-8 text, or says nothing.
    """
    if path is None:
        return ()
    try:
        with open(path, encoding="utf-8") as file:
            lines = tuple(line.strip() for line in file if line.strip())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as such.") from error
    if not lines:
        raise UserError(f"{path} has no captions; write one per line.")
    return lines


def floats(flag: str, texts: list[str]) -> list[float]:
    """The numbers of a comma-separated flag.

    Raises:
      UserError: one is not a number.
    """
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise UserError(f"--{flag}={','.join(texts)}: wants numbers such as 1,2,4.") from error


def interval(flag: str, texts: list[str] | None) -> tuple[float | None, float | None]:
    """The two ends of a flag LOW,HIGH within [0, 1]; two Nones where it is not given.

    Raises:
      UserError: it is no such interval.
    """
    if texts is None:
        return None, None
    values = floats(flag, texts)
    if len(values) != 2 or not 0 <= values[0] <= values[1] <= 1:
        raise UserError(f"--{flag}={','.join(texts)}: wants LOW,HIGH within 0 and 1, such as 0.2,0.9.")
    return values[0], values[1]


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A writer's thread that meets a full disk says so at length; the main thread meets it too, and tells it in a line."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _ignored(ignored: "sys.UnraisableHookArgs") -> None:
    """After one failed write of a checkpoint, each of its other arrays finds the event loop closed, at length."""
    if "Event loop is closed" not in str(ignored.exc_value):
        sys.__unraisablehook__(ignored)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, but with every error in one line."""
    recipe = _recipe(argv)
    if recipe and not os.path.exists(recipe[0]):
        _fail(f"no such config: {recipe[0]}. Recipes are in configs/.")
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        _fail(_unknown_field(argv) or f"bad --config override: {error}")
    except (TypeError, ValueError) as error:
        _fail(f"bad --config override: {_last_line(error)}")
    except flags.Error as error:
        _fail(f"{_last_line(error)} See --help.")
    raise AssertionError("unreachable")


def _last_line(error: Exception) -> str:
    """What an error says, without the traceback that config_flags puts into its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^\w+Error: ", "", lines[-1]) if lines else type(error).__name__


def _unknown_field(argv: list[str]) -> str | None:
    """The message for the first --config.A.B=... that names no field of the recipe."""
    recipe = _recipe(argv)
    if recipe is None:
        return None
    path, variant = recipe
    known = field_names(runpy.run_path(path)["get_config"](*([variant] if variant else [])))
    for argument in argv:
        match = re.match(r"--(?:no)?config\.([\w.]+)", argument)
        if match and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=3, cutoff=0.4)
            nearest = ", ".join(f"config.{name}" for name in near) or "none"
            return f"no field config.{match[1]}. Nearest: {nearest}. All fields: configs/default.py."
    return None


def _recipe(argv: list[str]) -> tuple[str, str] | None:
    """(path, variant) of --config=PATH:VARIANT."""
    value = next((argument.partition("=")[2] for argument in argv if argument.startswith("--config=")), None)
    return None if value is None else tuple(value.partition(":")[::2])


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted names of all fields."""
    names = []
    for name, value in config.items():
        names += field_names(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [f"{prefix}{name}"]
    return names


def _fail(message: str, status: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
