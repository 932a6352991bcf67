"""Start Python processes warm, as forks of one that has done the imports.

A verl stage is a dozen Python processes (driver, Ray workers, vLLM's engine). On a small machine nearly all of its
start-up time goes into the same imports, repeated in each. `host` is a process that has done them once. `interpreter`
is a small executable that looks like `python`, asks the host to fork, and ends as the fork ends. `fork` turns the fork
into the requested process. Programs that start Python through `sys.executable` (Ray, multiprocessing's spawn) then
start warm without a change.
"""
