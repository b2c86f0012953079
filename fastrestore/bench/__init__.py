"""Latency and throughput: what is timed, how, and what is said of it.

Three levels that are never mixed in one figure:

- `engine`: the model alone, on a padded batch: device time by CUDA events, else the backend's call;
- `host`: uint8 pictures from host memory to host memory, through the Restorer or a rival;
- `pipeline`: a clip from file to file, decode -> restore -> encode, in frames a second.

`session` runs a `plan`; everything after it (`compare`, `table`, `sheet`, `plot`) reads the report
as JSON values, so that a report from a file is as good as a new one.
"""

from fastrestore.bench.stats import Percentiles
from fastrestore.bench.timing import time_calls

__all__ = ["Percentiles", "time_calls"]
