"""What is found out before anything is trained."""

import pytest

from icckd.errors import UserError
from icckd.experiment.requirements import check_batch_size
from icckd.settings import TeacherLossSettings, TeacherSettings


def test_a_batch_has_no_more_neighbours_than_other_images():
    def with_neighbours(count, **loss):
        return TeacherSettings(batch_size=8, loss=TeacherLossSettings(neighbours=count, **loss))

    check_batch_size("teacher", with_neighbours(7), 100, None, 1)
    check_batch_size("teacher", with_neighbours(10**9, method="supcon"), 100, None, 1)  # Which has none.
    for count in (8, 10**9):
        with pytest.raises(UserError, match=rf"teacher\.loss\.neighbours is {count}, but .* is 8: give 7 at most"):
            check_batch_size("teacher", with_neighbours(count), 100, None, 1)
