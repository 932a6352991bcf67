"""A Python interpreter that starts warm.

A verl stage is a dozen Python processes (driver, Ray workers, vLLM's engine), and on a small machine nearly all of its
start-up is the same imports repeated in each. `host` is one process that has imported them once; `interpreter` is a
small executable that looks like `python`, asks the host to fork, and lives and ends as the fork does; `fork` is how
that becomes the process asked for. Whoever starts Python through `sys.executable` (Ray, multiprocessing's spawn) then
starts warm, unchanged.
"""
