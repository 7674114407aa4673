"""Sweeps: a plan (:mod:`~ecoserve.sweep.plan`) is run (:mod:`~ecoserve.sweep.execute`) into a result folder
(:mod:`~ecoserve.sweep.results`) that is read as a summary (:mod:`~ecoserve.sweep.summary`) and as a page for people
(:mod:`~ecoserve.sweep.report`)."""
