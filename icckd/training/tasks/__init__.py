"""What is trained and by which losses; the loop knows nothing of either.

`task` says what a task is; `teacher` trains a network by a teacher's method, for which `average` and `embeddings` keep
what earlier steps left; `distillation` by those of students, from a teacher that only answers (`frozen`).
"""

from icckd.training.tasks.distillation import DistillationTask
from icckd.training.tasks.frozen import FrozenTeacher
from icckd.training.tasks.task import Task
from icckd.training.tasks.teacher import TeacherTask

__all__ = ["DistillationTask", "FrozenTeacher", "Task", "TeacherTask"]
