"""Synthetic workloads: a YAML file says what the traffic is like, and any command that takes a trace takes the file.

docs/workloads.md says how to describe one's own traffic.
"""

from ecoserve.data.workloads.making import make_workload
from ecoserve.data.workloads.reading import load_workload, read_workload, workload_rows
from ecoserve.data.workloads.spec import Workload

__all__ = ["Workload", "load_workload", "make_workload", "read_workload", "workload_rows"]
