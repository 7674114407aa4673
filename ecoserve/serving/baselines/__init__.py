"""What only the compared policies use (``ecoserve-d``, ``-sd``, ``-sdo``, ``-paper``, ``-exact``, ``orca``)."""
