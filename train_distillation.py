"""Train small segmentation networks, alone and with the trained network as their teacher, and compare them.

Reads   work/segmentation/<spacing>/{training,validation} (from pre_processing_segmentation.py)
        work/models/segmentation, or --segmentation     (from train_segmentation.py): the teacher
Writes  work/models/student_runs/<student>  a model directory for the student from scratch and for each way to
                                            learn from the teacher
        work/models/student                 the best student with a teacher (for infer.py --segmentation), and
                                            students.csv, students.md, students.png
        With --name X these are work/models/X_runs and work/models/X.

    python train_distillation.py --work-dir work --preset small

About fifteen minutes on two CPU cores with the preset small. A killed run goes on where it stopped.
"""

import sys

from utils.command_line import run_script
from utils.settings import DistillationSettings


def main(settings: DistillationSettings) -> int:
    """Train and compare the students, and give the exit status."""
    from utils.distillation.comparison import (
        compare_students,  # after the command line: TensorFlow loads slowly
    )

    return compare_students(settings)


if __name__ == "__main__":
    sys.exit(run_script(main, DistillationSettings))
