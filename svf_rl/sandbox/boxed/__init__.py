"""What runs inside the sandbox, started by `bubblewrap.py`. Standard library only, and no import of svf_rl.

`supervisor.py` runs one program after another. Each has two processes: `solution_process.py`, a new interpreter in its
own box, has the solution and answers calls; `test_process.py`, a fork of the supervisor outside that box, has the tests
and makes the calls. Only data passes between them (`wire.py`), so a solution sees arguments, never a test or an
expected value, and nothing that it does to its interpreter reaches the process that decides.
"""
