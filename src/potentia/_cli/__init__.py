"""The command line: ``potentia demo``, ``sample``, ``show``, ``report`` and ``train``."""

import sys
from collections.abc import Sequence

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with one sentence on stderr and exit code 2, without a traceback."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    from potentia._cli._app import app

    try:
        code = app(args=list(arguments), prog_name="potentia", standalone_mode=False)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError) as err:
        return _fail(str(err) or type(err).__name__, EXIT_BAD_INPUT)
    except Exception as err:
        # click's own errors (a wrong option, Ctrl-C inside a prompt) know how to show themselves.
        show = getattr(err, "show", None)
        if show is not None:
            show()
            return int(getattr(err, "exit_code", EXIT_BAD_INPUT))
        if type(err).__name__ == "Abort":
            return _fail("interrupted", EXIT_INTERRUPTED)
        raise
    if code == EXIT_INTERRUPTED:  # how typer says that Ctrl-C was pressed
        return _fail("interrupted", EXIT_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"potentia: {' '.join(message.split())}\n")
    return code
