"""The paper's teacher, intra-class: cross-entropy, and a contrastive loss within each class.

`settings` says what can be chosen, `method` puts the loss together; `rows` says what it compares, `course` how its
weight changes in a training, and `ratio` what adjusts the weight to what comes of it.
"""

from icckd.methods.intra_class.method import IntraClass
from icckd.methods.intra_class.settings import IntraClassSettings

__all__ = ["IntraClass", "IntraClassSettings"]
