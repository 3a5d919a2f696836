"""One training loop for teacher and student.

A task (`tasks`) says what is trained and with which losses; `loop` trains it; `schedule` gives the learning rate;
`checkpoint` reads and writes what is needed to resume; `signals` stops it in good order.
"""

from icckd.training.checkpoint import Checkpoint
from icckd.training.loop import Training
from icckd.training.signals import StopSignal
from icckd.training.tasks import DistillationTask, FrozenTeacher, Task, TeacherTask

__all__ = ["Checkpoint", "DistillationTask", "FrozenTeacher", "StopSignal", "Task", "TeacherTask", "Training"]
