"""Put a VerSe data set on disk: downloaded, generated, copied from a folder or zips, or a CT of your own.

Reads   VerSe from the Open Science Framework (--source osf), its zip archives from a server (--source zip
        --zip-url URL), nothing (--source phantom), a VerSe tree or its archives on disk (--source PATH),
        or one labelled CT (--source pairs --ct CT --mask MASK --split training).
Writes  DATA_DIR/dataset-<...>/rawdata|derivatives/sub-<...>/ (CT, mask, centroids), and of downloads
        DATA_DIR/manifest.json (size, SHA-256, source and date of each file); prints what is there.
        With --report nothing is got: DATA_DIR/report/ says what is in DATA_DIR and what is odd about it.
Run     python get_verse_data.py --source phantom --data-dir data --phantoms 12 3 5 --seed 0
        With --ranges wide phantoms are not tame: thin bone, strong kyphosis, wear, cement, screws, contrast.
Time    a few seconds a phantom and core; copying is as fast as the disk, downloads are as fast as the line.

A download that was broken off goes on with the same command. Exit status 1 if something could not be got
or read (with --skip-bad 0), 2 for a wrong command line, 130 after Ctrl-C.
"""

import sys

from utils.command_line import run_script
from utils.settings import DataSettings


def main(settings: DataSettings) -> int:
    """Put the data set on disk, or report on it, and give the exit status."""
    # After the command line: NumPy loads slowly.
    if settings.report:
        from utils.preparation.data_report import report_data  # pandas and figures, which nothing else needs

        return report_data(settings)
    from utils.download.data_set import get_data
    from utils.preparation.own_cases import add_own_case
    from utils.synthetic.phantom.write import write_phantoms

    return get_data(settings, sources={"pairs": add_own_case, "phantom": write_phantoms})


if __name__ == "__main__":
    sys.exit(run_script(main, DataSettings))
