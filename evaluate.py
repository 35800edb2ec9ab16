"""Score predicted vertebrae against the reference masks of a VerSe data set.

Reads   DATA_DIR (reference masks of one split) and PREDICTIONS (what infer.py wrote), paired by case.
Writes  OUTPUT/summary.json, vertebrae.csv (a row a vertebra), cases.csv, evaluation.md, evaluation.png
        and settings.json; prints the overall table. With --compare OTHER, which holds predictions of the
        same cases, comparison.csv, comparison.md and comparison.png too, and prints the differences.
Run     python evaluate.py --data-dir data --split test --predictions predictions --output evaluation
Time    one to five seconds a case and core, twice that with --compare.

Exit status 1 if a case had no readable prediction (it counts as missed), with --skip-bad 0.
"""

import sys

from utils.command_line import run_script
from utils.settings import EvaluationSettings


def main(settings: EvaluationSettings) -> int:
    """Evaluate and give the exit status."""
    from utils.evaluation.evaluation import evaluate  # after the command line: pandas and figures load slowly

    return evaluate(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, EvaluationSettings))
