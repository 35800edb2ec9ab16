"""What tests of several folders share."""

import os
import subprocess
import sys

import pytest

from tests.skips import wrong_skips

#: Files whose tests take longest begin first: with several processes none is left with them in the end.
SLOW_FILES = (
    *("test_scripts.py", "test_replicas.py", "test_interface.py", "test_students.py", "test_resume.py"),
    *("test_training.py", "test_predict.py", "test_run_options.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests of slow files to the front."""
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the run fail if a test was skipped though what it needs is here."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):  # a worker reports to the process above
        return
    skipped = [report.longrepr for report in reporter.stats.get("skipped", ())]
    wrong = wrong_skips((f"{place}:{line}", reason) for place, line, reason in skipped)
    for line in wrong:
        reporter.write_line(line, red=True)
    if wrong:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Start a Dask scheduler and two workers, in a folder from which this project cannot be imported."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    file = folder / "scheduler.json"
    log = (folder / "log").open("w")
    common = ("--scheduler-file", str(file), "--no-dashboard")

    def start(*arguments):
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:], *common]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    processes = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")]
    processes.append(start("dask_worker", "--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1"))
    try:
        from distributed import Client

        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
        yield address
    finally:
        for process in reversed(processes):  # workers first: without a scheduler they wait for one
            process.terminate()
            process.wait(timeout=30)
        log.close()
