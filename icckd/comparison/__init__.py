"""Several variants of a run with several seeds: every run is trained once, some at a time, and then compared.

`plan` lists the runs and says which may start; `folder` knows where each is and which are finished; `worker` trains
them in processes of their own, each a `team` of one or more, which `crew` starts, hears and stops; `starting` is how;
`estimate` and `progress` tell when it will end; `compare` puts it together. Settings and definition are in
`icckd.settings`, statistics and pages in `icckd.report`.
"""

from icckd.comparison.compare import Outcome, compare, write_results
from icckd.comparison.folder import ComparisonFolder
from icckd.comparison.plan import Run, Shard

__all__ = ["ComparisonFolder", "Outcome", "Run", "Shard", "compare", "write_results"]
