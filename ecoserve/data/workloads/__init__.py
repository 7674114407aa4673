"""Synthetic workloads: a YAML file describes the traffic, and any command that takes a trace takes the file.

See docs/guides/workloads.md.
"""

from ecoserve.data.workloads.making import make_workload, workload_rows
from ecoserve.data.workloads.spec import Workload, read_workload

__all__ = ["Workload", "make_workload", "read_workload", "workload_rows"]
