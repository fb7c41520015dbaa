"""Entry point: sets up the process, runs one command, turns errors of input into one line and exit code 2."""

import sys
from itertools import pairwise

import typer

from nas.cli import (
    data,
    demo,
    distill_tree,
    export,
    filters,
    latency,
    nars,
    nbdt,
    predictor,
    query,
    report,
    search,
    spaces,
    train,
    tree_regularisation,
    zoo,
)
from nas.cli.options import is_first_here, is_main_process
from nas.process import tune_process

INTERRUPTED = 130  # exit code of Ctrl-C
RESUMABLE = 75  # of a run that was stopped and can go on

app = typer.Typer(
    name="nas",
    help="Design efficient networks: search, train, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("search")(search.search_command)
app.command("train")(train.train_command)
app.command("export")(export.export_command)
app.command("latency")(latency.latency_command)
app.command("nars")(nars.nars_command)
app.command("query")(query.query_command)
app.command("report")(report.report_command)
app.command("distill-tree")(distill_tree.distill_tree_command)
app.command("demo")(demo.demo_command)
app.add_typer(data.app, name="data")
app.add_typer(filters.app, name="filters")
app.add_typer(nbdt.app, name="nbdt")
app.add_typer(predictor.app, name="predictor")
app.add_typer(spaces.app, name="spaces")
app.add_typer(tree_regularisation.app, name="tree-reg")
app.add_typer(zoo.app, name="zoo")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; never returns."""
    tune_process()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Exit code of one command: 0, 2 for wrong input, 75 when stopped by a SIGTERM, 130 when interrupted."""
    from search_spaces.errors import Stopped, UserError

    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="nas", standalone_mode=False)
    except UserError as error:
        notes = getattr(error, "__notes__", [])  # which of several processes met it, if one alone did
        return _complain(" ".join([str(error), *notes]), alone=bool(notes))
    except Stopped as error:
        if is_main_process():
            print(f"nas: {error}; the same command goes on, with --resume where it has that", file=sys.stderr)  # noqa: T201
        return RESUMABLE
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except typer.Exit as error:
        return int(error.exit_code)
    except MemoryError:
        return _complain("out of memory; try a smaller --batch-size")
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except Exception as error:
        if _is_out_of_gpu_memory(error):
            return _complain("out of GPU memory; try a smaller --batch-size, in a search --recompute", alone=True)
        if hasattr(error, "format_message"):  # a usage error of the option parser
            message = error.format_message() or "no command given; see nas --help"
            return _complain(f"{message}{_value_given(error, sys.argv[1:] if arguments is None else arguments)}")
        raise
    if result == INTERRUPTED:  # the option parser has turned Ctrl-C into this
        return _interrupted()
    return result if isinstance(result, int) else 0


def _is_out_of_gpu_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # not there: no GPU either
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _value_given(error: Exception, arguments: list[str]) -> str:
    """`` (got 'VALUE')`` for the option that a usage error is about, where it can be told."""
    names = getattr(getattr(error, "param", None), "opts", ())
    given = [(name, value) for name, value in pairwise(arguments) if name in names]
    given += [(name, value) for name, sign, value in (a.partition("=") for a in arguments) if sign and name in names]
    return f" (got {given[-1][1]!r})" if given else ""


def _interrupted() -> int:
    print("nas: interrupted; the same command goes on, with --resume where it has that", file=sys.stderr)  # noqa: T201
    return INTERRUPTED


def _complain(message: str, *, alone: bool = False) -> int:
    """One line; where all processes meet the same error, of the first one of every machine."""
    if alone or is_first_here():
        print(f"nas: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return 2
