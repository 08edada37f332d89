"""The scalars that TensorBoard reads from a run directory: a JSON object of tag -> [[step, value], ...].

usage: python load_events.py RUN/tensorboard    (tensorboard 2.21)
"""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
