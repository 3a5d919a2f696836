"""One training loop for teacher and student.

A task (`tasks`) says what is trained and with which losses; `loop` trains it. A step may ask about its batch in parts
(`accumulation`) or be replayed as a CUDA graph (`capture`). `schedule` gives its learning rate; `optimizers` make its
update, or none: then `statistics` puts running statistics back. `steps` counts what was taken and skipped. `checkpoint`
reads and writes what is needed to resume, `randomness` where random numbers stand; `signals` stops it in good order.
"""

from icckd.training.checkpoint import Checkpoint
from icckd.training.loop import Record, Training
from icckd.training.signals import StopSignal
from icckd.training.tasks import DistillationTask, FrozenTeacher, Task, TeacherTask

__all__ = ["Checkpoint", "DistillationTask", "FrozenTeacher", "Record", "StopSignal", "Task", "TeacherTask", "Training"]
